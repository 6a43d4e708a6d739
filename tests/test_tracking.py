"""tracking.py: what lands in metrics.jsonl, the loss of an epoch, tables and curves."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image

from report2impression.program.errors import ConfigError
from report2impression.program.terminal import print_table
from report2impression.reporting import published
from report2impression.runs import tracking
from report2impression.runs.trackers import tensorboard_writer
from report2impression.runs.tracking import Tracker, draw_curves

NAN = float("nan")


def strictly(line: str) -> dict[str, Any]:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [strictly(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tracker(folder: Path, n_steps: int = 4, **changes: Any) -> Tracker:
    return Tracker(folder, n_steps=n_steps, **{"log_every": 1, **changes})


def step(
    into: Tracker, loss_sum: float, n_labels: int, *, finite: bool = True, **figures: Any
) -> None:
    told = {"lr": torch.tensor(1e-4), "grad_norm": torch.tensor(2.0), "skipped": 0, **figures}
    into.step(torch.tensor(loss_sum), n_labels, 5 * n_labels, torch.tensor(finite), **told)


def test_one_line_per_log_step(tmp_path: Path) -> None:
    told = tracker(tmp_path, n_steps=5, log_every=2)
    for number in range(5):
        step(told, 10.0 * (number + 1), 10, lr=torch.tensor(float(number)))
    told.close()
    rows = lines(tmp_path)
    assert [row["kind"] for row in rows] == ["step"] * 3
    assert [row["step"] for row in rows] == [2, 4, 5]  # and the last one, wherever it falls
    assert [row["loss"] for row in rows] == [1.5, 3.5, 5.0]  # the mean since the line before
    assert [row["lr"] for row in rows] == [1.0, 3.0, 4.0]
    assert all(row["grad_norm"] == 2.0 and row["tokens_per_s"] > 0 for row in rows)


def test_training_loss_is_weighted_by_tokens_and_leaves_skipped_steps_out(tmp_path: Path) -> None:
    told = tracker(tmp_path, n_steps=6, log_every=4)
    for loss_sum, n_labels, finite in (
        (30.0, 10, True),
        (NAN, 7, False),
        (float("inf"), 7, False),
        (5.0, 5, False),  # a finite loss with a gradient that is not
        (90.0, 90, True),
    ):
        step(told, loss_sum, n_labels, finite=finite)
    told.end_epoch(1, {"validation_loss": 1.5})
    step(told, 40.0, 10)
    told.end_epoch(2, {"validation_loss": 1.25, "rouge1": 30.0}, extra=7.0)
    told.close()
    epochs = [row for row in lines(tmp_path) if row["kind"] == "epoch"]
    assert [row["training_loss"] for row in epochs] == [120 / 100, 4.0]
    assert [row["validation_loss"] for row in epochs] == [1.5, 1.25]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 5), (2, 6)]
    assert (epochs[1]["rouge1"], epochs[1]["extra"]) == (30.0, 7.0)


def test_skipped_steps_are_told_once_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tracker(tmp_path, n_steps=2)
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5})
    assert "skipped" not in "".join(capsys.readouterr()) and "skipped" not in told.epochs[0]
    step(told, NAN, 4, finite=False, skipped=1)
    told.n_skipped = 1
    told.end_epoch(2, {"validation_loss": 1.5})
    told.close()
    out, err = capsys.readouterr()
    assert lines(tmp_path)[-1]["skipped"] == 1
    assert "skipped=1" in err  # the progress bar
    header, *rows = [
        [cell.strip() for cell in line.split(mark)[1:-1]]
        for mark in "\u2503\u2502"
        for line in out.splitlines()
        if mark in line
    ]
    assert [row[header.index("skipped")] for row in rows] == ["-", "1"]


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"--tensorboard.*pip install"):
        tensorboard_writer()


def test_long_sums_keep_their_digits(tmp_path: Path) -> None:
    """2,000 windows of 3e4 nats: a float32 sum would be off in the sixth digit."""
    told = tracker(tmp_path, n_steps=2001, log_every=5000)
    for _ in range(2000):
        step(told, 30_000.1, 10_000)
    told.end_epoch(1, {"validation_loss": 3.0})
    told.close()
    one = float(torch.tensor(30_000.1)) / 10_000
    assert lines(tmp_path)[-1]["training_loss"] == pytest.approx(one, rel=1e-9)


def test_what_is_not_finite_is_null_in_strict_json(tmp_path: Path) -> None:
    told = tracker(tmp_path, n_steps=1)
    step(told, NAN, 10, finite=False, grad_norm=torch.tensor(float("inf")))
    told.end_epoch(1, {"validation_loss": NAN})
    told.close()
    first, last = lines(tmp_path)
    assert (first["loss"], first["grad_norm"], first["lr"]) == (None, None, pytest.approx(1e-4))
    assert (last["training_loss"], last["validation_loss"], last["epoch"]) == (None, None, 1)
    assert image.imread(tmp_path / "curves.png").size  # drawn without the points


def test_a_run_folder_holds_one_run(tmp_path: Path) -> None:
    for _ in range(2):
        told = tracker(tmp_path, n_steps=1)
        step(told, 1.0, 1)
        told.close()
    assert len(lines(tmp_path)) == 1


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = tracker(tmp_path, n_steps=1, enabled=False, tensorboard=True, beside_published=True)
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5})
    told.close()
    assert list(tmp_path.iterdir()) == []
    assert tuple(capfd.readouterr()) == ("", "")
    assert told.epochs[0]["training_loss"] == 3.0  # it still takes part in the sums


@pytest.mark.parametrize("beside_published", [False, True])
def test_published_columns_only_when_asked(
    beside_published: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "draw_curves", lambda *_: None)  # slow
    told = tracker(tmp_path, n_steps=6, beside_published=beside_published)
    for epoch in range(1, 7):  # one more than was published
        step(told, 12.5, 4)
        told.end_epoch(epoch, {"validation_loss": 1.5})
    told.close()
    table = capsys.readouterr().out.split("Loss per label token, by epoch")[-1]
    figures = [f"{x:.4f}" for x in published.TRAINING_LOSS + published.VALIDATION_LOSS]
    assert "3.1250" in table and "validation loss" in table
    assert [figure in table for figure in figures] == [beside_published] * 10
    assert ("published training" in table) == beside_published
    if beside_published:
        last = [line for line in table.splitlines() if "3.1250" in line][-1]
        assert [cell.strip() for cell in last.split("│")[-3:-1]] == ["-", "-"]


def test_curves_are_a_readable_picture(tmp_path: Path) -> None:
    told = tracker(tmp_path, n_steps=2)
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5})
    first = image.imread(tmp_path / "curves.png")
    step(told, 40.0, 4)
    told.end_epoch(2, {"validation_loss": 1.4})
    told.close()
    second = image.imread(tmp_path / "curves.png")
    assert first.shape == second.shape and min(first.shape[:2]) > 300
    assert (first != second).any()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_curves_of_a_run_whose_first_steps_were_skipped(tmp_path: Path) -> None:
    steps: list[dict[str, float | None]] = [
        {"step": 1, "loss": None, "lr": 0.0},
        {"step": 2, "loss": 3.0, "lr": 1e-5},
    ]
    epochs = [{"epoch": 1, "step": 2, "training_loss": 3.0, "validation_loss": 2.5}]
    draw_curves(tmp_path / "curves.png", steps, epochs)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_tensorboard_gets_every_known_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, float, int]] = []

    class Writer:
        def add_scalar(self, name: str, value: float, at: int) -> None:
            calls.append((name, float(value), at))

        def close(self) -> None:
            calls.append(("closed", 0.0, 0))

    monkeypatch.setattr("report2impression.runs.tracking._tensorboard", lambda folder: Writer())
    told = tracker(tmp_path, n_steps=2, tensorboard=True)
    step(told, NAN, 4, finite=False)  # a window without a loss must not stop the run
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5})
    told.close()
    assert [c for c in calls if c[0] == "step/loss"] == [("step/loss", 3.0, 2)]
    assert ("epoch/validation_loss", 1.5, 2) in calls and calls[-1][0] == "closed"


class Remembered(list[tuple[dict[str, float], int]]):
    """A sink that keeps what it is told."""

    closed = False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.append((dict(figures), step))

    def close(self) -> None:
        self.closed = True


def test_a_sink_gets_every_known_figure_and_nothing_else(tmp_path: Path) -> None:
    sink = Remembered()
    told = tracker(tmp_path, n_steps=2, sink=sink)
    step(told, NAN, 4, finite=False)
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5, "rouge1": NAN})
    assert not sink.closed
    told.close()
    assert sink.closed
    assert [at for _, at in sink] == [1, 2, 2]
    first, second, epoch = (figures for figures, _ in sink)
    assert set(second) - set(first) == {"step/loss"}  # a window without a loss
    assert second["step/loss"] == 3.0 and second["step/grad_norm"] == 2.0
    assert (epoch["epoch/validation_loss"], epoch["epoch/training_loss"]) == (1.5, 3.0)
    assert "epoch/rouge1" not in epoch
    assert all(math.isfinite(value) for figures, _ in sink for value in figures.values())


def test_other_ranks_leave_the_sink_alone(tmp_path: Path) -> None:
    sink = Remembered()
    told = tracker(tmp_path, n_steps=1, enabled=False, sink=sink)
    step(told, 12.0, 4)
    told.end_epoch(1, {"validation_loss": 1.5})
    told.close()
    assert not sink and not sink.closed


def test_no_text_can_pass_for_a_figure(tmp_path: Path) -> None:
    sink = Remembered()
    told = tracker(tmp_path, n_steps=1, sink=sink)
    text: Any = "the heart is large"
    with pytest.raises((TypeError, ValueError)):
        step(told, 12.0, 4, lr=text)
    with pytest.raises(TypeError):
        told.end_epoch(1, {"validation_loss": text})
    told.close()
    assert "heart" not in str(sink) + (tmp_path / "metrics.jsonl").read_text()


def test_a_pipe_cuts_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The widest table there is, eleven columns: at the 80 columns of a pipe rich would cut it."""
    monkeypatch.setenv("COLUMNS", "60")  # what a launcher's terminal was like says nothing
    told = tracker(tmp_path, n_steps=1000, log_every=5000, beside_published=True)
    told.n_done = 123_455
    step(told, 12.5, 4)
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
    told.end_epoch(1, {"validation_loss": 2.5, **dict.fromkeys(names, 87.65432)})
    told.close()
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "123,456" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    known = [f"{x:.4f}" for x in (published.TRAINING_LOSS[0], published.VALIDATION_LOSS[0])]
    assert cells == ["1", "123,456", "3.1250", "2.5000", *["87.6543"] * 5, *known]
    assert "…" not in out and "\x1b" not in out


def test_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a", 1234567, 0.12345, None, "x", True)]
    print_table("t", ("name", "int", "float", "none", "str", "bool"), rows, digits=2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "1,234,567" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:5] == ["a", "1,234,567", "0.12", "-", "x"]


def test_columns_of_text_stand_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t", ("name", "verdict", "n"), [("a", "ok", 1)], left=(0, 1))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "ok" in line]
    assert line == "│ a    │ ok      │ 1 │"


def test_words_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t", ("[id]", "n"), [("[bold]report[/bold]", 1), ("a[/]", 2)])
    out = capsys.readouterr().out
    assert "[bold]report[/bold]" in out and "a[/]" in out and "[id]" in out
