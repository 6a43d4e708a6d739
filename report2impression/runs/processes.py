"""Ending a run from outside: signals, a peer that is gone.

A signal asks to stop at the next step, where all ranks save the same state and leave with exit
code 75. Where there is nothing to save (before the first step, during validation, whose state was
saved just before) it stops at once.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import DistError

from report2impression.program.errors import PeerError, PreemptedError, UserError
from report2impression.program.process import keep_freed_memory

P = ParamSpec("P")
T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Which signal asked to stop; `with listening():` sets the handlers."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._at_once = True

    @property
    def name(self) -> str:
        return self.asked.name if self.asked else "no signal"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handlers set (in the main thread only, where Python allows it), and put back at the
        end."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only asks."""
        yield from self._switched(at_once=False)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal stops by an exception, wherever the code is."""
        yield from self._switched(at_once=True)

    def at_once_in(self, call: Callable[P, T]) -> Callable[P, T]:
        """The same call, during which a signal stops at once."""

        @wraps(call)
        def interruptible(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.at_once():
                return call(*args, **kwargs)

        return interruptible

    def _switched(self, *, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            if self._at_once and self.asked:
                self._stop()
            yield
        finally:
            self._at_once = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:  # a second Ctrl-C means it
                raise KeyboardInterrupt
            return
        self.asked = signal.Signals(number)
        if self._at_once:
            self._stop()

    def _stop(self) -> None:
        raise PreemptedError(f"stopped by {self.name}: run the same command again to go on")


@contextmanager
def peer_errors(accelerator: Accelerator) -> Iterator[None]:
    """Inside, a lost or silent process of the run becomes a PeerError.

    One that is silent (stopped, hanging) would stay: its peers on this machine end it.
    """
    peers = _everybody(accelerator)
    try:
        yield
    except RuntimeError as error:
        if not peers or not _is_of_a_peer(error):
            raise
        silent = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        if silent:
            _end(peers)
        did = "does not answer" if silent else "has ended"
        raise PeerError(
            f"another process of the run {did}: see its message above, then run the same command "
            "again to go on from the last checkpoint"
        ) from None


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors, which name its source files or the connection."""
    signs = ("gloo", "Connection closed by peer", "Connection reset")
    return isinstance(error, DistError) or any(sign in str(error) for sign in signs)


def _everybody(accelerator: Accelerator) -> list[tuple[str, int, str]]:
    """(host, process, when it began) of all other ranks."""
    if accelerator.num_processes == 1:
        return []
    own = (socket.gethostname(), os.getpid(), _began(os.getpid()))
    return [other for other in gather_object([own]) if other != own]


def _began(process: int) -> str:
    """Start time of a process in clock ticks (Linux), so that a number used again is not mistaken
    for it; "" if there is none."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _end(peers: list[tuple[str, int, str]]) -> None:
    for host, process, began in peers:
        if host == socket.gethostname() and began and _began(process) == began:
            os.kill(process, signal.SIGKILL)


def on_rank_0(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """The result of an action that only rank 0 takes, on every rank; so is its UserError."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [action(), None]
        except UserError as error:
            outcome = [None, error]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, refusal = outcome
    if refusal:
        raise refusal
    return result


def start_processes(*, cpu: bool, peer_timeout: float, check: Callable[[int], None]) -> Accelerator:
    """This process among its peers; AMP, accumulation and schedule are the loop's own. `check` is
    told how many there are."""
    # "no" also keeps a launcher's own precision out.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # T5 has no buffers
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=peer_timeout))
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp, group])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    # cuDNN attention of torch 2.13 can give NaN gradients with a mask (pytorch#196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    check(accelerator.num_processes)
    return accelerator
