"""eval.py: what is taken from the trained run, what is told early, what is left out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import eval as evaluation
import train_loop
from data import DataConfig
from errors import DataError
from eval import BaseConfig, EvalData, as_trained, training_impressions
from model import ModelConfig
from tests.tiny import Tiny, one_line


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on columns that no reader knows by itself."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = folder / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        rows = map(json.loads, (tiny.data / f"{split}.jsonl").read_text().splitlines())
        renamed = [{"befund": row["prompt"], "urteil": row["impressions"]} for row in rows]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    train_loop.main(
        tiny.flags(
            folder / "run",
            micro_batch_size=32,
            max_steps=1,
            data__path=data,
            data__source_column="befund",
            data__target_column="urteil",
        )
    )
    return folder / "run"


def evaluate(run: Path, *flags: str) -> None:
    short = ["--cpu", "--n=4", "--max_new_tokens=4"]
    evaluation.main([f"--adapter={run / 'adapter'}", *short, *flags])


def failure(capfd: pytest.CaptureFixture[str], run: Path, *flags: str) -> str:
    """The one line of stderr of a call that is refused before anything is generated."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        evaluate(run, *flags)
    assert caught.value.code == 2
    return one_line(capfd.readouterr().err)


@pytest.fixture
def no_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "generate", lambda *_, **__: pytest.fail("generated"))


def test_data_and_columns_are_those_of_the_training(run: Path) -> None:
    evaluate(run)
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert scores["n"] == 4 and scores["baselines"]["most_frequent"]["rouge1"] >= 0
    assert len(json.loads((run / "evaluation" / "sample_ids.json").read_text())) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (EvalData(), ("a/b", "r1", "x")),
        (EvalData(path="a/b"), ("a/b", "r1", "x")),
        (EvalData(path="c/d"), ("c/d", None, "x")),
        (EvalData(path="c/d", revision="r2", source_column="y"), ("c/d", "r2", "y")),
        (EvalData(revision="r2"), ("a/b", "r2", "x")),
    ],
)
def test_a_revision_stays_with_its_path(given: EvalData, expected: tuple[Any, ...]) -> None:
    trained = DataConfig(path="a/b", revision="r1", source_column="x")
    merged = as_trained(given, trained)
    assert (merged.path, merged.revision, merged.source_column) == expected
    base = as_trained(BaseConfig(given.path, given.revision), ModelConfig("a/b", "r1"))
    assert (base.path, base.revision) == expected[:2]


def test_without_training_reports_that_baseline_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run.parent / "data" / "test.jsonl", tmp_path)
    evaluate(run, f"--data.path={tmp_path}", f"--output_dir={tmp_path / 'out'}")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["baselines"]["most_frequent"] is None
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "most frequent" in s]
    assert [cell.strip() for cell in line.split("\u2502")[2:-1]] == ["-"] * 5


def test_broken_training_reports_are_no_missing_ones(run: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(DataError):
        training_impressions(DataConfig(path=str(tmp_path)))


@pytest.mark.usefixtures("no_generation")
def test_a_folder_that_cannot_be_written_is_told_before_generating(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        message = failure(capfd, run, f"--output_dir={folder}")
        assert str(folder) in message and "--output_dir" in message


def test_the_table_is_told_even_if_writing_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation.os, "replace", full)
    with pytest.raises(SystemExit) as caught:
        evaluate(run, f"--output_dir={tmp_path}")
    out, err = capfd.readouterr()
    assert caught.value.code == 2 and "4 test reports" in out
    assert "No space left on device (--output_dir)" in err and "Traceback" not in err


@pytest.mark.usefixtures("no_generation")
def test_a_fully_tuned_model_is_refused(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    shutil.copy(run / "adapter" / "training.toml", tmp_path / "adapter")
    message = failure(capfd, tmp_path)
    assert "adapter_config.json" in message and "RUN/adapter" in message
