"""A run that was stopped anywhere and started again ends with the same bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import durable
import tracking
import train_loop
from tests.tiny import Tiny, metrics

LAST = ("weights.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "draw_curves", lambda *_: None)  # slow


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


def steps_kept(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in durable.stored(folder / "checkpoints")]


def bits(folder: Path) -> dict[str, Any]:
    """Everything a run leaves but times: the kept adapter, the last state, the log."""
    last = durable.read(durable.stored(folder / "checkpoints")[-1])
    state = json.loads(last.files["state.json"])
    state["tracker"].pop("log_bytes")  # the speeds in it are not always equally long
    log = [
        {name: value for name, value in line.items() if name != "tokens_per_s"}
        for kind in ("step", "epoch")
        for line in metrics(folder, kind)
    ]
    kept = [file.read_bytes() for file in folder.glob("[am]*/*.safetensors")]  # adapter or model
    assert len(kept) == 1
    weights = [last.files[name] for name in LAST[:2]]
    return {"kept": kept, "weights": weights, "state": state, "log": log}


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


@pytest.mark.parametrize("step", range(1, 9))
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
    {"precision": "bf16", "engine": "hf", "grad_accum_steps": 1, "max_steps": 11},
    {"precision": "fp16"},
    {"objective": "denoise", "data__prefix": ""},
    {"tuning": "full", "engine": "hf"},
    {"grad_accum_steps": 3, "deterministic": True},
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell.values())))
def test_resumed_with_other_settings_gives_the_same_bits(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], cell: dict[str, Any]
) -> None:
    undisturbed = whole(**cell)
    kept = steps_kept(undisturbed)
    for step in (kept[1], kept[-1]):
        folder = stopped_after(step, undisturbed, tmp_path / str(step))
        run(tiny, folder, **cell)
        assert bits(folder) == bits(undisturbed)
