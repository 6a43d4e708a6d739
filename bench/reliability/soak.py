"""A long run that saves often, in a forked process, and what it takes the longer it goes on."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import train_loop
from bench.reliability import fault_runs
from bench.reliability.run_faults import Place, Trials
from report2impression.corpora.synthetic import write_splits

N_REPORTS, STEP = 1_000, 2  # of the training split; of a step
LOOKS = 20
WARM = 4  # looks before it runs as it will: caches fill, the allocator grows
GROWTH = 2**20  # bytes of resident memory per 1,000 steps


def soak(place: Place, n_steps: int) -> Trials:
    """A look every twentieth of the way. Well: no more open files, threads, temporary files and
    files in the run folder than at the first looks, and memory that does not grow by 1 MiB in 1,000
    steps."""
    trials, data, run = Trials(), place.folder / "many", place.fresh()
    write_splits(data, N_REPORTS, 12, 13, seed=2)
    notes, temporary = place.folder / "looks.jsonl", place.folder / "temporary"
    temporary.mkdir()
    how: dict[str, Any] = {
        **{"data.path": data, "micro_batch_size": STEP, "grad_accum_steps": 1, "log_every": 100},
        **{"epochs": -(-n_steps * STEP // N_REPORTS), "checkpoint_steps": 10},
        "keep_checkpoints": 2,
    }
    look = partial(_look_every, max(1, n_steps // LOOKS), run, notes, temporary)
    finished = fault_runs.run(place.argv(run, **how), before=look) == [0]
    looks = [json.loads(line) for line in notes.read_text().splitlines()] if finished else []
    if len(looks) <= WARM + 1:
        trials.add(False)
        return trials
    first = looks[WARM]
    for now in looks[WARM + 1 :]:
        thousands = (now["step"] - first["step"]) / 1000
        same = all(now[name] <= first[name] for name in ("files", "threads", "temporary", "kept"))
        trials.add(same and now["memory"] - first["memory"] < GROWTH * thousands)
    return trials


def _look_every(n: int, run: Path, notes: Path, temporary: Path) -> None:
    """In a forked rank."""
    tempfile.tempdir = str(temporary)
    mix_seed, page = train_loop.mix_seed, os.sysconf("SC_PAGE_SIZE")
    looked = [-1]

    def look(seed: int, step: int, shard: int) -> int:
        if step % n == 0 and step != looked[-1]:
            looked.append(step)
            told = {
                "step": step,
                "memory": page * int(Path("/proc/self/statm").read_text().split()[1]),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "temporary": len(os.listdir(temporary)),
                "kept": sum(1 for _ in run.rglob("*")),
            }
            with notes.open("a") as file:
                file.write(json.dumps(told) + "\n")
        return mix_seed(seed, step, shard)

    train_loop.mix_seed = look
