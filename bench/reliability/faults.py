"""What happens to a run when the machine, the disk or another process fails.

    python -m bench.reliability.faults     all kinds of faults, a few minutes on 2 cores
    python -m bench.reliability.faults --kills 1000 --damages 5000 --signals 120 --losses 250 \
        --steps 20000
    python -m bench.reliability.faults --only 2 processes     the rows whose name holds that

Each row ends with its goal; the exit code is 1 if one is missed. What survived means for a run
stands in run_faults.py; for a stored folder: what was whole before is whole, or the new one.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.common import print_json
from bench.reliability import disk_faults, run_faults
from bench.reliability.disk_faults import ERRNOS, Fault, Journal, damage, faulty, journal, kills
from bench.reliability.run_faults import HALVES, Place, Trials
from bench.reliability.soak import soak
from report2impression.program import files
from report2impression.program.config import parse
from report2impression.program.errors import StorageError
from report2impression.program.process import quieten_libraries
from report2impression.runs import durable, tracking

COLUMNS = (
    *("fault", "tried", "survived", "median (ms)", "99th percentile (ms)", "in all (s)"),
    *("goal", "met"),
)
ADAPTER_BYTES = 294_912 * 4  # T5-small, r=8 on q and v


@dataclass(frozen=True)
class FaultsConfig:
    """How many faults of the kinds that could go on for ever."""

    kills: int = 50
    """Random kills of whole runs, half of them at file operations."""
    damages: int = 500
    """Random damages of a checkpoint."""
    signals: int = 9
    """Signals to one of two processes."""
    losses: int = 6
    """Of two processes one killed; half as often stopped, or meeting a bug."""
    steps: int = 4000
    """Steps of the long run, in whole epochs of 500; it saves every tenth."""
    only: str = ""
    """Rows whose name holds this; empty: all."""
    seed: int = 0
    """Seed of moments and damages."""


@dataclass(frozen=True)
class Row:
    """A kind of fault and its goal: all survived, and the 99th percentile within so many
    seconds."""

    name: str
    trials: Callable[[Place], Trials]
    seconds: float | None = None

    @property
    def goal(self) -> str:
        return "all" + (f", <= {self.seconds:g} s" if self.seconds else "")

    def told(self, place: Place) -> tuple[Any, ...]:
        begun = time.monotonic()
        trials = self.trials(place)
        row = trials.row(self.name, time.monotonic() - begun)
        in_time = self.seconds is None or row[4] <= 1000 * self.seconds
        met = trials.tried > 0 and trials.survived == trials.tried and in_time
        return *row, self.goal, "yes" if met else "NO"


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
    files.make_folder(parent)
    draw = random.Random(step)
    durable.commit(parent, step, {n: draw.randbytes(3000) for n in "abc"}, {"n": step})
    durable.prune(parent, keep=2)


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


def disk_fails(place: Place, *, for_good: bool = False) -> Trials:
    """Every error at every file operation of a save: StorageError or no harm, then a good save."""
    trials, parent = Trials(), place.folder / f"errors-{for_good}"
    _save(parent, 1)
    _save(parent, 2)
    calls, step = disk_faults.operations(partial(_save, parent, 3)), 3
    for kind in ERRNOS:
        for at in range(len(calls)):
            try:
                with faulty(Fault(at, kind, for_good)):
                    _save(parent, step + 1)
            except StorageError:
                found = durable.newest(parent)[0]
                trials.add(bool(found and found.facts["n"] in (step, step + 1)))
            else:
                trials.add(durable.newest(parent)[0] is not None)
            step += 2
            _save(parent, step)
    return trials


def saved(place: Place) -> Trials:
    """What a save of T5-small's adapter (r=8 on q and v, 3.5 MB) costs."""
    trials, parent = Trials(), place.folder / "cost"
    files.make_folder(parent)
    parts = {"weights": os.urandom(ADAPTER_BYTES), "optimizer": os.urandom(2 * ADAPTER_BYTES)}
    for step in range(100):
        begun = time.monotonic()
        durable.commit(parent, step, parts, {})
        durable.prune(parent, keep=2)
        trials.add(True, time.monotonic() - begun)
    return trials


def rows(config: FaultsConfig) -> list[Row]:
    resumed, lost, n = run_faults.resumed_at_every_step, run_faults.lost, config.losses
    quarters: dict[str, Any] = {"micro_batch_size": 2}
    return [
        Row("resumed after every step", partial(resumed, n_ranks=1)),
        Row("the same, bf16", partial(resumed, n_ranks=1, precision="bf16")),
        Row("the same, 2 processes", partial(resumed, n_ranks=2, **HALVES)),
        Row("the same, 2 processes, bf16", partial(resumed, n_ranks=2, **HALVES, precision="bf16")),
        Row("the same, 4 processes", partial(resumed, n_ranks=4, **quarters)),
        Row("other number of processes, deterministic", run_faults.moved_to_other_numbers),
        Row("killed at every file operation of a save", killed_in_a_save),
        Row("killed at random", partial(run_faults.killed_at_random, n=config.kills)),
        Row("power lost during a save", power_lost),
        Row("damaged checkpoint", partial(damaged, n=config.damages)),
        Row("disk error at every operation of a save", disk_fails),
        Row("the same, and at all after it", partial(disk_fails, for_good=True)),
        Row("disk full for good, in a run", partial(run_faults.disk_full_from_there_on, n=24)),
        Row("run folder vanishes at every step", run_faults.folder_vanishes),
        Row("two starts in one folder at once", partial(run_faults.begun_twice, n=10)),
        Row("signal to 1 of 2 processes", partial(run_faults.signalled, n=config.signals), 5),
        Row("1 of 2 processes killed", partial(lost, n=n, how="killed", limit=60), 5),
        Row("1 of 2 processes raises", partial(lost, n=n // 2, how="raises", limit=60), 5),
        Row("1 of 2 stopped, time-out 2 s", partial(lost, n=n // 2, how="stopped", limit=2), 7),
        Row("inf or NaN in 1 of 2 processes' gradient", run_faults.spoiled_gradients),
        Row("K such steps in a row", run_faults.given_up),
        Row("out of memory at every step", run_faults.out_of_memory),
        Row("(no fault) a save, 3.5 MB", saved, 0.25),
        Row(f"(no fault) {config.steps:,} steps, looked at", partial(soak, n_steps=config.steps)),
    ]


def main() -> None:
    quieten_libraries()
    config = parse(FaultsConfig, description=(__doc__ or "").partition("\n")[0])
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), config.seed)
        for row in rows(config):
            if config.only in row.name:
                found.append(row.told(place))
                print(*found[-1], sep="  ", flush=True)
    tracking.print_table("Faults tried and survived", COLUMNS, found, digits=1)
    print_json({row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in found})
    if any(row[-1] == "NO" for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
