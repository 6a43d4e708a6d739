"""Whole training runs in forked processes, on one or several gloo ranks: 0.3 s each instead of the
10 s that a fresh Python needs for its imports. `bits` is what must be equal afterwards."""

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import train_loop
from bench.reliability.disk_faults import ended, start
from report2impression.runs import durable

Action = Callable[[], object]


def launch(
    argv: Sequence[str],
    n_ranks: int = 1,
    *,
    before: Action = lambda: None,
    quiet: bool = True,
) -> list[int]:
    """The processes of a run that has begun; `before()` is called in each of them first."""
    with own_port() as port:  # the forks hold it, too
        ranks = [partial(_rank, argv, rank, n_ranks, port, before) for rank in range(n_ranks)]
        return [start(rank, quiet=quiet) for rank in ranks]


@contextmanager
def own_port() -> Iterator[int]:
    """A port that nobody else is given before, or while, the ranks of a run meet there: it stays
    bound, in a way that lets a socket that asks for this very port listen."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield holder.getsockname()[1]


def run(argv: Sequence[str], n_ranks: int = 1, **how: Any) -> list[int]:
    """Exit codes of the ranks (as `launch`), minus the signal for those that one ended."""
    return [ended(child) for child in launch(argv, n_ranks, **how)]


def run_here(argv: Sequence[str]) -> None:
    """In this process."""
    train_loop.main(list(argv))


def forget_processes() -> None:
    """Accelerate keeps how many there are for the life of a process: a fork is a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


def _rank(argv: Sequence[str], rank: int, n_ranks: int, port: int, before: Action) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate gives each of several ranks all cores
    forget_processes()
    if n_ranks > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in {**ranks, **place}.items()}
    before()
    train_loop.main(list(argv))


def steps_kept(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in durable.stored(folder / "checkpoints")]


def bits(folder: Path) -> dict[str, Any]:
    """Everything a run leaves but times: the kept adapter, the last state, the log."""
    last = durable.read(durable.stored(folder / "checkpoints")[-1])
    state = json.loads(last.files["state.json"])
    state["tracker"].pop("log_bytes")  # the speeds in it are not always equally long
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [
        {name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines
    ]
    kept = [file.read_bytes() for file in folder.glob("[am]*/*.safetensors")]  # adapter or model
    weights = [last.files[name] for name in ("weights.safetensors", "optimizer.safetensors")]
    return {"kept": kept, "weights": weights, "state": state, "log": log}
