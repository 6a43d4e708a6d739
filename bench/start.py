"""How long programs take: --help, a mistyped flag, --dry_run, the first training step, small jobs.

    python -m bench.start
    python -m bench.start --checkout OLDER --audit '["-m","corpus.audit"]'     an older checkout

Wall time of whole fresh processes, the sides in turn, median of the rounds after one that fills the
caches. A training step is there when its line in metrics.jsonl is; tokens come from the cache. The
last line is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.machine import cpu_name
from report2impression.corpora.synthetic import write_splits
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table

ROOT = Path(__file__).resolve().parents[1]
N_TRAIN, N_OTHER = 400, 40  # reports


@dataclass(frozen=True)
class StartConfig:
    """Start-up times."""

    rounds: int = 5
    """Rounds, each of every side once; the median counts."""
    checkout: str = str(ROOT)
    """The checkout whose programs are started."""
    audit: tuple[str, ...] = ("-m", "report2impression", "audit")
    """How that checkout calls its audit."""
    model: str = "assets/tiny_base"
    """Base of the training step, from the checkout's folder."""


def ended(config: StartConfig, code: int, *argv: str) -> float:
    """Seconds until the program has ended. ConfigError if not with this exit code."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *argv], cwd=config.checkout, capture_output=True)
    if done.returncode != code:
        raise ConfigError(f"{' '.join(argv[:2])} of {config.checkout} ended with {done.returncode}")
    return time.perf_counter() - begun


def one_step(config: StartConfig, folder: Path) -> list[str]:
    """A training of one optimizer step."""
    flags: dict[str, object] = {
        "output_dir": folder / "run",
        "data.path": folder / "data",
        "data.cache_dir": folder / "cache",
    }
    flags |= {"model.path": config.model, "max_steps": 1, "log_every": 1}
    return ["train_loop.py", "--cpu", "--fresh", *(f"--{k}={v}" for k, v in flags.items())]


def first_step(config: StartConfig, folder: Path) -> float:
    """Seconds until the first optimizer step is told. ConfigError if none ever is."""
    log = folder / "run" / "metrics.jsonl"
    log.unlink(missing_ok=True)
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *one_step(config, folder)],
        cwd=config.checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                raise ConfigError(f"train_loop.py of {config.checkout} ended without a step")
            time.sleep(0.01)
        return time.perf_counter() - begun


def sides(config: StartConfig, folder: Path) -> dict[str, Callable[[], float]]:
    """What is measured, by name."""
    call, wrong = (partial(partial, ended, config, code) for code in (0, 2))
    data = f"--data.path={folder / 'data'}"
    adapter = f"--adapter={folder / 'run' / 'adapter'}"
    return {
        "train_loop --help": call("train_loop.py", "--help"),
        "train_loop, mistyped flag": wrong("train_loop.py", "--ouput_dir=x"),
        "train_loop --dry_run": call("train_loop.py", "--dry_run", data),
        "train_loop, first step": partial(first_step, config, folder),
        "train_loop, whole run of one step": call(*one_step(config, folder)),
        "eval --help": call("eval.py", "--help"),
        "eval, mistyped flag": wrong("eval.py", "--adpter=x"),
        "eval --dry_run": call("eval.py", adapter, "--dry_run"),
        "eval, whole run of 8 reports": call("eval.py", adapter, "--n=8"),
        "extract, one report": call("extract.py", adapter, f"--input={folder / 'one.txt'}"),
        "audit --help": call(*config.audit, "--help"),
        "audit, mistyped flag": wrong(*config.audit, "--data.pth=x"),
    }


@exits_cleanly
def main() -> None:
    config = parse(StartConfig, description=(__doc__ or "").partition("\n")[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_splits(folder / "data", N_TRAIN, N_OTHER, N_OTHER, seed=0)
        (folder / "one.txt").write_text("The lungs are clear. No effusion or pneumothorax.")
        measured = sides(config, folder)
        found: dict[str, list[float]] = {side: [] for side in measured}
        for number in range(config.rounds + 1):
            for side, measure in measured.items():
                seconds = measure()
                if number:  # the first round fills the caches
                    found[side].append(seconds)
            print(f"round {number} of {config.rounds}", file=sys.stderr, flush=True)
    rows = [(s, statistics.median(x), min(x), max(x)) for s, x in found.items()]
    print_table("Start-up, s", ("program", "median", "min", "max"), rows, digits=2)
    print(json.dumps({"cpu": cpu_name(), "cores": os.cpu_count(), "seconds": found}))


if __name__ == "__main__":
    main()
