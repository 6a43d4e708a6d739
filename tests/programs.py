"""Entry points in forks of the test process, which has the libraries already: half a second each,
where a fresh Python needs 10 s for its imports.

`run_program` gives a program its own home and temporary folder, umask 0 and no network: each
look-up of a name and each connection that Python tries is noted and fails. `forked` is for command
lines, and `ForkServer` for those that need another environment or no code of ours beside them.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.reliability import fault_runs
from bench.reliability.disk_faults import ended, own_progress_bars
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]
NETWORK = "network.log"
CALLS = {
    *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr"),
}


def run_program(action: Callable[[], object], place: Path, name: str) -> int:
    """The exit code as the interpreter gives it; output goes to place/told/NAME."""

    def program() -> None:
        _become_a_program(place, name)
        action()

    return in_a_fork(program)


def in_a_fork(action: Callable[[], object]) -> int:
    """Its exit code, as the interpreter would give it."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
    return ended(child)


def _become_a_program(place: Path, name: str) -> None:
    for folder in ("told", "home", "temp"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    told = os.open(place / "told" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _tell(told, told)
    os.umask(0)
    os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "temp")}
    tempfile.tempdir = None
    os.chdir(place)
    sys.addaudithook(lambda event, arguments: _no_network(place / NETWORK, event, arguments))
    fault_runs.forget_processes()
    own_progress_bars()


def _tell(out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))


def _no_network(log: Path, event: str, arguments: tuple[Any, ...]) -> None:
    if event in CALLS:
        with log.open("a") as file:
            file.write(f"{event} {arguments!r}\n")
        raise ConnectionError("no network here")


def connections(place: Path) -> list[str]:
    """What the programs tried."""
    return (place / NETWORK).read_text().splitlines() if (place / NETWORK).exists() else []


# --- command lines -------------------------------------------------------------------------------


def forked(*argv: object) -> subprocess.CompletedProcess[str]:
    """`python ARGV` in the repository root: a file or "-m" and a module, then flags."""
    words = list(map(str, argv))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:

        def program() -> None:
            _tell(out.fileno(), err.fileno())
            os.chdir(ROOT)
            fault_runs.forget_processes()
            own_progress_bars()
            subprocess.run = _as_fork  # type: ignore[assignment]
            _execute(words)

        code = in_a_fork(program)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())


def _as_fork(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """A program that starts Python again forks, too."""
    assert command[0] == sys.executable, command
    return forked(*command[1:])


def _execute(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)  # a test may have imported it: runpy would warn
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


# On stdin a command line in each line, as JSON; on stdout its exit code, outputs and the seconds
# that it slept.
SERVER = """
import json, os, runpy, sys, time, traceback
import accelerate, datasets, torch
from peft import PeftModel
from tempfile import TemporaryFile as Temporary
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration, T5Tokenizer
sleep = time.sleep
torch.set_num_threads(1)
sys.path[0] = os.getcwd()
for line in sys.stdin:
    argv = json.loads(line)
    with Temporary() as out, Temporary() as err, Temporary() as slept:
        pid = os.fork()
        if pid == 0:
            code = 0
            for number, file in enumerate((open(os.devnull), out, err)):
                os.dup2(file.fileno(), number)
            time.sleep = lambda s: (os.write(slept.fileno(), b'%f ' % s), sleep(s))
            try:
                if argv[0] == "-c":
                    sys.argv = ["-c", *argv[2:]]
                    exec(argv[1], {"__name__": "__main__"})
                else:
                    sys.argv = argv
                    runpy.run_path(argv[0], run_name="__main__")
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = []
        for file in (out, err, slept):
            file.seek(0)
            told.append(file.read().decode())
    told[2] = sum(map(float, told[2].split()))
    print(json.dumps([code, *told]), flush=True)
"""


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str
    slept: float = 0.0

    def error(self, code: int) -> str:
        """The one line of stderr of a run that ended with this exit code."""
        assert self.code == code, self.stderr
        lines = self.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr
        return lines[0]


class ForkServer:
    """A fresh Python that has torch, transformers and PEFT and no code of ours, until the `with`
    block ends."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()  # the end of its input may be held open by a fork of this process
        self._process.communicate(timeout=HANG_S)

    def run(self, *argv: object) -> Result:
        """A file or "-c" and code, then its arguments, in a fork."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([str(word) for word in argv]), file=self._process.stdin, flush=True)
        return Result(*json.loads(self._process.stdout.readline()))
