"""Several processes: stopped and resumed to the bit, at another number of them, signals, lost and
silent ones. The ranks are forked (bench/fault_runs.py); a real launcher is in tests/slow."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train_loop
from bench.reliability import fault_runs
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.training import gradients
from tests.test_resume import flags, stopped_after
from tests.tiny import Tiny, metrics
from tests.waiting import HANG_S

# 16 reports a step on 2 ranks; fp32 as it is anyway, so that all tests share one whole run
HALVES: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 4, "grad_accum_steps": 2}
SLOW = pytest.mark.slow


pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An undisturbed run on so many ranks with the given settings, once for all tests."""
    known: dict[str, Path] = {}

    def made(n_ranks: int, **changes: Any) -> Path:
        key = repr((n_ranks, sorted(changes.items())))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("whole") / "run"
            done = fault_runs.run(flags(tiny, known[key], **changes), n_ranks)
            assert done == [0] * n_ranks
        return known[key]

    return made


@pytest.mark.parametrize(
    ("n_ranks", "step", "precision"),
    [
        (2, 3, "fp32"),
        *(
            pytest.param(*cell, marks=SLOW)
            for cell in ((2, 4, "bf16"), (3, 5, "fp32"), (4, 3, "fp32"))
        ),
    ],
)
def test_resumed_ranks_give_the_same_bits(
    tiny: Tiny,
    tmp_path: Path,
    whole: Callable[..., Path],
    n_ranks: int,
    step: int,
    precision: str,
) -> None:
    cut = {**HALVES, "precision": precision, "grad_accum_steps": 2 if n_ranks == 2 else 1}
    undisturbed = whole(n_ranks, **cut)
    folder = stopped_after(step, undisturbed, tmp_path / "run")
    argv = flags(tiny, folder, **cut)
    assert fault_runs.run(argv, n_ranks) == [0] * n_ranks
    assert bits(folder) == bits(undisturbed)


@pytest.mark.parametrize(
    "worlds",
    [(2, 1), pytest.param((1, 2, 4), marks=SLOW), pytest.param((4, 2), marks=SLOW)],
    ids=str,
)
def test_deterministic_runs_have_the_same_bits_on_any_number_of_processes(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], worlds: tuple[int, ...]
) -> None:
    """Stopped in the middle of each epoch and gone on with at another number of them."""
    exact = {"micro_batch_size": 4, "deterministic": True}
    begun = {**exact, "grad_accum_steps": 4 // worlds[0]}
    undisturbed = whole(1, **exact, grad_accum_steps=4)
    folder = tmp_path / "run"
    for n_ranks, step in zip(worlds, (2, 5, None), strict=False):
        argv = flags(tiny, folder, **begun)
        if step and n_ranks != worlds[-1]:
            assert set(fault_runs.run(argv, n_ranks, before=stop_after(step))) == {75}
            assert steps_kept(folder)[-1] == step
        else:
            assert set(fault_runs.run(argv, n_ranks)) == {0}
    assert bits(folder) == bits(undisturbed)


def stop_after(step: int, number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """In the last of the ranks alone, a signal during that step."""

    def arrange() -> None:
        mix_seed = train_loop.mix_seed

        def signalled(seed: int, now: int, shard: int) -> int:
            if now + 1 == step and os.environ.get("RANK") == last_rank():
                os.kill(os.getpid(), number)
            return mix_seed(seed, now, shard)

        train_loop.mix_seed = signalled  # type: ignore[assignment]

    return arrange


def last_rank() -> str | None:
    n_ranks = os.environ.get("WORLD_SIZE")
    return str(int(n_ranks) - 1) if n_ranks else None


@pytest.mark.parametrize(
    "worlds", [(1, 2), pytest.param((2, 1), marks=SLOW), pytest.param((2, 3), marks=SLOW)], ids=str
)
def test_a_run_goes_on_with_the_same_steps_on_other_numbers_of_processes(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], worlds: tuple[int, int]
) -> None:
    """Nothing is to be changed in the command: accumulation follows."""
    dry = {"micro_batch_size": 4, "grad_accum_steps": 2, "model__dropout": 0, "lora__dropout": 0}
    dry |= {"log_every": 1}
    undisturbed = whole(worlds[0], **dry)
    folder = stopped_after(3, undisturbed, tmp_path / "run")
    for stop in (stop_after(6), lambda: None):  # and again, at the new number
        done = fault_runs.run(flags(tiny, folder, **dry), worlds[1], before=stop)
    assert done == [0] * worlds[1]
    ours, theirs = metrics(folder, "step"), metrics(undisturbed, "step")
    assert len(ours) == len(theirs) and ours[:3] == theirs[:3]
    for name, tolerance in (("loss", 1e-5), ("lr", 1e-9), ("grad_norm", 1e-4)):
        assert [s[name] for s in ours] == pytest.approx([s[name] for s in theirs], abs=tolerance)
    assert bits(folder)["state"]["progress"] == bits(undisturbed)["state"]["progress"]


def refused(argv: list[str], n_ranks: int, told: Path) -> tuple[list[int], str]:
    """Exit codes and what they said."""

    def tell() -> None:
        sys.stderr = told.open("a", buffering=1)

    return fault_runs.run(argv, n_ranks, before=tell), told.read_text()


def test_numbers_of_processes_that_cannot_be(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path]
) -> None:
    exact = {"micro_batch_size": 4, "grad_accum_steps": 4, "deterministic": True}
    folder = stopped_after(3, whole(1, **exact), tmp_path / "run")
    codes, message = refused(flags(tiny, folder, **exact), 3, tmp_path / "told")
    assert codes == [5, 5, 5] and message.count("error: ") == 1
    assert "4 micro-batches" in message and "a number that divides 4" in message
    assert steps_kept(folder) == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=SLOW)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], number: signal.Signals
) -> None:
    undisturbed = whole(2, **HALVES)
    folder = tmp_path / "run"
    argv = flags(tiny, folder, **HALVES, checkpoint_steps=0)
    assert fault_runs.run(argv, 2, before=stop_after(4, number)) == [75, 75]
    status = json.loads((folder / "exit_status.json").read_text())
    assert status["code"] == 75
    assert steps_kept(folder) == [4] and status["checkpoint"].endswith("4")
    assert fault_runs.run(argv, 2) == [0, 0]
    assert bits(folder) == bits(undisturbed)


LOST = {"killed": stop_after(4, signal.SIGKILL), "stopped": stop_after(4, signal.SIGSTOP)}


@pytest.mark.parametrize("how", [*LOST, pytest.param("raises", marks=SLOW)])
def test_all_end_when_one_is_lost_and_the_run_goes_on_later(
    tiny: Tiny, tmp_path: Path, whole: Callable[..., Path], how: str
) -> None:
    undisturbed = whole(2, **HALVES)
    folder = tmp_path / "run"
    limit = 10 if how == "stopped" else HANG_S  # a rank on a busy machine may be late by seconds
    argv = flags(tiny, folder, **HALVES)
    begun = time.monotonic()
    late = f"--peer_timeout={limit}"
    codes = fault_runs.run([*argv, late], 2, before=LOST.get(how, spoiled))
    assert codes == [8, 1 if how == "raises" else -signal.SIGKILL]
    assert time.monotonic() - begun < HANG_S
    assert json.loads((folder / "exit_status.json").read_text())["code"] == 8
    assert fault_runs.run(argv, 2) == [0, 0]
    assert bits(folder) == bits(undisturbed)


def spoiled() -> None:
    """Rank 1 meets a bug in step 5."""
    add = gradients.GradientSum.add
    calls = iter(range(1, 1000))

    def raises(self: gradients.GradientSum, *args: Any) -> None:
        add(self, *args)
        if next(calls) == 9 and os.environ["RANK"] == "1":
            raise ZeroDivisionError

    gradients.GradientSum.add = raises  # type: ignore[assignment, method-assign]
