"""A run that was stopped anywhere and started again ends with the same bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

import train_loop
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.runs import checkpoint, durable
from report2impression.training import gradients
from tests.tiny import Tiny

SLOW = pytest.mark.slow


pytestmark = pytest.mark.usefixtures("no_curves")


def flags(tiny: Tiny, folder: Path, **changes: Any) -> list[str]:
    """Two epochs of four steps, two micro-batches each, dropout on; every step is kept."""
    same: dict[str, Any] = {
        **{"epochs": 2, "micro_batch_size": 8, "grad_accum_steps": 2, "log_every": 3},
        **{"model__dropout": 0.1, "lora__dropout": 0.1},
        **{"checkpoint_steps": 1, "checkpoint_minutes": 0, "keep_checkpoints": 100},
    }
    return tiny.flags(folder, **{**same, **changes})


def run(tiny: Tiny, folder: Path, **changes: Any) -> None:
    train_loop.main(flags(tiny, folder, **changes))


def stopped_after(step: int, whole: Path, folder: Path) -> Path:
    """A copy of a run as it was when that step had been kept, but for the log, which went on."""
    shutil.copytree(whole, folder)
    for name in ("adapter", "model"):  # the second epoch writes its own
        shutil.rmtree(folder / name, ignore_errors=True)
    for kept in steps_kept(whole):
        if kept > step:
            shutil.rmtree(folder / "checkpoints" / durable.folder_name(kept))
    (folder / "exit_status.json").unlink()
    return folder


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An undisturbed run with the given settings, once for all tests."""
    known: dict[str, Path] = {}

    def made(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "run"
            run(tiny, known[key], **changes)
        return known[key]

    return made


@pytest.mark.parametrize("step", [*(pytest.param(n, marks=SLOW) for n in (2, 6, 7)), 1, 3, 4, 5, 8])
def test_resumed_after_every_step_gives_the_same_bits(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], step: int
) -> None:
    """Dropout and accumulation on, in the middle and at the end of an epoch."""
    undisturbed = whole()
    assert steps_kept(undisturbed) == list(range(1, 9))
    folder = stopped_after(step, undisturbed, tmp_path / "run")
    run(tiny, folder)
    assert bits(folder) == bits(undisturbed)


CELLS: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"tuning": "full", "engine": "hf", "optimizer": "adafactor", "learning_rate": 1e-2},
]
MORE_CELLS: list[dict[str, Any]] = [
    {"precision": "bf16", "engine": "hf", "grad_accum_steps": 1, "max_steps": 11},
    {"precision": "fp16"},
    {"objective": "denoise", "data__prefix": ""},
    {"grad_accum_steps": 3, "deterministic": True},
]


@pytest.mark.parametrize(
    "cell", [*CELLS, *(pytest.param(cell, marks=SLOW) for cell in MORE_CELLS)], ids=str
)
def test_resumed_with_other_settings_gives_the_same_bits(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], cell: dict[str, Any]
) -> None:
    undisturbed = whole(**cell)
    kept = steps_kept(undisturbed)
    for step in (kept[1], kept[-1]):
        folder = stopped_after(step, undisturbed, tmp_path / str(step))
        run(tiny, folder, **cell)
        assert bits(folder) == bits(undisturbed)


# --- what is stored is needed --------------------------------------------------------------------


def without(files: dict[str, bytes], item: str) -> dict[str, bytes]:
    """The stored state with one item as it is at the start of a run."""
    state = json.loads(files["state.json"])
    part, _, name = item.partition(".")
    if part in state and name in state[part]:
        value = state[part][name]
        state[part][name] = [0.0, 0.0] if name == "epoch" and part == "tracker" else type(value)()
        return {**files, "state.json": durable.canonical(state)}
    tensors = load(files[f"{part}.safetensors"])
    start = {n: t * 0 if not name or n.startswith(name + ".") else t for n, t in tensors.items()}
    return {**files, f"{part}.safetensors": save(start)}


@pytest.mark.parametrize(
    "item",
    [
        *("nothing", "weights", "optimizer.exp_avg", "optimizer.step", "progress.step"),
        *("progress.offset", "progress.updates", "tracker.window", "skips.total"),
        *(
            pytest.param(item, marks=SLOW)
            for item in (
                *("optimizer.exp_avg_sq", "progress.epoch", "tracker.epoch", "tracker.n_done"),
            )
        ),
    ],
)
def test_leaving_anything_out_changes_bits(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Path],
    item: str,
) -> None:
    """Stopped in the second epoch, after a skipped step, between two log lines."""
    spoil(monkeypatch, {5})
    undisturbed = whole(lora__alpha=8.5)  # a run of its own: spoiled
    folder = stopped_after(7, undisturbed, tmp_path / "run")
    if item != "nothing":
        restore = checkpoint.TrainingState.restore
        monkeypatch.setattr(
            checkpoint.TrainingState,
            "restore",
            lambda self, kept: restore(self, without(kept, item)),
        )
    run(tiny, folder, lora__alpha=8.5)
    assert (bits(folder) == bits(undisturbed)) == (item == "nothing")


def spoil(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The loss of these steps (from 1) is not a number."""
    now = [0]
    mix_seed, finish = train_loop.mix_seed, gradients.GradientSum.finish

    def note(seed: int, step: int, shard: int) -> int:
        now[0] = step + 1
        return mix_seed(seed, step, shard)

    def spoiled(self: gradients.GradientSum, wish: float) -> tuple[torch.Tensor, torch.Tensor]:
        loss, wishes = finish(self, wish)
        return loss * float("nan") if now[0] in bad else loss, wishes

    monkeypatch.setattr(train_loop, "mix_seed", note)
    monkeypatch.setattr(gradients.GradientSum, "finish", spoiled)


@pytest.mark.parametrize("step", [5, pytest.param(6, marks=SLOW), 7])
def test_skips_in_a_row_are_counted_across_a_stop(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    step: int,
) -> None:
    """Three in a row end the run with exit code 6 at the same step, and again, and again."""
    spoil(monkeypatch, {6, 7, 8})
    for folder in (tmp_path / "whole", tmp_path / "run", tmp_path / "run"):
        with pytest.raises(SystemExit) as caught:
            run(tiny, folder, max_skips=3)
        assert caught.value.code == 6
        assert "3 steps in a row, the last one step 8 with" in capfd.readouterr().err
        status = json.loads((folder / "exit_status.json").read_text())
        assert status["code"] == 6 and status["checkpoint"] == "step-00000007"
        if folder.name == "whole":
            stopped_after(step, folder, tmp_path / "run")


def test_the_scaler_goes_on_where_it_was() -> None:
    """Scale and growth tracker: its scale grows at every third good step, stopped or not."""

    def state() -> checkpoint.TrainingState:
        weight = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(weight.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        progress = checkpoint.Progress(torch.zeros(()))
        return checkpoint.TrainingState(weight, optimizer, scaler, progress)

    def steps(of: checkpoint.TrainingState, n: int) -> list[float]:
        scales = []
        for _ in range(n):
            of.optimizer.zero_grad()
            of.scaler.scale(of.engine(torch.ones(1, 2)).sum()).backward()
            of.scaler.step(of.optimizer)
            of.scaler.update()
            scales.append(of.scaler.get_scale())
        return scales

    undisturbed, first, second = state(), state(), state()
    scales = steps(undisturbed, 8)
    assert scales == [64, 64, 128, 128, 128, 256, 256, 256]
    told = steps(first, 5)
    second.restore(first.files())
    assert told + steps(second, 3) == scales


def test_a_folder_that_cannot_be_made_is_told(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(SystemExit) as caught:
        run(tiny, tmp_path / "run")
    assert caught.value.code == 7
    assert "checkpoints: Not a directory" in capfd.readouterr().err
