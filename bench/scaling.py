"""How do time and memory grow: with batch, lengths, corpus size, and from one process to two?

    python -m bench.scaling --data.path DIR --model.path BASE

A step on made-up lengths (random token ids); cache, plan and batches of made-up corpora up to
`largest_corpus` reports (7 GiB on disk for 10 million, removed afterwards); tokenising; and the
given data on one and two CPU processes. The last line is JSON.
"""

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.children import last_line
from bench.common import BenchConfig, print_json, start
from bench.corpora import large as corpora_of
from bench.corpora.large import GIB, Figures
from bench.timing import seconds
from model import build_engine, build_model
from report2impression.batching.collation import Example
from report2impression.program.terminal import print_table
from report2impression.runs.recipe import TrainConfig

BATCHES, SOURCES, TARGETS = (4, 8, 16, 32), (32, 64, 128, 256, 512), (16, 32, 64, 128, 256)
MEMORY = {
    "write_peak_mib": "writing",
    "open_peak_mib": "opening",
    "plan_peak_mib": "planning",
    "read_own_mib": "reading, maps aside",
}
TYPICAL = 16, 64, 16  # batch, source tokens, target tokens


@dataclass(frozen=True)
class ScalingConfig(BenchConfig):
    """Growth of time per sample."""

    largest_corpus: int = 10_000_000
    """Reports of the largest made-up corpus; 0 = none."""
    tokenised_reports: int = 200_000
    """Reports to tokenise; also a quarter of them, to show that memory does not grow; 0 = none."""
    step: bool = True
    """Also measure steps of growing batches and lengths."""
    processes: bool = True
    """Also train on one and on two CPU processes."""
    folder: str = ""
    """Where corpora are made and deleted; default: the system's temporary folder."""
    only: str = ""
    """Measure only `corpus` or `tokenising`, of `reports`, in this process, and print its JSON."""
    reports: int = 0
    """Reports for `only`."""


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
        batch = collate(examples).to(device)
        found = seconds(lambda: engine(batch).backward(), n=config.rounds, warm_up=1)
        return statistics.median(found) / n * 1e3

    n, source, target = TYPICAL
    return {
        "batch": {b: measure(b, source, target) for b in BATCHES},
        "source tokens": {s: measure(n, s, target) for s in SOURCES},
        "target tokens": {t: measure(n, source, t) for t in TARGETS},
    }


def in_own_process(what: str, n: int) -> Figures:
    """Figures of `bench.corpora.large` for n reports, from a fresh process with the same flags."""
    command = [*sys.orig_argv, f"--only={what}", f"--reports={n}"]
    return json.loads(last_line(command, f"{what} of {n} reports"))


def corpora(config: ScalingConfig) -> dict[str, list[Figures]]:
    """Tables of growing corpora."""
    sizes = [s for s in (10_000, 100_000, 1_000_000, 10_000_000) if s <= config.largest_corpus]
    found = [in_own_process("corpus", n) for n in sizes]
    rows = [
        (
            f"{f['reports']:,}",
            f"{f['reports'] * f['cache_bytes_per_report'] / GIB:.2f}",
            *(f"{f[key]:.1f}" for key in ("write_s", "open_s", "plan_s")),
            f"{f['read_reports_per_s']:,.0f}",
            *(f"{f[key]:,.0f}" for key in MEMORY),
        )
        for f in found
    ]
    print_table(
        "Corpus (made-up ids, 125 + 38 tokens on average), steps of 32; peaks in MiB",
        (
            "reports",
            "GiB on disk",
            "write s",
            "open s",
            "plan s",
            "reports read/s",
            *MEMORY.values(),
        ),
        rows,
    )
    most = config.tokenised_reports
    tokenised = [in_own_process("tokenising", n) for n in (most // 4, most) if n]
    keys = ("survey_reports_per_s", "tokenise_reports_per_s", "tokens_per_s")
    rows = [
        (f"{f['reports']:,}", *(f"{f[key]:,.0f}" for key in (*keys, "loaded_mib", "peak_mib")))
        for f in tokenised
    ]
    print_table(
        "Tokenising (the given reports again and again, from a JSONL file)",
        ("reports", "surveyed/s", "tokenised/s", "tokens/s", "MiB before", "peak MiB"),
        rows,
    )
    return {"corpus": found, "tokenising": tokenised}


def only(config: ScalingConfig) -> Figures:
    """What this process was started for."""
    with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
        measure = {"corpus": corpora_of.corpus, "tokenising": corpora_of.tokenising}[config.only]
        return measure(config.reports, config, Path(folder))


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
            last_line(command, f"the run on {n} processes", env=environment)
            lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
            speeds = [s["tokens_per_s"] for s in map(json.loads, lines) if s["kind"] == "step"]
            found[n] = statistics.median(speeds[2:])
    return found


def main() -> None:
    config = start(ScalingConfig, (__doc__ or "").partition("\n")[0])
    if config.only:
        print_json(only(config))
        return
    growth = step_ms(config) if config.step else {}
    for name, found in growth.items():
        rows = [(str(size), f"{ms:.2f}") for size, ms in found.items()]
        print_table(f"Step, by {name}", (name, "ms per sample"), rows)
    figures: dict[str, Any] = {"step_ms_per_sample": growth, **corpora(config)}
    if config.processes:
        speeds = processes(config)
        rows = [(str(n), f"{speed:,.0f}") for n, speed in speeds.items()]
        print_table("Processes, the same threads in all", ("processes", "tokens/s"), rows)
        figures["tokens_per_s_by_processes"] = speeds
    print_json(figures)


if __name__ == "__main__":
    main()
