"""Entry points in forks of the test process, which has the libraries already: half a second each.

A program gets its own home and temporary folder, umask 0 and no network: each look-up of a name
and each connection that Python tries is noted and fails.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.reliability import fault_runs
from bench.reliability.disk_faults import ended, own_progress_bars

NETWORK = "network.log"
CALLS = {
    *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr"),
}


def run_program(action: Callable[[], object], place: Path, name: str) -> int:
    """The exit code as the interpreter gives it; output goes to place/told/NAME."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _become_a_program(place, name)
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return ended(child)


def _become_a_program(place: Path, name: str) -> None:
    for folder in ("told", "home", "temp"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    told = os.open(place / "told" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(told, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.umask(0)
    os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "temp")}
    tempfile.tempdir = None
    os.chdir(place)
    sys.addaudithook(lambda event, arguments: _no_network(place / NETWORK, event, arguments))
    fault_runs.forget_processes()
    own_progress_bars()


def _no_network(log: Path, event: str, arguments: tuple[Any, ...]) -> None:
    if event in CALLS:
        with log.open("a") as file:
            file.write(f"{event} {arguments!r}\n")
        raise ConnectionError("no network here")


def connections(place: Path) -> list[str]:
    """What the programs tried."""
    return (place / NETWORK).read_text().splitlines() if (place / NETWORK).exists() else []
