"""A second process for work beside this one: begun early, asked when there is something to do.

    aside = Aside(prepare)              # it prepares itself while this process goes on
    later = aside.ask(function, *args)  # and works while this process goes on
    result = later()

It is a fork: begin before this process has threads or a CUDA context. Arguments and results go
through a pipe and never onto the disk.
"""

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """The process ends with this one."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("fork"))
        self._pool.submit(_quietly, prepare)

    def ask(self, function: Callable[..., T], *args: object) -> Callable[[], T]:
        """A call that waits for the result. What the function raises is raised there; if the
        process was killed, the function runs in this one."""
        try:
            future = self._pool.submit(function, *args)
        except BrokenExecutor:
            return lambda: function(*args)

        def result() -> T:
            try:
                return future.result()
            except BrokenExecutor:
                return function(*args)

        return result


def _quietly(prepare: Callable[[], object]) -> None:
    """The result is not wanted: it stays there."""
    prepare()
