"""Time, with the device's queue emptied where there is one."""

import time
from collections.abc import Callable

import torch


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
