"""The printed table, and the notes."""

import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table

from report2impression.program.privacy import for_terminal


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    digits: int = 4,
    left: Collection[int] = (0,),
) -> None:
    """A table on stdout: columns of text (numbered in `left`) left, figures right, floats with
    `digits` decimals; None is shown as a dash."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position in left else "right")
    for row in rows:
        table.add_row(*(_cell(value, digits) for value in row))
    # A pipe or a log file has no width of its own: let no figure be cut there.
    width = None if Console().is_terminal else 160
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def _cell(value: Any, digits: int = 4) -> str:
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else for_terminal(str(value))


@cache
def tell_once(line: str) -> None:
    """A note on stderr, once per process: data are often read more than once."""
    print(for_terminal(line), file=sys.stderr)
