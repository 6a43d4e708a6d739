"""What keeps report text in its files, whatever goes wrong, and foreign words from doing harm.

An exception of a library may quote the value it choked on, and a traceback shows lines of code; so
an unexpected error tells its type and the places in our own files, nothing else. Set
REPORT2IMPRESSION_TRACEBACK=1 to see all of it. Files are for their owner, and no core is dumped.
"""

import os
import re
import resource
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from report2impression.program.unseen import UNSEEN

PACKAGE = Path(__file__).resolve().parents[1]
# Of a checkout the folder around the package, whose programs are ours, too.
ROOT = PACKAGE if (PACKAGE / "scripts").is_dir() else PACKAGE.parent
SHOW_ALL = "REPORT2IMPRESSION_TRACEBACK"

# What a spreadsheet takes for a formula, after blanks too, and in full-width forms.
FORMULA = re.compile("\\s*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


def for_terminal(text: str) -> str:
    """On one line; what a terminal would obey is spelled out, as \\x1b."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], " ".join(text.splitlines()))


def for_spreadsheet(text: str) -> str:
    """A cell of a CSV that people open: a formula gets an apostrophe, a number stays."""
    is_formula = FORMULA.match(text) or text[:1] in ("\t", "\r", "\n")
    return f"'{text}" if is_formula and not NUMBER.fullmatch(text) else text


@contextmanager
def private_process() -> Iterator[None]:
    """Inside, new files and folders are their owner's only. From now on an unexpected error quotes
    nothing, and a crash dumps no memory."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    if not os.environ.get(SHOW_ALL):
        sys.excepthook = tell_unexpected
        sys.unraisablehook = lambda found: tell_unexpected(
            found.exc_type, found.exc_value, found.exc_traceback
        )
        threading.excepthook = lambda found: tell_unexpected(
            found.exc_type, found.exc_value, found.exc_traceback
        )
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def tell_unexpected(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """On stderr: the types of the exception and of its causes, and where in our code it came up."""
    chain = " <- ".join(_kinds(error)) or getattr(kind, "__name__", "an error")
    told = [f"unexpected: {chain}; its text may quote a report: {SHOW_ALL}=1 shows it"]
    told += [f"  at {place}" for place in _places(trace)]
    print("\n".join(told), file=sys.stderr, flush=True)


def _kinds(error: BaseException | None) -> list[str]:
    kinds: list[str] = []
    while error is not None and len(kinds) < 10:
        kinds.append(type(error).__name__)
        hidden = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or hidden
    return kinds


def _places(trace: TracebackType | None) -> list[str]:
    """file:line, function of each frame that lies in this folder; never the line itself."""
    places: list[Any] = []
    for frame, line in traceback.walk_tb(trace):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and "site-packages" not in file.relative_to(ROOT).parts:
            places.append(f"{file.relative_to(ROOT)}:{line}, {frame.f_code.co_name}")
    return places
