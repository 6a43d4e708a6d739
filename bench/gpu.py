"""All that a GPU can show, in one command: the tests marked `cuda`, speed, memory, a profile.

    make gpu
    python -m bench.gpu --data.path DIR --model.path BASE

Each part is the program of its name in a process of its own. The last lines are one Markdown table
for docs/benchmarks.md. Without a GPU it says so, and the table has the CPU's half, of fewer steps.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.common import BenchConfig, start
from report2impression.program.errors import ConfigError, exits_cleanly

Figures = Mapping[str, Any]
Row = tuple[str, str, str]
MEMORY_ROWS = "ours,ours_fp32,ours_hf_fp32,ours_hf_checkpointing"
GENERATION = ["--decoding.min_new_tokens=48", "--decoding.max_new_tokens=48"]
# Of each part: flags on a GPU, and on a CPU, where minutes count.
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "train_speed": (
        ["--steps=24"],
        ["--steps=2", "--rounds=1", '--sides=["trainer_fp32_random"]'],
    ),
    "generate_speed": (
        [*GENERATION, "--decoding.precision=fp16", '--sides=["hf_sorted_best"]'],
        ["--n=32", "--rounds=1", '--sides=["hf_b16"]'],
    ),
    "memory": ([f"--rows={MEMORY_ROWS}"], ["--steps=2", "--rows=ours,ours_hf_fp32"]),
    "profile": (["--steps=24"], ["--steps=2"]),
}


@dataclass(frozen=True)
class GpuConfig(BenchConfig):
    """All parts, on one base and one data set."""

    parts: tuple[str, ...] = tuple(PARTS)
    """Parts to run; the tests marked `cuda` come first wherever there is a GPU."""


def run(*argv: str) -> str:
    """The last line that a program prints. ConfigError if it fails."""
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode and argv[0] != "pytest":
        why = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise ConfigError(f"{argv[0]} failed ({''.join(why)}): run it by itself")
    return lines[-1] if lines else "nothing printed"


def rows_of(part: str, figures: Figures) -> Iterator[Row]:
    """(part, side, figure) of what a bench gave as its JSON."""
    if part == "train_speed":
        ours = figures["ours"]
        yield part, f"ours, {ours['precision']}", f"{ours['samples_per_s']:.1f} samples/s"
        for name, speed in figures["peers"].items():
            yield part, name, f"{speed:.1f} samples/s (ours x {figures['ratio'][name]:.2f})"
    elif part == "generate_speed":
        yield part, "ours", f"{figures['ours']:.1f} reports/s"
        for name, speed in figures["peers"].items():
            same = figures["identical"]["ours"]
            told = f"ours x {figures['ratio'][name]:.2f}, {same:.1%} the same tokens"
            yield part, name, f"{speed:.1f} reports/s ({told})"
    elif part == "memory":
        for name, found in figures.items():
            yield part, name, f"{found['peak']:,.0f} MiB at the peak"
    else:
        for name, share in figures["parts"].items():
            yield part, name, f"{share:.1%} of a step"


def markdown(where: str, rows: list[Row]) -> str:
    head = [f"| {where} | side | figure |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {part} | {side} | {told} |" for part, side, told in rows)])


@exits_cleanly
def main() -> None:
    config = start(GpuConfig, (__doc__ or "").partition("\n")[0])
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, no GPU"
    if not cuda:
        print("no GPU: the tests marked cuda are left out, and what follows is of the CPU")
    where = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows: list[Row] = []
    if cuda:
        rows.append(("tests", "marked cuda", run("pytest", "-q", "-m", "cuda", "tests")))
    same = [f"--data.path={config.data.path}", f"--model.path={config.model.path}"]
    same += [f"--data.cache_dir={config.data.cache_dir}", f"--threads={config.threads}"]
    same += [f"--micro_batch_size={config.micro_batch_size}"]
    for part in config.parts:
        if part not in PARTS:
            raise ConfigError(f"--parts: there is no {part}; there are {', '.join(PARTS)}")
        print(f"{part} ...", flush=True)
        line = run(f"bench.{part}", *same, *PARTS[part][0 if cuda else 1])
        rows += rows_of(part, json.loads(line))
    print(markdown(where, rows))


if __name__ == "__main__":
    main()
