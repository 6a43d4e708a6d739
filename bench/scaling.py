"""How do time and memory grow: with batch, lengths, corpus size, and from one process to two?

    python -m bench.scaling --data.path DIR --model.path BASE

A step on made-up lengths (random token ids), the plan and the token cache on made-up corpora up to
`largest_corpus` reports, and the given data on one and two CPU processes. The last line is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import BenchConfig, print_json, start
from bench.timing import now, seconds
from collation import Example
from errors import ConfigError
from plan import plan_epoch
from recipe import TrainConfig
from tracking import print_table
from train_loop import build_engine, build_model

BATCHES, SOURCES, TARGETS = (4, 8, 16, 32), (32, 64, 128, 256, 512), (16, 32, 64, 128, 256)
TYPICAL = 16, 64, 16  # batch, source tokens, target tokens


@dataclass(frozen=True)
class ScalingConfig(BenchConfig):
    """Growth of time per sample."""

    largest_corpus: int = 10_000_000
    """Reports of the largest made-up corpus."""
    processes: bool = True
    """Also train on one and on two CPU processes."""


def step_ms(config: ScalingConfig) -> dict[str, dict[int, float]]:
    """Milliseconds per sample of a forward and backward, one size at a time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = TrainConfig(model=config.model, lora=config.lora)
    model = build_model(recipe, device)
    engine, collate, _ = build_engine(recipe, model, device)
    draw = np.random.default_rng(config.seed)

    def ids(n: int) -> np.ndarray:
        return draw.integers(3, model.config.vocab_size, n).astype(np.int32)

    def measure(n: int, source: int, target: int) -> float:
        examples: list[Example] = [(ids(source), ids(target)) for _ in range(n)]
        batch = {name: t.to(device) for name, t in collate(examples).items()}
        found = seconds(lambda: engine(**batch).backward(), n=config.rounds, warm_up=1)
        return statistics.median(found) / n * 1e3

    n, source, target = TYPICAL
    return {
        "batch": {b: measure(b, source, target) for b in BATCHES},
        "source tokens": {s: measure(n, s, target) for s in SOURCES},
        "target tokens": {t: measure(n, source, t) for t in TARGETS},
    }


def corpus(n: int, config: ScalingConfig) -> dict[str, float]:
    """The plan of an epoch of n made-up reports, and the size of their tokens on disk."""
    draw = np.random.default_rng(config.seed)
    source = np.clip(draw.lognormal(4.7, 0.5, n), 1, 512).astype(np.int64)
    target = np.clip(draw.lognormal(3.4, 0.7, n), 1, 256).astype(np.int64)
    tracemalloc.start()
    begin = now()
    steps = plan_epoch(source, target, global_batch_size=config.micro_batch_size)
    taken, (_, peak) = now() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(step.indices) for step in steps) == n
    tokens = int(source.sum() + target.sum())
    return {
        "plan_s": taken,
        "plan_bytes_per_report": peak / n,
        "cache_bytes_per_report": 4 * tokens / n + 16,  # int32 tokens, two int64 offsets
    }


def processes(config: ScalingConfig) -> dict[int, float]:
    """Samples per second of train_loop.py on the given data, the same threads in all."""
    found = {}
    for n in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            flags = {
                "output_dir": f"{folder}/run",
                "model.path": config.model.path,
                "data.path": config.data.path,
                "max_steps": config.steps,
                "micro_batch_size": config.micro_batch_size // n,
                "log_every": 1,
            }
            name = "cpu" if n == 1 else "cpu_2_processes"
            command = [
                *(sys.executable, "-m", "accelerate.commands.launch"),
                *("--config_file", f"recipes/accelerate/{name}.yaml", "train_loop.py", "--cpu"),
                *(f"--{key}={value}" for key, value in flags.items()),
            ]
            threads = max(1, torch.get_num_threads() // n)
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise ConfigError(f"{n} processes: {done.stderr.strip().splitlines()[-1]}")
            lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
            speeds = [s["tokens_per_s"] for s in map(json.loads, lines) if s["kind"] == "step"]
            found[n] = statistics.median(speeds[2:])
    return found


def main() -> None:
    config = start(ScalingConfig, (__doc__ or "").partition("\n")[0])
    growth = step_ms(config)
    for name, found in growth.items():
        rows = [(str(size), f"{ms:.2f}") for size, ms in found.items()]
        print_table(f"Step, by {name}", (name, "ms per sample"), rows)
    sizes = [s for s in (10_000, 100_000, 1_000_000, 10_000_000) if s <= config.largest_corpus]
    corpora = {n: corpus(n, config) for n in sizes}
    table = [
        (
            f"{n:,}",
            f"{f['plan_s']:.2f}",
            f"{f['plan_bytes_per_report']:.0f}",
            f"{f['cache_bytes_per_report']:.0f}",
        )
        for n, f in corpora.items()
    ]
    columns = ("reports", "plan s", "plan bytes per report", "cached bytes per report")
    print_table("Corpus (made-up lengths, mean 125 + 38 tokens)", columns, table)
    figures: dict[str, Any] = {"step_ms_per_sample": growth, "corpus": corpora}
    if config.processes:
        speeds = processes(config)
        rows = [(str(n), f"{speed:,.0f}") for n, speed in speeds.items()]
        print_table("Processes, the same threads in all", ("processes", "tokens/s"), rows)
        figures["tokens_per_s_by_processes"] = speeds
    print_json(figures)


if __name__ == "__main__":
    main()
