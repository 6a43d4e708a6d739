"""Report pairs (findings -> impression) of one split, from a folder or a hub data set.

    split = read_split("data/iu_xray", "train")            # the files of reading.split_files
    split = read_split("owner/name", "validation")         # a data set on the hub
    for item in open_pairs(source, "train").stream(): ...  # Pair | BadRow, in constant memory

A row is bad if it cannot be read or if a cell that we need is not clean text. Bad rows stop the
reading ("error") or are left out and listed in `Split.skipped` ("skip"); "auto" is "error" for
files, which their owner can mend, and "skip" for hub sets, which nobody here can. Messages hold no
report text: of a foreign exception they name only the class, as its text may quote a cell or a
host.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report2impression.program.errors import ConfigError, DataError
from report2impression.program.terminal import tell_once
from report2impression.program.unseen import CONTROLS, has_ink
from report2impression.reading.hub import open_hub_table
from report2impression.reading.options import PairSource
from report2impression.reading.rows import BLANK, MAX_LINE_BYTES, PlacedRow, Row, Table
from report2impression.reading.split_files import find_split, open_split

SPLITS = ("train", "validation", "test")
KNOWN_COLUMNS = (("prompt", "impressions"), ("findings", "impression"), ("text", "summary"))
MARKS = ("id", "group", "patient")
MANY = 1000  # names of columns; beyond them nobody looks
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` makes one for every line
_C0 = bytes(code for code in range(128) if CONTROLS.match(chr(code)))


@dataclass(frozen=True, slots=True)
class Pair:
    id: str
    prompt: str
    impression: str
    group: str = ""
    patient: str = ""


def json_line(pair: Pair) -> str:
    """Its line in a .jsonl file; a group or patient that is not known is left out."""
    row = {"id": pair.id, "prompt": pair.prompt, "impressions": pair.impression}
    row |= {name: mark for name in ("group", "patient") if (mark := getattr(pair, name))}
    return _ENCODER.encode(row) + "\n"


@dataclass(frozen=True, slots=True)
class BadRow:
    row: int  # data row, counted from 0, bad rows included
    where: str  # such as "train.jsonl line 3"
    reason: str


@dataclass(frozen=True)
class Split:
    name: str
    pairs: list[Pair]
    n_rows: int  # good and bad ones; of one source len(pairs) + len(skipped)
    skipped: list[BadRow]


@dataclass(frozen=True)
class Columns:
    """The names of a pair's parts; a mark that was asked for by name must be in every row."""

    source: str
    target: str
    marks: tuple[str, str, str] = MARKS
    asked: frozenset[str] = frozenset()

    def names(self) -> tuple[str, ...]:
        return (self.source, self.target, *self.marks)


@dataclass(frozen=True)
class PairTable:
    """A split that is found and has its columns, its rows not read yet."""

    split: str
    path: str
    table: Table
    columns: Columns
    stops: bool  # at bad rows

    def stream(self) -> Iterator[Pair | BadRow]:
        """Every row once; bad ones are not given but raised, all counted, if they are to stop."""
        n_good, n_bad, first = 0, 0, None
        rows = without_last_blanks(self.table.rows(self.columns.names()))
        for index, (place, number, row) in enumerate(rows):
            item = _to_pair(row, self.columns, f"{self.split}-{index}")
            if isinstance(item, Pair):
                n_good += 1
                if not (first and self.stops):
                    yield item
                continue
            bad = BadRow(index, f"{place} {number}" if number else place, item)
            n_bad, first = n_bad + 1, first or bad
            if not self.stops:
                yield bad
        notes = self.table.notes()
        if first and (self.stops or not n_good):
            _refuse(first, n_bad, self.path, notes, can_skip=n_good > 0)
        for note in notes:
            tell_once(note)
        if not n_good:
            raise DataError(
                f"{self.table.name} (in {self.path}): no rows; add some, or point `--data.path` "
                "elsewhere"
            )

    def read(self) -> Split:
        """All rows as lists."""
        return split_of(self.split, self.stream())


def split_of(name: str, rows: Iterable[Pair | BadRow]) -> Split:
    """The rows as lists."""
    pairs: list[Pair] = []
    skipped: list[BadRow] = []
    for row in rows:
        if isinstance(row, Pair):
            pairs.append(row)
        else:
            skipped.append(row)
    return Split(name, pairs, len(pairs) + len(skipped), skipped)


def open_pairs(source: PairSource, split: str, *, on_bad_row: str = "auto") -> PairTable:
    """Find a split and its columns.

    ConfigError: the call or the path cannot be used. DataError: missing, unreachable or broken
    data, or none of the columns.
    """
    path = source.path or ""
    if (name := source.source_column) is not None and name == source.target_column:
        raise ConfigError(
            f"--data.source_column and --data.target_column are both {name!r}; name two columns"
        )
    folder = os.path.expanduser(path)
    is_local = os.path.isdir(folder)  # asked before Path("") becomes "."
    if is_local:
        table = open_split(Path(folder), split)
    else:
        _check_hub_id(path)
        table = open_hub_table(path, split, source.revision)
    stops = on_bad_row == "error" or (on_bad_row == "auto" and is_local)
    return PairTable(split, path, table, _find_columns(table, source), stops)


def read_split(path: str, split: str, *, on_bad_row: str = "auto", **names: str | None) -> Split:
    """The clean pairs of one split as a list; `names` are revision and columns of a PairSource.
    Errors as `open_pairs`, and a DataError for bad rows that are not to be skipped."""
    return open_pairs(PairSource(path, **names), split, on_bad_row=on_bad_row).read()


def has_split(path: str, split: str) -> bool:
    """Whether a local folder holds the split, readable or not; False for a hub id."""
    try:
        find_split(Path(os.path.expanduser(path)), split)
    except DataError:
        return False
    return True


def _refuse(first: BadRow, n_bad: int, path: str, notes: Sequence[str], *, can_skip: bool) -> None:
    count = f"{n_bad:,} bad rows" if n_bad > 1 else "1 bad row"
    them = "them" if n_bad > 1 else "it"
    remedy = f"leave {them} out with `--data.on_bad_row skip`" if can_skip else "no row is usable"
    told = "".join(f"; {note}" for note in notes)
    raise DataError(
        f"{first.where} (in {path}): {first.reason}; {count} in all: mend {them}, or {remedy}{told}"
    )


def _check_hub_id(path: str) -> None:
    """Refuse what is no `owner/name`: a bare word would name a loader of `datasets`, as "csv"."""
    if not path:
        raise ConfigError("--data.path is missing: the folder of the pairs, or a hub id")
    if os.path.lexists(os.path.expanduser(path)):  # also a link that leads nowhere
        raise ConfigError(f"--data.path {path} is not a folder; name the folder that holds it")
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[\w.-]+", path, re.ASCII):
        raise ConfigError(
            f"--data.path {path!r} is neither an existing folder nor a hub id `owner/name`"
        )


def without_last_blanks(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """Blank lines between rows are bad rows, those at the end of a file nothing."""
    place, first, n_blank = "", 0, 0
    for here, number, row in rows:
        if row == BLANK:
            place, first, n_blank = here, number - n_blank, n_blank + 1
            continue
        yield from ((place, first + i, BLANK) for i in range(n_blank))
        n_blank = 0
        yield here, number, row


# ---- columns


def _find_columns(table: Table, source: PairSource) -> Columns:
    """The first known pair of columns; of JSONL, whose rows may differ in their keys, those of the
    first row that has such a pair."""
    marks = (source.id_column, source.group_column, source.patient_column)
    wanted = [
        (source.source_column or known[0], source.target_column or known[1])
        for known in KNOWN_COLUMNS
    ]
    keys = [table.columns] if table.columns else _keys(table)
    names: dict[str, None] = {}
    chosen = wanted[0]
    for found in keys:
        chosen = next((pair for pair in wanted if {*pair} <= {*found}), chosen)
        if {*chosen} <= {*found}:
            names = {}
            break
        if len(names) < MANY:
            names |= dict.fromkeys(name for name in found if name)
    if names:
        raise DataError(_no_columns(f"{table.name} (in {source.path})", wanted, names))
    id_name, group, patient = (mark or known for mark, known in zip(marks, MARKS, strict=True))
    columns = Columns(*chosen, (id_name, group, patient), frozenset(filter(None, marks)))
    if table.columns and (missing := columns.asked - set(table.columns)):
        raise DataError(
            f"{table.name} (in {source.path}): no column {', '.join(sorted(missing))}; found: "
            f"{show_names(table.columns)}"
        )
    return columns


def _keys(table: Table) -> Iterator[Collection[str]]:
    return (row.keys() for _, _, row in table.rows(None) if isinstance(row, dict))


def _no_columns(label: str, wanted: list[tuple[str, str]], names: Collection[str]) -> str:
    pairs = " or ".join(f"{a}/{b}" for a, b in dict.fromkeys(wanted))
    return (
        f"{label}: no columns {pairs}; found: {show_names(names)}; name them with "
        "`--data.source_column` and `--data.target_column`"
    )


def show_names(names: Collection[str]) -> str:
    """Column names, unless one is not a plain word: without a header line they are report text."""
    shown = list(filter(None, names))
    if all(re.fullmatch(r"[A-Za-z_][\w-]{0,39}", name) for name in shown):
        return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
    return f"{len(shown)} names, not shown as they may be report text (is the header missing?)"


# ---- cells


def _to_pair(row: Row, columns: Columns, default_id: str) -> Pair | str:
    """The clean pair, or the reason why the row is bad."""
    if isinstance(row, str):
        return row
    texts: list[Any] = [row.get(columns.source), row.get(columns.target)]
    marks: list[Any] = [
        to_mark(row.get(name)) if name in row or name not in columns.asked else None
        for name in columns.marks
    ]
    for place, (name, cell) in enumerate(zip(columns.names(), texts + marks, strict=True)):
        if place > 1 and cell == "":
            continue  # a mark that is not there
        if problem := cell_problem(cell, may_be_empty=place > 1):
            return f"`{name}` {problem}"
    prompt, impression = (cell.strip() for cell in texts)
    return Pair(marks[0] or default_id, prompt, impression, marks[1], marks[2])


def to_mark(cell: Any) -> Any:
    """An id, group or patient as text; missing is ""; what is neither text nor integer is kept."""
    if cell is None or cell != cell:  # NaN, which pandas writes for a missing cell
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    return cell.strip() if isinstance(cell, str) else cell


def cell_problem(cell: Any, *, may_be_empty: bool = False) -> str:
    """Why a cell is no clean text; "" if it is."""
    if cell is None:
        return "is missing"
    if not isinstance(cell, str):
        return f"is not text but {type(cell).__name__}"
    if len(cell) > MAX_LINE_BYTES:
        return "is longer than 100 MB"
    try:
        data = cell.encode("utf-8")
    except UnicodeEncodeError:
        return "has half a surrogate pair"
    # Spares most cells the search, which is slow: C1 signs begin with 0xC2 in UTF-8.
    is_suspect = b"\xc2" in data or len(data.translate(None, _C0)) < len(data)
    if is_suspect and (found := CONTROLS.search(cell)):
        return f"holds the control character U+{ord(found[0]):04X}"
    return "" if may_be_empty or has_ink(cell) else "is empty"
