"""aside.py: the same results, whether the second process lives, fails or is killed."""

import os
import signal

import pytest

from aside import Aside

prepared: list[int] = []


def prepare() -> list[int]:
    prepared.append(os.getpid())
    return prepared


def where(value: int) -> tuple[int, int, list[int]]:
    return value, os.getpid(), prepared


def refuse(_: int) -> None:
    raise LookupError("no such thing")


def test_it_works_in_a_process_of_its_own_that_has_prepared_itself() -> None:
    aside = Aside(prepare)
    later = [aside.ask(where, n) for n in range(3)]
    found = [result() for result in later]
    assert [value for value, _, _ in found] == [0, 1, 2]
    (there,) = {pid for _, pid, _ in found}
    assert there != os.getpid() and found[0][2] == [there]
    assert later[0]() == found[0]  # as often as it is asked for
    assert prepared == []  # not here


def test_what_it_raises_is_raised_here() -> None:
    later = Aside(prepare).ask(refuse, 1)
    with pytest.raises(LookupError, match="no such thing"):
        later()


def test_where_it_was_killed_the_work_is_done_here() -> None:
    aside = Aside(prepare)
    aside.ask(where, 0)()
    for process in aside._pool._processes.values():
        os.kill(process.pid or 0, signal.SIGKILL)
    under_way = aside.ask(where, 1)
    assert under_way()[:2] == (1, os.getpid())
    assert aside.ask(where, 2)()[:2] == (2, os.getpid())
