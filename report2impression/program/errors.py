"""What can go wrong through no fault of the code: one exception per exit code, one line on stderr.

Every message says what is wrong, where, and what to do next, and never holds report text. A
launcher (`accelerate launch`, torchrun) turns each of these codes into its own 1; plain `python`
passes them on.
"""

import functools
import math
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from report2impression.program.privacy import for_terminal, private_process
from report2impression.program.process import leave_quickly, quieten_libraries

P = ParamSpec("P")
T = TypeVar("T")


class UserError(Exception):
    """Base of all errors that are told to the user in one line, without a traceback."""

    exit_code = 1
    label = "error"


class ConfigError(UserError):
    """A call, flag, recipe, path or model that cannot be used."""

    exit_code = 2


class DataError(UserError):
    """Data that cannot be used: missing, empty, broken or unreachable."""

    exit_code = 3


class CheckpointError(UserError):
    """A run folder that has checkpoints, none of them whole."""

    exit_code = 4


class ResumeError(UserError):
    """A run that cannot go on: data, tokenizer, base, settings or processes are not the same."""

    exit_code = 5


class NumericsError(UserError):
    """Training stopped because losses or gradients stayed non-finite."""

    exit_code = 6


class StorageError(UserError):
    """A disk that is full, read-only, broken or gone."""

    exit_code = 7


class PeerError(UserError):
    """Another process of the run has ended, or does not answer."""

    exit_code = 8


class PreemptedError(UserError):
    """Stopped by a signal; run the same command again to go on."""

    exit_code = 75
    label = "stopped"


def check_least(least: float, settings: object, *names: str) -> None:
    """Raises ConfigError if one of these fields is smaller, or not finite."""
    for name in names:
        if not least <= (value := getattr(settings, name)) < math.inf:
            raise ConfigError(f"{name} must be a number of at least {least}, not {value}")


def exits_cleanly(main: Callable[P, T]) -> Callable[P, T]:
    """Wrap an entry point: a UserError becomes one line on stderr and its exit code, anything else
    a few lines without its text (privacy.py). Whoever reads standard output may leave, as `head`
    does: the program ends without a word, as if SIGPIPE had ended it.

    The processes of one machine meet the same errors, so the first of each machine prints.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        quieten_libraries()
        leave_quickly()
        try:
            with private_process():
                try:
                    return main(*args, **kwargs)
                except UserError as error:
                    _tell(error)
                    sys.exit(error.exit_code)
                finally:
                    if sys.stdout is not None:
                        sys.stdout.flush()
        except BrokenPipeError:
            if not _reader_has_left():
                raise  # another pipe, or a socket
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what the interpreter still flushes
            sys.exit(128 + signal.SIGPIPE)

    return wrapped


def _tell(error: UserError) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"[rank {rank}] "
        message = for_terminal(str(error))  # whatever a path or an id holds
        print(f"{who}{error.label}: {message}", file=sys.stderr, flush=True)


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, 0)  # errors alone
    return any(event & select.POLLERR for _, event in poll.poll(0))
