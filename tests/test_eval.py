"""eval.py: what is taken from the trained run, what is told early, what is left out."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

import eval as evaluation
import train_loop
from eval import training_pairs
from report2impression.program import files
from report2impression.program.errors import DataError
from report2impression.reading.options import DataConfig
from report2impression.reading.pairs import Pair
from report2impression.reporting import compare, plots, results
from report2impression.runs.evaluation import BaseConfig, EvalData, as_trained
from report2impression.scoring.describe import words
from report2impression.scoring.faithfulness import checks as faithfulness
from report2impression.weights.options import ModelConfig
from tests.programs import forked
from tests.tiny import Tiny, one_line


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on columns that no reader knows by itself."""
    faithfulness.prepare()  # for all forks at once
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


def evaluate(run: Path, *flags: str, pictures: bool = False) -> None:
    short = ["--cpu", "--n=4", "--max_new_tokens=4", "--n_resamples=200"]
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:  # most of the time; test_pages.py has them
            patch.setattr(plots, "_finish", lambda *_, **__: Markup("<svg></svg>"))
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
    told = capsys.readouterr().out
    assert "published" not in told.replace("rougeLsum as published", "")  # data of one's own
    (line,) = [s for s in told.splitlines() if "most frequent" in s]
    assert [cell.strip() for cell in line.split("\u2502")[2:-1]] == ["-"] * 6


def test_broken_training_reports_are_no_missing_ones(run: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(DataError):
        training_pairs(DataConfig(path=str(tmp_path)))


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

    monkeypatch.setattr(files.os, "rename", full)
    with pytest.raises(SystemExit) as caught:
        evaluate(run, f"--output_dir={tmp_path}")
    out, err = capfd.readouterr()
    assert caught.value.code == 2 and "4 test reports" in out
    assert "No space left on device" in err and str(tmp_path) in err and "Traceback" not in err


@pytest.mark.usefixtures("no_generation")
def test_a_fully_tuned_model_is_refused(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    shutil.copy(run / "adapter" / "training.toml", tmp_path / "adapter")
    message = failure(capfd, tmp_path)
    assert "adapter_config.json" in message and "RUN/adapter" in message


CANARY = "zanzibar"


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluations of the same run on reports that all hold the canary, the second with texts
    shown."""
    folder = tmp_path_factory.mktemp("canary")
    rows = [json.loads(row) for row in (run.parent / "data" / "test.jsonl").open()]
    marked = [{k: f"{CANARY} {v}" for k, v in row.items()} for row in rows]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, marked)))
    shutil.copy(run.parent / "data" / "train.jsonl", folder)
    outs = [folder / "one", folder / "two"]
    for out, extra in zip(outs, ([], ["--show_text=2"]), strict=True):
        places = f"--data.path={folder}", f"--output_dir={out}"
        evaluate(run, "--n=9", *places, *extra, pictures=True)
    return outs


def test_the_same_sample_gives_the_same_bytes(evaluated: list[Path]) -> None:
    for name in ("scores.json", "sample_ids.json", "per_report.jsonl"):
        one, two = ((out / name).read_bytes() for out in evaluated)
        assert one == two


def test_report_text_is_written_on_request_only(evaluated: list[Path]) -> None:
    for file in evaluated[0].iterdir():
        assert CANARY not in file.read_text()
    assert CANARY in (evaluated[1] / "report.html").read_text()
    assert "REPORT TEXT" in (evaluated[1] / "report.html").read_text()


Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def predicted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """An evaluation with --save_predictions, and the outputs that it had in memory."""
    folder, made = tmp_path_factory.mktemp("predicted"), []

    def remembered(*args: Any) -> evaluation.Generated:
        made.append(generate_both(*args))
        return made[-1]

    generate_both = evaluation.generate_both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "generate_both", remembered)
        evaluate(run, "--n=9", f"--output_dir={folder}", "--save_predictions")
    (generated,) = made
    rows = [
        {"id": pair.id, "source": pair.prompt, "reference": pair.impression}
        | {name: texts[i] for name, texts in generated.texts.items()}
        for i, pair in enumerate(generated.sample.pairs)
    ]
    return folder, rows


def test_predictions_are_written_on_request(predicted: tuple[Path, Rows]) -> None:
    folder, rows = predicted
    file = folder / "predictions.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert written == rows and len(rows) == 9
    assert set(rows[0]) == {"id", "source", "reference", "base", "lora"}
    assert [row["id"] for row in rows] == json.loads((folder / "sample_ids.json").read_text())
    assert not list(folder.glob("*.partial"))


def test_each_system_keeps_its_own_outputs_in_a_private_file(tmp_path: Path) -> None:
    pairs = [Pair(f"r{i}", f"findings {i}", f"impression {i}") for i in range(2)]
    umask = os.umask(0)  # eval.py sets a stricter one; here the file must be private by itself
    try:
        results.write_predictions(tmp_path, pairs, {"lora": ["l0", "l1"], "base": ["b0", "b1"]})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "predictions.jsonl").stat().st_mode) == 0o600
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert [(row["id"], row["base"], row["lora"]) for row in written] == [
        ("r0", "b0", "l0"),
        ("r1", "b1", "l1"),
    ]


# Report text, whole or as a killed evaluation of this or an older version left it.
LEFT = (
    "predictions.jsonl",
    *("predictions.jsonl.partial", "report.html.partial"),
    *(".tmp-predictions.jsonl-123", ".tmp-report.html-9", ".tmp-per_report.jsonl-77"),
)


def test_predictions_of_an_earlier_evaluation_go(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.partial").write_text("")
    for name in LEFT:
        (tmp_path / name).write_text("{}")
    evaluate(run, f"--output_dir={tmp_path}")
    assert (tmp_path / "scores.json").is_file() and (tmp_path / "mine.partial").is_file()
    assert not [name for name in LEFT if (tmp_path / name).exists()]


@pytest.mark.parametrize("asked", [False, True])
def test_saved_predictions_are_searched_for_training_text(
    run: Path, predicted: tuple[Path, Rows], tmp_path: Path, asked: bool
) -> None:
    """End to end, with outputs one of which is a training impression that its source lacks."""
    train = [json.loads(line) for line in (run.parent / "data" / "train.jsonl").open()]
    (folder, rows), learned = predicted, max((row["urteil"] for row in train), key=len)
    recited = [{**rows[0], "source": "nothing"} | {"lora": learned}, *rows[1:]]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in recited))
    columns = ("--data.source_column=befund", "--data.target_column=urteil")
    flags = [f"--data.path={run.parent / 'data'}", *columns, *["--show_text"] * asked]

    def report(predictions: Path) -> tuple[str, dict[str, Any]]:
        done = forked(
            "-m", "report2impression.audit.memorisation", f"--predictions={predictions}", *flags
        )
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return done.stdout, json.loads(line)

    out, figures = report(tmp_path)
    lora = figures["systems"]["lora"]
    n_words = len(words(learned))
    assert lora["worst"][0] == [rows[0]["id"], n_words] and lora["max"] == n_words
    assert lora["copies_of_training_impressions"] == 1
    assert (figures["n"], figures["training_reports"]) == (9, len(train))
    first = " ".join(words(learned)[:4])
    assert (first in out) == ("TRAINING TEXT" in out) == asked
    if not asked:  # the file as eval.py wrote it
        assert report(folder)[1]["n"] == 9


def test_scores_say_how_they_came_about(evaluated: list[Path]) -> None:
    scores = json.loads((evaluated[0] / "scores.json").read_text())
    assert scores["decoding"]["search"] == "greedy" and scores["decoding"]["max_new_tokens"] == 4
    assert {"base_sha256", "adapter_sha256", "data_sha256", "torch"} <= scores["provenance"].keys()
    assert set(scores["faithfulness"]["laterality"]) == {"base", "lora", "reference"}
    assert set(scores["structured"]["presence"]) == {"base", "lora", "paired"}
    for name in ("rouge1", "rougeLsum_split", "bleu"):
        low, high = scores["intervals"]["lora"][name]
        assert low <= scores["lora"][name] <= high
    assert any("--max_new_tokens" in rail["message"] for rail in scores["guard_rails"])


def test_two_runs_are_compared_on_their_common_reports(
    evaluated: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    runs = [str(out) for out in evaluated]
    compare.main([*runs, "--n_resamples=200", f"--output={found}"])
    figures = json.loads(found.read_text())
    assert figures["n"] == 9 and figures["paired"]["metrics"]["rougeL"]["difference"] == 0
    assert "9 common test reports" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["a"], ["a", "--seed=1"], ["none", "neither"]])
def test_a_comparison_without_runs_is_one_line(
    flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        compare.main(flags)
    assert caught.value.code
    one_line(capfd.readouterr().err)
