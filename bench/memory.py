"""How much memory does training take, and what is it made of?

    python -m bench.memory --data.path DIR --model.path BASE

Each row is a process of its own that loads the model and trains on an even sample of its batches
and on the one that needs most. Figures are of the resident set on a CPU, of the allocator on CUDA.
The last line is JSON.
"""

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import peers
from bench.common import BenchConfig, load_data, print_json, start
from bench.peers import PEERS
from bench.train_speed import OurSide, our_batches, ours
from report2impression.program.errors import ConfigError
from report2impression.program.terminal import print_table
from report2impression.weights.tokenizer import load_tokenizer

OURS = {
    "ours": OurSide(),
    "ours_fp32": OurSide(precision="fp32"),
    "ours_hf_fp32": OurSide(precision="fp32", engine="hf"),
    "ours_hf_checkpointing": OurSide(precision="fp32", engine="hf", gradient_checkpointing=True),
    "ours_adamw8bit": OurSide(optimizer="adamw8bit"),
    "ours_8bit_base": OurSide(base_quantization="8bit", engine="hf"),
    "ours_4bit_base": OurSide(base_quantization="4bit", engine="hf"),
}
MIB = 2**20


@dataclass(frozen=True)
class MemoryConfig(BenchConfig):
    """Peak memory per engine, precision, optimizer and quantization."""

    row: str = ""
    """Measure this row only, in this process, and print its JSON; empty = all rows."""
    rows: str = ",".join((*OURS, *PEERS))
    """Rows to measure, separated by commas."""


def used_mib() -> float:
    """Memory in use now."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / MIB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def peak_mib() -> float:
    """Most memory in use since `forget_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
    """Start a new peak (Linux resets the resident set's high-water mark on request)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure(config: MemoryConfig) -> dict[str, float]:
    """One row, in this process: MiB after the imports, after loading, and at the peaks."""
    libraries = used_mib()
    dataset = load_data(config)
    if config.row in OURS:
        plan = our_batches(dataset, config)
        run = ours(config, dataset, plan, OURS[config.row])
    else:
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        run = peers.peer(config.row, config, dataset, tokenizer)
    loading_peak, loaded = peak_mib(), used_mib()
    forget_peak()
    run(config.steps)
    training_peak = peak_mib()
    return {
        "libraries": libraries,
        "model": loaded - libraries,
        "step": training_peak - loaded,
        "peak": max(loading_peak, training_peak),
        "training_peak": training_peak,
    }


def in_own_process(row: str) -> dict[str, float]:
    """The row's figures, from a fresh process with the same flags."""
    command = [*sys.orig_argv, f"--row={row}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise ConfigError(f"row {row} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    config = start(MemoryConfig, (__doc__ or "").partition("\n")[0])
    if config.row:
        print_json(measure(config))
        return
    found = {row: in_own_process(row) for row in config.rows.split(",")}
    trainer = found.get(PEERS[0], {}).get("peak")
    rows = [
        (
            name,
            *(f"{figures[key]:,.0f}" for key in ("libraries", "model", "step", "peak")),
            f"{figures['peak'] / trainer:.2f}" if trainer else None,
        )
        for name, figures in found.items()
    ]
    kind = "allocated" if torch.cuda.is_available() else "resident"
    title = f"Peak {kind} memory in MiB, batches of {config.micro_batch_size}"
    columns = ("", "libraries", "+ model", "+ step", "peak", "of Trainer fp32")
    print_table(title, columns, rows)
    print_json(found)


if __name__ == "__main__":
    main()
