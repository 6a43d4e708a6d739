"""A second process for work beside this one: begun early, asked when there is something to do.

    aside = Aside(prepare)              # it prepares itself while this process goes on
    later = aside.ask(function, *args)  # and works while this process goes on
    result = later()

It is a fork: begin before this process has threads or a CUDA context. Arguments and results go
through a pipe and never onto the disk. It is only ever a help: whatever happens to it, the function
runs here instead, with its own errors. It ends with this process, however that ends: nobody else
holds the other end of its pipe.
"""

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """Takes one request at a time."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        context = get_context("fork")
        self._pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(prepare, there, self._pipe), daemon=True)
        self.process.start()
        there.close()
        self._busy = False

    def ask(self, function: Callable[..., T], *args: object) -> Callable[[], T]:
        """A call that waits for the result. RuntimeError before the last one was waited for."""
        if self._busy:
            raise RuntimeError("the request before is still under way")
        here = partial(function, *args)
        try:
            self._pipe.send((function, args))
        except OSError:
            return here
        self._busy = True

        @cache
        def result() -> T:
            try:
                is_done, found = self._pipe.recv()
            except (EOFError, OSError):
                is_done, found = False, None
            self._busy = False
            return found if is_done else here()

        return result


def _work(prepare: Callable[[], object], pipe: Connection, other_end: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is told so
    other_end.close()  # so that the end of that process is the end of the pipe
    with suppress(Exception):
        prepare()
    with suppress(EOFError, OSError):
        while True:
            function, args = pipe.recv()
            try:
                answer = True, function(*args)
            except Exception:
                answer = False, None
            pipe.send(answer)
