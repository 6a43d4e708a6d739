"""Pairs of .tok files: line n of the findings belongs to line n of the impressions.

A blank line is a text like others: dropping it would pair all later lines wrongly.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from report2impression.program.errors import DataError
from report2impression.reading.rows import (
    NOT_UTF8,
    TOO_LONG,
    PlacedRow,
    Row,
    Table,
    check_regular,
    lines,
    told,
)

FINDINGS, IMPRESSION = ".findings.tok", ".impression.tok"
_COLUMNS = ("findings", "impression")


def open_tok(findings: Path) -> Table:
    """The findings' file and the impressions' beside it as a table."""
    return Table(findings.name, "tok", _COLUMNS, lambda _: _tok_rows(findings, findings.name))


def groups(folder: Path, names: Sequence[str]) -> list[Path]:
    """The findings' files of the subfolders."""
    return sorted(file for name in names for file in folder.glob(f"*/{name}{FINDINGS}"))


def open_groups(files: Sequence[Path]) -> Table:
    """Those of several groups one behind the other."""
    names = (*_COLUMNS, "group")
    return Table(f"*/{files[0].name}", "tok", names, lambda _: _grouped(files))


def _grouped(files: Sequence[Path]) -> Iterator[PlacedRow]:
    for file in files:
        group = file.parent.name
        for place, number, row in _tok_rows(file, f"{group}/{file.name}"):
            yield place, number, row if isinstance(row, str) else row | {"group": group}


def _tok_rows(findings: Path, name: str) -> Iterator[PlacedRow]:
    impression = findings.with_name(findings.name.removesuffix(FINDINGS) + IMPRESSION)
    both = zip_longest(_separated(findings), _separated(impression))
    for number, (prompt, answer) in enumerate(both, start=1):
        if prompt in (b"", None) and answer in (b"", None):
            return
        if prompt is None or answer is None:
            raise DataError(
                f"{findings} and {impression.name} differ in their number of lines from line "
                f"{number} on: line n of one must belong to line n of the other"
            )
        yield f"{name} line", number, _tok_row(prompt, answer)


def _separated(file: Path) -> Iterator[bytes | str]:
    """The lines, at the end b"" if the last one ends: `corpora.mimic_iii` puts the LF between the
    texts, others behind each, so that only the other file tells whether an empty text follows."""
    check_regular(file)
    line: bytes | None = b""
    with told(file):
        for _, line in lines(file):
            yield TOO_LONG if line is None else line
    if not line or line.endswith(b"\n"):
        yield b""


def _tok_row(*sides: bytes | str) -> Row:
    cells = {}
    for column, side in zip(("findings", "impression"), sides, strict=True):
        if isinstance(side, str):
            return side
        try:
            cells[column] = side.decode("utf-8")
        except UnicodeDecodeError:
            return NOT_UTF8
    return cells
