"""Time, with the device's queue emptied where there is one."""

import time
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm


def now() -> float:
    """Seconds, after everything queued on CUDA has run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], *, n: int, warm_up: int = 3) -> list[float]:
    """Duration of each of n calls."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(n):
        start = now()
        work()
        found.append(now() - start)
    return found


def in_turn(
    sides: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of every side in each round, as the sides give them: one after the other in every
    round, so that what the machine does besides meets all alike. A bar names what runs."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    order = [(number, name) for number in range(-warm_up, rounds) for name in sides]
    with tqdm(order, unit="run", leave=False) as bar:
        for number, name in bar:
            bar.set_description(f"{name}, {'warm-up' if number < 0 else f'round {number + 1}'}")
            seconds = sides[name]()
            if number >= 0:
                found[name].append(seconds)
    return found


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The same work, as a side of `in_turn`."""

    def run() -> float:
        begin = now()
        work()
        return now() - begin

    return run
