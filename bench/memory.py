"""How much memory does training take, and what is it made of?

    python -m bench.memory --data.path DIR --model.path BASE

Each row is a process of its own that loads the model and trains on an even sample of its batches.
Figures are of the resident set on a CPU, of the allocator on CUDA. `tensors` is the peak of what
all tensors take in a step; beside it stands what weights/memory.py estimates from the base's files
alone, for the batch that needs most. The last line is JSON.
"""

import gc
import json
import sys
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from bench import peers
from bench.children import last_line
from bench.common import BenchConfig, IntArray, evenly, load_data, print_json, start
from bench.corpora import large
from bench.peers import PEERS
from bench.train_speed import OurSide, our_batches, our_recipe, ours
from data import ExtractDataset
from report2impression.engine.precision import resolve_precision
from report2impression.program.terminal import print_table
from report2impression.runs.memory_plan import step_of
from report2impression.weights.memory import estimate, read_shapes
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
    return large.memory_mib("VmRSS")


def peak_mib() -> float:
    """Most memory in use since `forget_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    return large.memory_mib("VmHWM")


def forget_peak() -> None:
    """Start a new peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        large.forget_peak()


def tensors_mib(run: peers.Round, n_steps: int) -> float:
    """Most memory that all tensors take together in some steps: what torch asks its allocator
    for."""
    if torch.cuda.is_available():
        run(n_steps)
        return peak_mib()
    there = dict(map(_place, _tensors()))
    only_cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=only_cpu, profile_memory=True) as found:
        run(n_steps)
    events: Any = found.profiler.kineto_results.events()
    changes = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return (sum(there.values()) + max(accumulate(e.nbytes() for e in changes))) / MIB


def _tensors() -> list[torch.Tensor]:
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """(address, bytes) of what it lies in; oneDNN's own have no storage."""
    if tensor.layout != torch.strided:
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def estimated_mib(config: MemoryConfig, dataset: ExtractDataset, plan: list[IntArray]) -> float:
    """Of a row of ours, for the batch that needs most."""
    side = OURS[config.row]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = resolve_precision(side.precision, device) != "fp32"
    base = read_shapes(config.model)
    step = replace(step_of(our_recipe(config, side), half=half), cpu=device.type == "cpu")
    lengths = dataset.source_lengths, dataset.target_lengths
    chosen = evenly(plan, dataset, config.steps)
    found = [estimate(base, step, *(of[batch].tolist() for of in lengths)) for batch in chosen]
    return max(each.total for each in found) / MIB


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
    figures = {
        "libraries": libraries,
        "model": loaded - libraries,
        "step": training_peak - loaded,
        "peak": max(loading_peak, training_peak),
        "training_peak": training_peak,
        "tensors": tensors_mib(run, config.steps),
    }
    if config.row in OURS:
        figures["estimated"] = estimated_mib(config, dataset, plan)
    return figures


def in_own_process(row: str) -> dict[str, float]:
    """The row's figures, from a fresh process with the same flags."""
    return json.loads(last_line([*sys.orig_argv, f"--row={row}"], f"row {row}"))


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
            f"{figures['tensors']:,.0f}",
            f"{figures['estimated']:,.0f}" if "estimated" in figures else None,
        )
        for name, figures in found.items()
    ]
    kind = "allocated" if torch.cuda.is_available() else "resident"
    title = f"Peak {kind} memory in MiB, batches of {config.micro_batch_size}"
    columns = (
        "",
        "libraries",
        "+ model",
        "+ step",
        "peak",
        "of Trainer fp32",
        "tensors",
        "estimated",
    )
    print_table(title, columns, rows)
    print_json(found)


if __name__ == "__main__":
    main()
