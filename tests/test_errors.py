"""errors.py: one line on stderr, an exit code, no traceback."""

import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable

import pytest

from report2impression.program.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    PeerError,
    PreemptedError,
    ResumeError,
    StorageError,
    UserError,
    exits_cleanly,
)
from tests.programs import in_a_fork


def run(error: BaseException) -> int:
    """Exit code of an entry point that raises `error`."""

    @exits_cleanly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_message_cannot_drive_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(ConfigError("id \x1b]0;title\x07 and \u202ereversed"))
    assert capsys.readouterr().err == "error: id \\x1b]0;title\\x07 and \\u202ereversed\n"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        *((UserError, 1), (ConfigError, 2), (DataError, 3), (CheckpointError, 4)),
        *((ResumeError, 5), (NumericsError, 6), (StorageError, 7), (PeerError, 8)),
    ],
)
def test_exit_code_and_one_line(
    kind: type[UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kind("what is wrong: what to do")) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: what is wrong: what to do\n")


def test_a_stop_is_not_called_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PreemptedError("by SIGTERM")) == 75
    assert capsys.readouterr().err == "stopped: by SIGTERM\n"


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\r", "\u2028", "\x0b"])
def test_line_breaks_become_blanks(mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(ConfigError(f"no folder a{mark}b  c{mark}"))
    assert capsys.readouterr().err == "error: no folder a b  c\n"


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError, NumericsError])
@pytest.mark.parametrize(
    ("rank", "local_rank", "told"),
    [
        ("0", "0", "error: x\n"),
        ("1", "1", ""),  # the same error on the same machine: once is enough
        ("4", "0", "[rank 4] error: x\n"),  # another machine may lack what this one has
        ("5", "1", ""),
        ("2", None, "[rank 2] error: x\n"),
    ],
)
def test_an_error_is_told_once_a_machine(
    kind: type[UserError],
    rank: str,
    local_rank: str | None,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", rank)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert run(kind("x")) == kind.exit_code
    assert capsys.readouterr().err == told


def test_our_own_mistakes_pass_through() -> None:
    """To the interpreter, which tells them without their text: tests/test_privacy.py."""

    @exits_cleanly
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def to_a_closed_pipe(main: Callable[[], object]) -> tuple[int, str]:
    """(exit code, standard error) of a program whose output nobody reads."""
    with tempfile.TemporaryFile() as told:

        def program() -> None:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
            os.dup2(told.fileno(), 2)
            sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
            exits_cleanly(main)()

        code = in_a_fork(program)
        told.seek(0)
        return code, told.read().decode()


def lines(n: int, then: BaseException | None = None) -> Callable[[], None]:
    def main() -> None:
        for number in range(n):
            print(f"line {number}")
        if then is not None:
            raise then

    return main


@pytest.mark.parametrize(
    ("main", "told"),
    [
        (lines(1), ""),  # written at the end
        (lines(100_000), ""),  # and on the way
        (lines(1, SystemExit(0)), ""),  # --help
        (lines(1, DataError("no split")), "error: no split\n"),
    ],
)
def test_a_reader_who_leaves_ends_the_program_without_a_word(
    main: Callable[[], None], told: str
) -> None:
    assert to_a_closed_pipe(main) == (128 + signal.SIGPIPE, told)


def test_another_broken_pipe_is_a_mistake_of_ours() -> None:
    def main() -> None:
        read, write = os.pipe()
        os.close(read)
        os.write(write, b"x")

    with pytest.raises(BrokenPipeError):
        exits_cleanly(main)()


def test_success_passes_arguments_and_returns() -> None:
    seen: list[object] = []

    @exits_cleanly
    def main(argv: list[str], *, flag: bool) -> None:
        """Its help."""
        seen.extend([argv, flag])

    main(["--x"], flag=True)
    assert seen == [["--x"], True]
    assert (main.__name__, main.__doc__) == ("main", "Its help.")
