"""Report pairs (findings -> impression) of one split, from a folder or a hub data set.

    split = read_split("data/iu_xray", "train")     # train.jsonl, train.csv or train.parquet
    split = read_split("owner/name", "validation")  # a data set on the hub

A row is bad if it cannot be read or if a cell that we need is not text. Bad rows stop the reading
("error") or are left out and listed in `Split.skipped` ("skip"); "auto" is "error" for files, which
their owner can mend, and "skip" for hub sets, which nobody here can. Messages hold no report text:
of a foreign exception they name only the class, as its text may quote a cell or a host.
"""

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.hub import read_hub
from errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
FORMATS = ("jsonl", "csv", "parquet")
KNOWN_COLUMNS = (("prompt", "impressions"), ("findings", "impression"), ("text", "summary"))
OPTIONAL_COLUMNS = ("id", "group", "patient")
MAX_CSV_FIELD = 100_000_000  # characters; Python's default of 131,072 is less than a long report
BLANK = "the line is blank"

Row = dict[str, Any] | str  # the cells, or the reason why the row cannot be read
NumberedRow = tuple[int, Row]  # counted from 1: physical line (JSONL, CSV) or row (Parquet, hub)


@dataclass(frozen=True, slots=True)
class Pair:
    id: str
    prompt: str
    impression: str
    group: str = ""
    patient: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    row: int  # data row, counted from 0, bad rows included
    where: str  # such as "train.jsonl line 3"
    reason: str


@dataclass(frozen=True)
class Split:
    name: str
    pairs: list[Pair]
    n_rows: int  # len(pairs) + len(skipped)
    skipped: list[BadRow]


def read_split(
    path: str,
    split: str,
    *,
    revision: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    on_bad_row: str = "auto",
) -> Split:
    """The clean pairs of one split, in the order of the data.

    ConfigError: the call or the path cannot be used. DataError: missing, unreachable, broken or
    empty data, or a bad row that is not to be skipped.
    """
    _check_call(split, source_column, target_column, on_bad_row)
    folder = os.path.expanduser(path)
    is_local = os.path.isdir(folder)  # asked before Path("") becomes "."
    if is_local:
        file = find_split_file(Path(folder), split)
        label, unit = file.name, "row" if file.suffix == ".parquet" else "line"
        rows = _read_file(file)
    else:
        _check_hub_id(path)
        label, unit = f"{path} {split}", "row"
        rows = list(enumerate(read_hub(path, split, revision), start=1))
    while rows and rows[-1][1] == BLANK:
        rows.pop()
    columns = _find_columns(rows, source_column, target_column, f"{label} (in {path})")
    pairs: list[Pair] = []
    skipped: list[BadRow] = []
    for index, (number, row) in enumerate(rows):
        pair = _to_pair(row, columns, f"{split}-{index}")
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            skipped.append(BadRow(index, f"{label} {unit} {number}", pair))
    stops = on_bad_row == "error" or (on_bad_row == "auto" and is_local)
    if skipped and (stops or not pairs):
        _refuse(skipped, path, can_skip=bool(pairs))
    if not pairs:
        raise DataError(f"{label} (in {path}): no rows; add some, or point `--data.path` elsewhere")
    return Split(split, pairs, len(rows), skipped)


def _refuse(bad: list[BadRow], path: str, *, can_skip: bool) -> None:
    first, count = bad[0], f"{len(bad)} bad row{'s' * (len(bad) > 1)} in all"
    remedy = "leave them out with `--data.on_bad_row skip`" if can_skip else "no row is usable"
    raise DataError(f"{first.where} (in {path}): {first.reason}; {count}: mend them, or {remedy}")


def find_split_file(folder: Path, split: str) -> Path:
    """The one file `split`.{jsonl,csv,parquet} in the folder."""
    names = [f"{split}.{ending}" for ending in FORMATS]
    found = [name for name in names if os.path.exists(folder / name)]
    if len(found) > 1:
        raise ConfigError(f"{folder}: {' and '.join(found)} are both there; keep one of them")
    if not found:
        raise DataError(
            f"{folder}: none of {', '.join(names)} is there; add one, or point `--data.path` to "
            "the folder that holds it"
        )
    return folder / found[0]


def _check_call(split: str, source: str | None, target: str | None, on_bad_row: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if on_bad_row not in ("auto", "error", "skip"):
        raise ConfigError(f"--data.on_bad_row {on_bad_row!r} is not one of auto, error, skip")
    if source is not None and source == target:
        raise ConfigError(
            f"--data.source_column and --data.target_column are both {source!r}; name two columns"
        )


def _check_hub_id(path: str) -> None:
    """Refuse what is no `owner/name`: a bare word would name a loader of `datasets`, as "csv"."""
    if os.path.exists(os.path.expanduser(path)):
        raise ConfigError(f"--data.path {path} is not a folder; name the folder that holds it")
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[\w.-]+", path, re.ASCII):
        raise ConfigError(
            f"--data.path {path!r} is neither an existing folder nor a hub id `owner/name`"
        )


def _read_file(file: Path) -> list[NumberedRow]:
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if not os.path.isfile(file):  # a folder, or a FIFO that would block for ever
        raise DataError(f"{file} is not a regular file; replace it by one")
    try:
        return list(readers[file.suffix](file))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}); check its permissions and the disk"
        ) from None


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Physical lines, ended by LF only; each is decoded alone, so that one bad byte costs one."""
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _jsonl_rows(file: Path) -> Iterator[NumberedRow]:
    for number, line in _lines(file):
        yield number, _parse_json(line) if line.strip() else BLANK


def _parse_json(line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (ValueError, RecursionError):
        return "the line is not valid JSON, or has a key twice"
    return row if isinstance(row, dict) else "the line is not a JSON object"


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) != len(items):
        raise ValueError  # which of the two values is meant cannot be known
    return row


def _csv_rows(file: Path) -> Iterator[NumberedRow]:
    """Strict: a quote that never ends would else swallow the rest of the file into one cell.

    Such damage stops the reading even if bad rows are skipped: where the next row starts is lost.
    """
    old_limit = csv.field_size_limit(MAX_CSV_FIELD)  # global in Python: put back in the end
    reader = csv.reader(_csv_lines(file), strict=True)
    start = 1
    try:
        header = _csv_header(next(reader, []), file)
        start = reader.line_num + 1
        for cells in reader:
            yield start, _csv_row(header, cells)
            start = reader.line_num + 1
    except csv.Error:
        raise DataError(
            f"{file} line {start}: the CSV record that starts here cannot be parsed (a quote that "
            "does not end, a lone CR, or a field over 100 MB); mend the file"
        ) from None
    finally:
        csv.field_size_limit(old_limit)


def _csv_lines(file: Path) -> Iterator[str]:
    for number, line in _lines(file):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{file} line {number}: not UTF-8; save it as UTF-8") from None
        yield text


def _csv_header(cells: list[str], file: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not any(header):
        raise DataError(f"{file} line 1: no header; the first line must name the columns")
    _refuse_duplicates([name for name in header if name], file)
    return header


def _csv_row(header: list[str], cells: list[str]) -> Row:
    if not cells:
        return BLANK
    if len(cells) != len(header):
        return f"the row has {len(cells)} fields, the header {len(header)}"
    return dict(zip(header, cells, strict=True))


def _refuse_duplicates(names: list[str], file: Path) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{file}: two columns have the same name; rename one")


def _parquet_rows(file: Path) -> Iterator[NumberedRow]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _refuse_duplicates(table.schema_arrow.names, file)
            yield from _table_rows(table.iter_batches(batch_size=1024))
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet ({type(error).__name__}); write the file again"
        ) from None


def _table_rows(batches: Iterable[Any]) -> Iterator[NumberedRow]:
    rows = (row for batch in batches for row in batch.to_pylist())
    return enumerate(rows, start=1)


def _find_columns(
    rows: list[NumberedRow], source: str | None, target: str | None, label: str
) -> tuple[str, str]:
    """The first known pair of columns that at least one row has; JSONL rows may differ in keys."""
    wanted = [(source or known[0], target or known[1]) for known in KNOWN_COLUMNS]
    readable = [row for _, row in rows if isinstance(row, dict)]
    for pair in wanted:
        if not readable or any(pair[0] in row and pair[1] in row for row in readable):
            return pair
    names = " or ".join(f"{a}/{b}" for a, b in dict.fromkeys(wanted))
    raise DataError(
        f"{label}: no columns {names}; found: {_show_names(readable)}; name them with "
        "`--data.source_column` and `--data.target_column`"
    )


def _show_names(rows: list[dict[str, Any]]) -> str:
    """Column names, unless one is not a plain word: without a header line they are report text."""
    names = list(dict.fromkeys(name for row in rows for name in row if name))
    if all(re.fullmatch(r"[A-Za-z_][\w-]{0,39}", name) for name in names):
        return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{len(names)} names, not shown as they may be report text (is the header missing?)"


def _to_pair(row: Row, columns: tuple[str, str], default_id: str) -> Pair | str:
    """The clean pair, or the reason why the row is bad."""
    if isinstance(row, str):
        return row
    texts = [row.get(name) for name in columns]
    marks = [_to_mark(row.get(name)) for name in OPTIONAL_COLUMNS]
    for name, cell in zip((*columns, *OPTIONAL_COLUMNS), texts + marks, strict=True):
        problem = _cell_problem(cell, may_be_empty=name in OPTIONAL_COLUMNS)
        if problem:
            return f"`{name}` {problem}"
    prompt, impression = (cell.strip() for cell in texts if isinstance(cell, str))
    return Pair(marks[0] or default_id, prompt, impression, marks[1], marks[2])


def _to_mark(cell: Any) -> Any:
    """An id, group or patient as text; missing is ""; what is neither text nor integer is kept."""
    if cell is None or cell != cell:  # NaN, which pandas writes for a missing cell
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    return cell.strip() if isinstance(cell, str) else cell


def _cell_problem(cell: Any, *, may_be_empty: bool) -> str:
    if cell is None:
        return "is missing"
    if not isinstance(cell, str):
        return f"is not text but {type(cell).__name__}"
    if not cell.strip() and not may_be_empty:
        return "is empty"
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return "has half a surrogate pair"
    return ""
