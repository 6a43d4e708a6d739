"""Faults of whole runs, and what became of them: the rows of bench.reliability.faults that train.

A small T5 (32 wide, 2 layers, LoRA r=4), 57 synthetic reports, 2 epochs of 4 steps, 2 micro-batches
each, dropout on, fp32 if nothing else is said; forked processes, gloo. Survived: the process ended
as documented, and the same command again ends with the bits of an undisturbed run (adapter,
optimizer state, log, validation losses).
"""

import json
import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

import train_loop
from bench.reliability import disk_faults, fault_runs
from bench.reliability.disk_faults import ERRNOS, Fault, ended, kills
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.corpora.synthetic import write_splits
from report2impression.engine.fast import FastEngine
from report2impression.reading.options import SourceConfig
from report2impression.runs import durable, tracking
from report2impression.weights.new_base import NewBaseConfig, new_base

HALVES: dict[str, Any] = {"micro_batch_size": 4}  # on 2 ranks, the same 16 reports a step
N_STEPS = 8


@dataclass
class Trials:
    """What was tried, and how often that ended well; seconds of what the row times."""

    tried: int = 0
    survived: int = 0
    seconds: tuple[float, ...] = ()

    def add(self, survived: bool, seconds: float | None = None) -> None:
        self.tried += 1
        self.survived += survived
        self.seconds += () if seconds is None else (seconds,)

    def row(self, name: str, in_all: float) -> tuple[Any, ...]:
        middle = last = None
        if self.seconds:
            middle = 1000 * statistics.median(self.seconds)
            last = 1000 * sorted(self.seconds)[-(len(self.seconds) // 100) - 1]
        return name, self.tried, self.survived, middle, last, in_all


class Place:
    """Data, base and run folders in a temporary folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        tracking.draw_curves = lambda *_: None  # slow, and no state
        write_splits(folder / "data", 57, 12, 13, seed=0)
        write_splits(folder / "corpus", 200, 1, 1, seed=1)
        sizes: dict[str, Any] = {"d_model": 32, "d_ff": 64, "d_kv": 16, "n_heads": 2, "n_layers": 2}
        corpus = SourceConfig(path=str(folder / "corpus"))
        target = str(folder / "base")
        new_base(NewBaseConfig(output_dir=target, data=corpus, vocab_size=400, **sizes))
        self._wholes: dict[str, tuple[dict[str, Any], Path]] = {}

    def argv(self, run: Path, **changes: Any) -> list[str]:
        flags = {
            **{"output_dir": run, "epochs": 2, "micro_batch_size": 8, "grad_accum_steps": 2},
            **{"learning_rate": 3e-3, "warmup_steps": 2, "precision": "fp32", "log_every": 3},
            **{"model.path": self.folder / "base", "model.dropout": 0.1, "lora.dropout": 0.1},
            **{"data.path": self.folder / "data", "data.cache_dir": self.folder / "cache"},
            **{"lora.r": 4, "lora.alpha": 8.0, "checkpoint_steps": 1, "keep_checkpoints": 100},
            **changes,
        }
        return ["--cpu", *(f"--{name}={value}" for name, value in flags.items())]

    def whole(self, n_ranks: int = 1, **changes: Any) -> tuple[dict[str, Any], Path]:
        """(bits, run folder) of an undisturbed run."""
        key = repr((n_ranks, changes))
        if key not in self._wholes:
            run = self.folder / f"whole-{len(self._wholes)}"
            assert set(fault_runs.run(self.argv(run, **changes), n_ranks)) == {0}
            self._wholes[key] = bits(run), run
        return self._wholes[key]

    def fresh(self) -> Path:
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        return run


def resumed_at_every_step(place: Place, n_ranks: int, **changes: Any) -> Trials:
    trials = Trials()
    expected, whole = place.whole(n_ranks, **changes)
    for step in steps_kept(whole):
        run = place.fresh()
        shutil.copytree(whole, run)
        for later in steps_kept(run):
            if later > step:
                shutil.rmtree(run / "checkpoints" / durable.folder_name(later))
        (run / "exit_status.json").unlink()
        codes = fault_runs.run(place.argv(run, **changes), n_ranks)
        trials.add(set(codes) == {0} and bits(run) == expected)
    return trials


def moved_to_other_numbers(place: Place) -> Trials:
    """deterministic = true: stopped on w processes, gone on with on another number."""
    trials = Trials()
    exact = {"micro_batch_size": 4, "deterministic": True}
    expected, _ = place.whole(1, **exact, grad_accum_steps=4)
    for worlds in ((2, 1), (1, 2), (1, 4), (4, 1), (2, 4), (4, 2), (1, 2, 4), (4, 2, 1)):
        run = place.fresh()
        argv = place.argv(run, **exact, grad_accum_steps=4 // worlds[0])
        codes: list[int] = []
        for number, n_ranks in enumerate(worlds):
            is_last = number == len(worlds) - 1
            children = fault_runs.launch(argv, n_ranks)
            if not is_last:
                _wait(run, 3 * number + 2)
                for child in children:
                    os.kill(child, signal.SIGTERM)
            codes = [ended(child) for child in children]
        trials.add(set(codes) == {0} and bits(run) == expected)
    return trials


def killed_at_random(place: Place, n: int) -> Trials:
    """Half at random moments, half at random file operations, several in one run."""
    trials = Trials()
    expected, _ = place.whole()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        argv = place.argv(place.folder / "calls")
        calls = disk_faults.operations(partial(fault_runs.run_here, argv))
    begun = time.monotonic()
    fault_runs.run(place.argv(place.fresh()))
    length = time.monotonic() - begun
    while trials.tried < n:
        run, n_killed = place.fresh(), 0
        argv = place.argv(run)
        for number in range(place.draw.randrange(1, 20)):
            if number % 2:
                early = calls[: 1 + int(len(calls) * place.draw.random())]  # a run goes on, too
                fault = place.draw.choice(kills(early))
                (code,) = fault_runs.run(argv, before=partial(disk_faults.install, fault))
            else:
                (child,) = fault_runs.launch(argv)
                time.sleep(place.draw.random() * length)
                os.kill(child, signal.SIGKILL)
                code = ended(child)
            n_killed += code == -signal.SIGKILL
            if code == 0:
                break
        good = fault_runs.run(argv) == [0] and bits(run) == expected
        for _ in range(n_killed):
            trials.add(good)
    return trials


def disk_full_from_there_on(place: Place, n: int) -> Trials:
    """Every change from a random file operation on fails: 7, or 2 if there was no run yet."""
    trials = Trials()
    expected, _ = place.whole()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        argv = place.argv(place.folder / "calls-of-one")
        calls = disk_faults.operations(partial(fault_runs.run_here, argv))
    for number in range(n):
        run = place.fresh()
        kind = sorted(ERRNOS)[number % len(ERRNOS)]
        fault = Fault(place.draw.randrange(len(calls)), kind, for_good=True)
        (code,) = fault_runs.run(place.argv(run), before=partial(disk_faults.install, fault))
        told = code == 7 or (code == 2 and not steps_kept(run)) or (code == 0 and is_done(run))
        trials.add(told and fault_runs.run(place.argv(run)) == [0] and bits(run) == expected)
    return trials


def is_done(run: Path) -> bool:
    """Its last step is kept: what failed after it was only the note that it has ended."""
    return steps_kept(run)[-1:] == [N_STEPS]


def folder_vanishes(place: Place) -> Trials:
    trials = Trials()
    for step in range(1, N_STEPS + 1):
        run = place.fresh()
        gone = partial(_at_step, step, partial(shutil.rmtree, run))
        trials.add(fault_runs.run(place.argv(run), before=gone) == [7] and not run.exists())
    return trials


def _at_step(step: int, action: Callable[[], object]) -> None:
    """In a forked rank: do that when the step (from 1) begins."""
    mix_seed = train_loop.mix_seed

    def note(seed: int, now: int, shard: int) -> int:
        if now == step - 1 and not done:
            done.append(step)
            action()
        return mix_seed(seed, now, shard)

    done: list[int] = []
    train_loop.mix_seed = note  # type: ignore[assignment]


def begun_twice(place: Place, n: int) -> Trials:
    """The same command twice at once: one trains, the other leaves with 2."""
    trials = Trials()
    expected, _ = place.whole()
    for _ in range(n):
        run = place.fresh()
        children = [fault_runs.launch(place.argv(run))[0] for _ in range(2)]
        codes = sorted(ended(child) for child in children)
        trials.add(codes == [0, 2] and bits(run) == expected)
    return trials


def signalled(place: Place, n: int) -> Trials:
    """TERM, USR1 or INT to one of two processes at a random step: both leave with 75."""
    expected, _ = place.whole(2, **HALVES)
    trials = Trials()
    for number in range(n):
        run = place.fresh()
        argv = place.argv(run, **HALVES, checkpoint_steps=0)
        children = fault_runs.launch(argv, 2)
        _wait(run, place.draw.choice((3, 6)))
        begun = time.monotonic()
        os.kill(children[number % 2], (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number % 3])
        codes = [ended(child) for child in children]
        seconds = time.monotonic() - begun
        told = json.loads((run / "exit_status.json").read_text())["code"]
        good = codes in ([75, 75], [0, 0]) and told == codes[0]  # 0: it was done before
        again = fault_runs.run(argv, 2)
        trials.add(good and again == [0, 0] and bits(run) == expected, seconds)
    return trials


def lost(place: Place, n: int, how: str, limit: float) -> Trials:
    """One of two processes is killed, stopped or meets a bug: the other leaves with 8, and nobody
    stays. Every tenth of them goes on afterwards."""
    expected, _ = place.whole(2, **HALVES)
    number = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}.get(how)
    trials = Trials()
    for trial in range(n):
        run, victim = place.fresh(), trial % 2
        before = partial(_with_bug, victim, 4) if number is None else lambda: None
        argv = place.argv(run, **HALVES)
        children = fault_runs.launch([*argv, f"--peer_timeout={limit}"], 2, before=before)
        _wait(run, 3)
        begun = time.monotonic()
        if number is not None:
            os.kill(children[victim], number)
        codes = [ended(child) for child in children]
        seconds = time.monotonic() - begun
        good = (codes[victim], codes[1 - victim]) == (1 if number is None else -signal.SIGKILL, 8)
        if trial % 10 == 0:
            good = good and fault_runs.run(argv, 2) == [0, 0] and bits(run) == expected
        trials.add(good, seconds)
    return trials


def _with_bug(victim: int, step: int) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    if os.environ["RANK"] == str(victim):
        _at_step(step, bug)


def spoiled_gradients(place: Place) -> Trials:
    """Infinity or NaN in the gradient of one of two processes: no bit of weights and optimizer
    state changes on any, and the count of updates, which decides the rate, stays."""
    trials = Trials()
    for precision, every in (("fp32", 1), ("bf16", 3), ("fp16", 3)):
        for step in range(2, N_STEPS + 1, every):
            run = place.fresh()
            bad = (float("inf"), float("nan"))[step % 2]
            spoil = partial(_with_bad_gradient, {step}, bad, victim=step // 2 % 2)
            codes = fault_runs.run(place.argv(run, **HALVES, precision=precision), 2, before=spoil)
            before, after = (_kept(run, number) for number in (step - 1, step))
            trials.add(codes == [0, 0] and before == after)
    return trials


def _kept(run: Path, step: int) -> tuple[bytes, bytes, int]:
    files = durable.read(run / "checkpoints" / durable.folder_name(step)).files
    updates = json.loads(files["state.json"])["progress"]["updates"]
    return files["weights.safetensors"], files["optimizer.safetensors"], updates


def _with_bad_gradient(steps: set[int], bad: float, victim: int) -> None:
    """In a forked rank: the gradients of one rank's first micro-batch of these steps."""
    forward, calls = FastEngine.forward, iter(range(10**6))

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = forward(self, *args, **kwargs)
        if loss.requires_grad and next(calls) in {2 * (step - 1) for step in steps}:
            loss.register_hook(lambda gradient: gradient * bad)
        return loss

    if os.environ.get("RANK", "0") == str(victim):
        FastEngine.forward = spoiled  # type: ignore[method-assign]


def given_up(place: Place) -> Trials:
    """K bad steps in a row: 6 after exactly the K-th, with the ids of its reports; the last good
    state is kept."""
    trials = Trials()
    for k in range(1, 6):
        for precision in ("fp32", "bf16"):
            run = place.fresh()
            spoil = partial(_with_bad_gradient, set(range(3, 9)), float("nan"), victim=1)
            argv = place.argv(run, **HALVES, precision=precision, max_skips=k)
            codes = fault_runs.run(argv, 2, before=spoil)
            told = json.loads((run / "exit_status.json").read_text())
            at = f"{k} steps in a row, the last one step {2 + k} with examples "
            ids = told["reason"].partition(at)[2].partition(": ")[0].split(", ")
            kept = steps_kept(run)[-1:] == [1 + k]
            trials.add(codes == [6, 6] and told["code"] == 6 and len(ids) in (16, 9) and kept)
    return trials


def out_of_memory(place: Place) -> Trials:
    """At the first micro-batch of every step: 2, the batch and the setting named."""
    trials = Trials()
    expected, _ = place.whole()

    def full() -> None:
        raise torch.OutOfMemoryError("out of memory")

    for step in range(1, N_STEPS + 1):
        run = place.fresh()
        codes = fault_runs.run(place.argv(run), before=partial(_in_forward, step, full))
        told = json.loads((run / "exit_status.json").read_text())["reason"]
        named = "reports" in told and "--micro_batch_size" in told
        again = fault_runs.run(place.argv(run))
        trials.add(codes == [2] and named and again == [0] and bits(run) == expected)
    return trials


def _in_forward(step: int, action: Callable[[], object]) -> None:
    forward, calls = FastEngine.forward, iter(range(10**6))

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and next(calls) == 2 * (step - 1):
            action()
        return forward(self, *args, **kwargs)

    FastEngine.forward = spoiled  # type: ignore[method-assign]


def _wait(run: Path, step: int) -> None:
    """Until the log or a checkpoint tells of that step."""
    log, until = run / "metrics.jsonl", time.monotonic() + 60
    while not (
        (log.exists() and any(f'"step": {s},' in log.read_text() for s in (step, step + 1)))
        or any(kept >= step for kept in steps_kept(run))
    ):
        if time.monotonic() > until:
            raise TimeoutError(f"{run} does not get to step {step}")
        time.sleep(0.002)
