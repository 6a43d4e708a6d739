"""program/process.py, Aside: the same results, whether the second process lives, fails or dies."""

import os
import signal
from pathlib import Path

import pytest

from bench.reliability.disk_faults import ended, start
from report2impression.program.process import Aside
from tests.waiting import until

prepared: list[int] = []


def prepare() -> list[int]:
    prepared.append(os.getpid())
    return prepared


def unprepared() -> None:
    raise OSError("no such file")


def where(value: int) -> tuple[int, int, list[int]]:
    return value, os.getpid(), prepared


def refuse(_: int) -> None:
    raise LookupError("no such thing")


def test_it_works_in_a_process_of_its_own_that_has_prepared_itself() -> None:
    aside = Aside(prepare)
    for n in range(3):
        later = aside.ask(where, n)
        value, there, ready = later()
        assert value == n and there == aside.process.pid and ready == [there]
        assert later() == (value, there, ready)  # as often as it is asked for
    assert prepared == []  # not here


def test_requests_wait_for_one_another_and_nobody_for_them() -> None:
    aside = Aside(prepare)
    texts = ["no effusion " * 100] * 2000  # more than a pipe holds, in both directions
    later = [aside.ask(sorted, texts) for _ in range(3)] + [aside.ask(where, 1)]
    assert later[3]()[:2] == (1, aside.process.pid)
    assert [one() for one in later[:3]] == [texts] * 3


def test_what_cannot_be_sent_is_done_here() -> None:
    aside = Aside(prepare)
    first, last = aside.ask(lambda: 1), aside.ask(where, 2)
    assert first() == 1 and last()[:2] == (2, aside.process.pid)


def test_what_fails_there_is_done_here() -> None:
    """So that its errors have their own place."""
    aside = Aside(unprepared)
    later = aside.ask(refuse, 1)
    with pytest.raises(LookupError, match="no such thing") as caught:
        later()
    assert caught.traceback[-1].name == "refuse"
    assert aside.ask(where, 3)()[:2] == (3, aside.process.pid)


def test_where_it_was_killed_the_work_is_done_here() -> None:
    aside = Aside(prepare)
    aside.ask(where, 0)()
    os.kill(aside.process.pid or 0, signal.SIGSTOP)
    under_way = aside.ask(where, 1)
    aside.process.kill()
    assert under_way()[:2] == (1, os.getpid())
    assert aside.ask(where, 2)()[:2] == (2, os.getpid())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_began_it(tmp_path: Path, how: signal.Signals) -> None:
    noted = tmp_path / "number"

    def begin() -> None:
        number = Aside(prepare).ask(os.getpid)()
        noted.write_text(str(number))
        os.kill(os.getpid(), how)

    assert ended(start(begin)) == -how
    number = int(noted.read_text())
    until(lambda: is_gone(number))


def is_gone(number: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_ctrl_c_is_not_for_it() -> None:
    aside = Aside(prepare)
    aside.ask(where, 0)()
    os.kill(aside.process.pid or 0, signal.SIGINT)
    assert aside.ask(where, 1)()[:2] == (1, aside.process.pid)
