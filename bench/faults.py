"""What happens to a run when the machine, the disk or another process fails.

    python -m bench.faults                      all kinds of faults, a few minutes on 2 cores
    python -m bench.faults --kills 1000 --damages 5000 --signals 60 --losses 100

Survived means: the same command again ends with the bits of an undisturbed run (adapter, optimizer
state, log, validation losses), dropout on. A small T5 (32 wide, 2 layers, LoRA r=4), 57 synthetic
reports, 2 epochs of 4 steps, 2 micro-batches each; forked processes, gloo, fp32.
"""

import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

import durable
import tracking
from bench import disk_faults, fault_runs
from bench.common import print_json
from bench.disk_faults import ERRNOS, Fault, Journal, damage, ended, faulty, journal, kills
from bench.fault_runs import bits, steps_kept
from config import parse
from corpus.new_base import NewBaseConfig, new_base
from corpus.synthetic import write_splits
from errors import StorageError
from quiet import quieten_libraries
from sources import SourceConfig

COLUMNS = ("fault", "tried", "survived", "median (ms)", "99th percentile (ms)", "in all (s)")
ADAPTER_BYTES = 294_912 * 4  # T5-small, r=8 on q and v


@dataclass(frozen=True)
class FaultsConfig:
    """How many faults of the kinds that could go on for ever."""

    kills: int = 50
    """Random kills of whole runs, half of them inside a save."""
    damages: int = 500
    """Random damages of a checkpoint."""
    signals: int = 9
    """Signals to one of two processes."""
    losses: int = 6
    """One of two processes killed, or stopped."""
    seed: int = 0
    """Seed of moments and damages."""


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


def killed_in_a_save(place: Place) -> Trials:
    """Every file operation of a save, before, after and inside; then the next save."""
    trials, parent = Trials(), place.folder / "save"
    _save(parent, 1)
    _save(parent, 2)
    calls = disk_faults.operations(partial(_save, parent, 3))
    for step, fault in zip(range(4, 10**6, 2), kills(calls), strict=False):

        def killed(step: int = step, fault: Fault = fault) -> None:
            with faulty(fault):
                _save(parent, step)

        disk_faults.in_a_child(killed)
        found = durable.newest(parent)[0]
        durable.clean(parent)
        _save(parent, step + 1)
        trials.add(bool(found and found.facts["n"] in (step, step - 1)))
    return trials


def _save(parent: Path, step: int) -> None:
    durable.make_folder(parent)
    draw = random.Random(step)
    durable.commit(parent, step, {n: draw.randbytes(3000) for n in "abc"}, {"n": step})
    durable.prune(parent, keep=2)


def killed_at_random(place: Place, n: int) -> Trials:
    """Half at random moments, half at random file operations of the run."""
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
        for number in range(place.draw.randrange(1, 6)):
            if number % 2:
                fault = place.draw.choice(kills(calls))
                (code,) = fault_runs.run(argv, before=partial(disk_faults.install, fault))
            else:
                (child,) = fault_runs.launch(argv)
                time.sleep(place.draw.random() * length)
                os.kill(child, signal.SIGKILL)
                code = ended(child)
            n_killed += code == -signal.SIGKILL
        good = fault_runs.run(argv) == [0] and bits(run) == expected
        for _ in range(n_killed):
            trials.add(good)
    return trials


def power_lost(place: Place) -> Trials:
    trials, parent = Trials(), place.folder / "power"
    _save(parent, 1)
    _save(parent, 2)

    def cut(kept: Journal, *, at_least: int = 2) -> None:
        for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            disk = place.folder / "disk"
            kept.after_power_loss(disk, place.draw, share)
            found = durable.newest(disk)[0]
            trials.add(bool(found and found.facts["n"] >= at_least))
            shutil.rmtree(disk)

    with journal(parent, cut) as kept:
        durable.commit(parent, 3, {"a": bytes(3000), "b": bytes(10)}, {"n": 3})
    cut(kept, at_least=3)
    with journal(parent, partial(cut, at_least=3)):
        durable.prune(parent, keep=1)
    return trials


def damaged(place: Place, n: int) -> Trials:
    """Found before use, and the checkpoint before it taken."""
    trials, parent = Trials(), place.folder / "damage"
    _, whole = place.whole()
    shutil.copytree(whole / "checkpoints", parent)
    *others, last = durable.stored(parent)
    fresh = {file.name: file.read_bytes() for file in last.iterdir()}
    for _ in range(n):
        damage(last, place.draw, others)
        begun = time.monotonic()
        found, rejected = durable.newest(parent)
        seconds = time.monotonic() - begun
        trials.add(list(rejected) == [last] and found is not None, seconds)
        shutil.rmtree(last)
        last.mkdir()
        for name, data in fresh.items():
            (last / name).write_bytes(data)
    return trials


def disk_fails(place: Place) -> Trials:
    """Every error at every file operation of a save: StorageError or no harm, then a good save."""
    trials, parent = Trials(), place.folder / "errors"
    _save(parent, 1)
    _save(parent, 2)
    calls, step = disk_faults.operations(partial(_save, parent, 3)), 3
    for kind in ERRNOS:
        for at in range(len(calls)):
            try:
                with faulty(Fault(at, kind)):
                    _save(parent, step + 1)
            except StorageError:
                found = durable.newest(parent)[0]
                trials.add(bool(found and found.facts["n"] in (step, step + 1)))
            else:
                trials.add(durable.newest(parent)[0] is not None)
            step += 2
            _save(parent, step)
    return trials


def signalled(place: Place, n: int) -> Trials:
    """TERM, USR1 or INT to one of two processes at a random step: both leave with 75."""
    halves = {"micro_batch_size": 4, "checkpoint_steps": 0}
    expected, _ = place.whole(2, micro_batch_size=4)
    trials = Trials()
    for number in range(n):
        run = place.fresh()
        argv = place.argv(run, **halves)
        children = fault_runs.launch(argv, 2)
        _wait(run, place.draw.choice((3, 6)))
        begun = time.monotonic()
        os.kill(children[number % 2], (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number % 3])
        codes = [ended(child) for child in children]
        seconds = time.monotonic() - begun
        again = fault_runs.run(argv, 2)
        good = codes in ([75, 75], [0, 0]) and again == [0, 0]  # or it was done before
        trials.add(good and bits(run) == expected, seconds)
    return trials


def lost(place: Place, n: int, number: signal.Signals, limit: float) -> Trials:
    """One of two processes is killed or stopped: the other leaves with 8."""
    halves = {"micro_batch_size": 4}
    expected, _ = place.whole(2, **halves)
    trials = Trials()
    for trial in range(n):
        run = place.fresh()
        children = fault_runs.launch(place.argv(run, **halves, peer_timeout=limit), 2)
        _wait(run, 3)
        begun = time.monotonic()
        os.kill(children[trial % 2], number)
        codes = [ended(child) for child in children]
        seconds = time.monotonic() - begun
        good = sorted(codes) == [-signal.SIGKILL, 8]
        again = fault_runs.run(place.argv(run, **halves), 2)
        trials.add(good and again == [0, 0] and bits(run) == expected, seconds)
    return trials


def _wait(run: Path, step: int) -> None:
    """Until the log or a checkpoint tells of that step."""
    log = run / "metrics.jsonl"
    while not (
        (log.exists() and any(f'"step": {s},' in log.read_text() for s in (step, step + 1)))
        or any(kept >= step for kept in steps_kept(run))
    ):
        time.sleep(0.002)


def saved(place: Place) -> Trials:
    """What a save of T5-small's adapter (r=8 on q and v, 3.5 MB) costs."""
    trials, parent = Trials(), place.folder / "cost"
    durable.make_folder(parent)
    files = {"weights": os.urandom(ADAPTER_BYTES), "optimizer": os.urandom(2 * ADAPTER_BYTES)}
    for step in range(100):
        begun = time.monotonic()
        durable.commit(parent, step, files, {})
        durable.prune(parent, keep=2)
        trials.add(True, time.monotonic() - begun)
    return trials


def rows(place: Place, config: FaultsConfig) -> Iterable[tuple[str, Callable[[], Trials]]]:
    halves = {"micro_batch_size": 4}
    n = config.losses
    return [
        ("resumed after every step", partial(resumed_at_every_step, place, 1)),
        ("the same, bf16", partial(resumed_at_every_step, place, 1, precision="bf16")),
        ("the same, 2 processes", partial(resumed_at_every_step, place, 2, **halves)),
        ("the same, 4 processes", partial(resumed_at_every_step, place, 4, micro_batch_size=2)),
        ("another number of processes (deterministic)", partial(moved_to_other_numbers, place)),
        ("killed at every file operation of a save", partial(killed_in_a_save, place)),
        ("killed at random", partial(killed_at_random, place, config.kills)),
        ("power lost during a save", partial(power_lost, place)),
        ("damaged checkpoint", partial(damaged, place, config.damages)),
        ("disk error at every operation of a save", partial(disk_fails, place)),
        ("signal to one of 2 processes, until all left", partial(signalled, place, config.signals)),
        ("1 of 2 processes killed", partial(lost, place, n, signal.SIGKILL, 60)),
        ("1 of 2 processes stopped, time-out 2 s", partial(lost, place, n, signal.SIGSTOP, 2)),
        ("(no fault) a save, 3.5 MB", partial(saved, place)),
    ]


def main() -> None:
    quieten_libraries()
    config = parse(FaultsConfig, description=(__doc__ or "").partition("\n")[0])
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), config.seed)
        for name, trial in rows(place, config):
            begun = time.monotonic()
            trials = trial()
            found.append(trials.row(name, time.monotonic() - begun))
            print(*found[-1], sep="  ", flush=True)
    tracking.print_table("Faults tried and survived", COLUMNS, found, digits=1)
    print_json({row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in found})


if __name__ == "__main__":
    main()
