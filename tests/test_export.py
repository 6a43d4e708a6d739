"""What is exported gives our tokens without us, or is not there."""

import json
from pathlib import Path

import pytest

from bench import exported
from report2impression import Extractor
from report2impression.decoding.generate import to_text
from report2impression.extracting import export
from report2impression.reading.licence import MIMIC_III, read_mark, write_mark
from report2impression.weights.tokenizer import load_tokenizer
from tests.programs import ForkServer
from tests.tiny import Tiny, rows_of


def run(adapter: Path, output: Path, *flags: str) -> None:
    export.main([f"--adapter={adapter}", f"--output={output}", "--max_new_tokens=12", *flags])


@pytest.fixture(scope="module")
def merged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "merged"
    run(trained / "adapter", folder, "--to=merged")
    return folder


def test_transformers_alone_writes_the_same(
    merged: Path, trained: Path, tiny: Tiny, libraries: ForkServer, tmp_path: Path
) -> None:
    rows, tokenizer = rows_of(tiny), load_tokenizer(str(tiny.talkative))
    texts = ["extract: " + row["prompt"] for row in rows]
    (tmp_path / "job.json").write_text(exported.job(merged, texts, 80, "fp32", 12))
    done = libraries.run("-c", exported.TRANSFORMERS, tmp_path / "job.json")
    assert done.code == 0, done.stderr
    ours = Extractor(trained / "adapter", device="cpu", max_new_tokens=12)(rows)
    assert to_text(tokenizer, json.loads(done.stdout)) == [one.text for one in ours]


def test_the_bench_counts_what_is_the_same(
    trained: Path,
    tiny: Tiny,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    libraries: ForkServer,
) -> None:
    pytest.importorskip("ctranslate2")

    def forked(program: str, told: str, file: Path) -> list[list[int]]:
        file.write_text(told)
        rows = json.loads(libraries.run("-c", program, file).stdout)
        if "ctranslate2" in program and '"int8"' in told:
            rows[0] = []  # one that differs
        return rows

    monkeypatch.setattr(exported, "alone", forked)
    flags = [f"--adapter={trained / 'adapter'}", f"--data.path={tiny.data}", "--max_new_tokens=12"]
    monkeypatch.setattr("sys.argv", ["exported", *flags])
    exported.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["n"] == 13 and told["same"].pop("ctranslate2, int8") < 13
    assert set(told["same"].values()) == {13}


def test_a_merged_folder_is_used_like_its_adapter(
    merged: Path,
    trained: Path,
    tiny: Tiny,
) -> None:
    rows = rows_of(tiny)
    one, other = (
        Extractor(folder, device="cpu", max_new_tokens=12)(rows)
        for folder in (trained / "adapter", merged)
    )
    assert [o.text for o in one] == [o.text for o in other]
    assert {file.name for file in merged.iterdir()} >= {"README.md", "LICENCE.json", "config.json"}
    assert not any(file.suffix in (".bin", ".py") for file in merged.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_ctranslate2_opens_the_folder(
    precision: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    run(trained / "adapter", tmp_path / "ct2", "--to=ctranslate2", f"--precision={precision}")
    told = capsys.readouterr().out
    assert "of 12 reports, the same tokens as our decoder" in told
    assert precision != "fp32" or "12 of 12" in told
    ctranslate2.Translator(str(tmp_path / "ct2"))
    assert (tmp_path / "ct2" / "tokenizer.json").is_file()


@pytest.mark.parametrize("to", ["merged", "ctranslate2"])
def test_what_differs_is_not_left_there(
    to: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if to == "ctranslate2":
        pytest.importorskip("ctranslate2")
    monkeypatch.setattr(export, "n_same", lambda *_: 11)
    with pytest.raises(SystemExit) as ended:
        run(trained / "adapter", tmp_path / "out", f"--to={to}")
    assert ended.value.code == 3 and "11 of 12" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_mark_goes_with_it(trained: Path, tmp_path: Path, tiny: Tiny) -> None:
    import shutil

    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    write_mark(tmp_path / "adapter", MIMIC_III)
    run(tmp_path / "adapter", tmp_path / "merged", "--to=merged", "--n=2")
    assert read_mark(tmp_path / "merged") == MIMIC_III
    assert "credentialed: true" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(
    "flags", [["--to=merged", "--precision=int8"], ["--to=onnx"], ["--to=merged", "--n=-1"]]
)
def test_a_mistake_is_told(flags: list[str], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(trained / "adapter", tmp_path / "out", *flags)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(SystemExit):
        run(trained / "adapter", tmp_path / "out", "--to=merged")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
