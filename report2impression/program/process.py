"""This process and one beside it: libraries kept quiet, memory kept or not, work done aside.

`keep_freed_memory` is for glibc's allocator. By default it gives every large block back to the
system, and the next step pays for fresh pages: on two CPU cores that was more than half of the
fast engine's time.

    aside = Aside(prepare)              # it prepares itself while this process goes on
    later = aside.ask(function, *args)  # and works while this process goes on, in the order asked
    result = later()

It is a fork: begin before this process has threads or a CUDA context. Arguments and results go
through a pipe and never onto the disk. It is only ever a help: whatever happens to it, the function
is called here instead.
"""

import atexit
import ctypes
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

# No bars and notes of theirs between ours; whoever wants them sets these before.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten_libraries() -> None:
    """Of a program, before it imports them; those that are there already are told so."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    hub, datasets, transformers = map(
        sys.modules.get, ("huggingface_hub", "datasets", "transformers")
    )
    if hub:
        hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    if datasets:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
        datasets.disable_progress_bars()
    if transformers:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


def load_quickly(*, bitsandbytes: bool = False) -> None:
    """Of a program, before its imports: nothing is searched for garbage until `loaded`. Of one that
    quantises nothing, PEFT would load bitsandbytes where it is installed, and that torch's
    compiler, a second; so it finds that it is not."""
    gc.disable()
    if not bitsandbytes:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def loaded() -> None:
    """Of a program that has what it needs: garbage is collected as ever, but for what was loaded,
    half a million objects of libraries."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def leave_quickly() -> None:
    """Of a program: at its end nothing is searched for garbage, which takes two seconds."""
    atexit.register(gc.freeze)


# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


SETTINGS = {
    M_MMAP_MAX: 0,  # large blocks from the heap, too
    M_TRIM_THRESHOLD: -1,  # the heap never shrinks
    M_TOP_PAD: 2**29,  # bytes by which it grows
}


def keep_freed_memory() -> bool:
    """Apply the settings to this process; false where the C library has no mallopt."""
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    taken = [mallopt(parameter, value) for parameter, value in SETTINGS.items()]
    return all(taken)


def give_back_memory() -> None:
    """What is free now goes back to the system, pieces between what is used, too."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


# Products that oneDNN and torch's layer above it keep prepared, of 20 to 100 KiB each.
FEW_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "16"}


def keep_few_products() -> None:
    """For a program that decodes without end, before it loads torch: every number of reports that
    are decoded at once is a product of its own, and with thousands of them kept memory grows for
    as long."""
    os.environ.update(FEW_PRODUCTS)


T = TypeVar("T")
U = TypeVar("U")


def in_order(
    pool: Executor, call: Callable[[T], U], items: Iterable[T], *, ahead: int
) -> Iterator[U]:
    """call(item) of each, in order; so many items are taken in advance, so that memory does not
    grow with their number."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Aside:
    """Takes requests, one after the other."""

    def __init__(self, prepare: Callable[[], object]) -> None:
        context = get_context("fork")
        self._pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(prepare, there, self._pipe), daemon=True)
        self.process.start()
        there.close()
        self._requests: SimpleQueue[tuple[Any, Future[tuple[bool, Any]]]] = SimpleQueue()
        self._thread = Thread(target=self._talk, daemon=True)

    def ask(self, function: Callable[..., T], *args: object) -> Callable[[], T]:
        """A call that waits for the result."""
        if not self._thread.is_alive():
            self._thread.start()
        answer: Future[tuple[bool, Any]] = Future()
        self._requests.put(((function, args), answer))

        @cache
        def result() -> T:
            is_done, found = answer.result()
            return found if is_done else function(*args)

        return result

    def _talk(self) -> None:
        """In a thread: a large request waits until that process reads it, and this one goes on."""
        while True:
            request, answer = self._requests.get()
            told = False, None
            with suppress(Exception):
                self._pipe.send(request)
                told = self._pipe.recv()
            answer.set_result(told)


def _work(prepare: Callable[[], object], pipe: Connection, other_end: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is told so
    other_end.close()  # so that the end of that process is the end of the pipe
    with suppress(Exception):
        prepare()
    loaded()
    with suppress(EOFError, OSError):
        while True:
            function, args = pipe.recv()
            try:
                answer = True, function(*args)
            except Exception:
                answer = False, None
            pipe.send(answer)
