"""The rows of one file, as a stream: bytes -> lines -> rows of cells, in constant memory.

    table = open_table(Path("train.csv.gz"))      # jsonl, csv, tsv (each also .gz, .zst), parquet
    for place, number, row in table.rows(None):   # such as ("train.csv.gz line", 2, {...})

A row that cannot be read is a text that says why, and the reading goes on: one bad byte costs one
row. Damage behind which the next row cannot be found (a cut archive, a quote that never ends)
refuses the file with a DataError. Lines are bounded, so that a small archive of one endless line
does not fill the memory. Messages hold no report text.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report2impression.program.errors import DataError

TEXT_FORMATS = ("jsonl", "csv", "tsv")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*(f + c for f in TEXT_FORMATS for c in ("", *COMPRESSIONS)), "parquet")
MAX_LINE_BYTES = 100_000_000  # also characters of a CSV field; Python's default is 131,072
ARROW_BATCH = 64  # rows; a batch of long reports must fit into memory
BLANK = "the line is blank"
TOO_LONG = "the line is longer than 100 MB"
NOT_UTF8 = "the line is not UTF-8"
# What a text file with a wrong name begins with.
_MAGIC = {
    b"\x1f\x8b": "gzip; name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd; name it .zst",
    b"PAR1": "Parquet; name it .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet; save it as CSV",
}

Row = dict[str, Any] | str  # the cells, or the reason why the row cannot be read
PlacedRow = tuple[str, int, Row]  # ("train.jsonl line", 3, row), counted from 1
Wanted = Collection[str] | None  # columns that will be asked for, None = all


@dataclass(frozen=True)
class Table:
    """Rows that can be read again and again."""

    name: str  # what messages call it
    format: str
    columns: tuple[str, ...] | None  # of all rows; None = rows differ in their keys (JSONL)
    rows: Callable[[Wanted], Iterator[PlacedRow]]


def open_table(file: Path) -> Table:
    """The file as a table, its header read. DataError: it is missing or cannot be read."""
    name = file.name
    ending = next(e for e in reversed(ENDINGS) if name.endswith(f".{e}"))
    kind = ending.split(".")[0]
    with told(file):
        check_regular(file)
        if kind == "jsonl":
            return Table(name, ending, None, lambda _: _placed(file, "line", _jsonl_rows(file)))
        if kind == "parquet":
            columns = _parquet_columns(file)
            return Table(
                name, ending, columns, lambda wanted: _placed(file, "row", _parquet(file, wanted))
            )
        columns = tuple(_CsvReader(file).header)
        return Table(name, ending, columns, lambda _: _placed(file, "line", _csv_rows(file)))


def _placed(file: Path, unit: str, rows: Iterable[tuple[int, Row]]) -> Iterator[PlacedRow]:
    place = f"{file.name} {unit}"
    with told(file):
        for number, row in rows:
            yield place, number, row


def check_regular(file: Path) -> None:
    if not os.path.isfile(file):  # a folder, a symlink loop, or a FIFO that would block for ever
        raise DataError(f"{file} is not a regular file; replace it by one")


@contextmanager
def told(file: Path) -> Iterator[None]:
    """An error of the disk, or of what unpacks the file, in one line."""
    try:
        yield
    except OSError as error:
        is_packed = file.suffix in COMPRESSIONS
        if is_packed and type(error) is OSError and error.errno is None:  # pyarrow: the bytes
            kind = COMPRESSIONS[file.suffix]
            raise DataError(
                f"{file} is no {kind} file, or is damaged or cut off; write the file again"
            ) from None
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}); check its permissions and the disk"
        ) from None


@contextmanager
def open_bytes(file: Path) -> Iterator[io.BufferedIOBase]:
    """The unpacked bytes, as far as they are read. OSError: the disk, or damage."""
    with open(file, "rb") as stream:
        kind = COMPRESSIONS.get(file.suffix)
        if kind is None:
            found = next((m for m in _MAGIC if stream.peek(4).startswith(m)), None)
            if found:
                raise DataError(f"{file} is not text but {_MAGIC[found]}")
            yield stream
            return
        if not stream.peek(1):
            raise DataError(f"{file} is empty, not even {kind}; write the file again")
        import pyarrow

        # Unlike `zstandard`, it notices a cut; unlike `gzip`, its errors have one class.
        unpacked: Any = pyarrow.input_stream(stream, compression=kind)
        yield io.BufferedReader(unpacked, 2**16)


def lines(file: Path) -> Iterator[tuple[int, bytes | None]]:
    """Physical lines, ended by LF only, with their LF; None for one over MAX_LINE_BYTES."""
    with open_bytes(file) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
                yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**16)
            yield number, None


# ---- JSONL


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Row]]:
    for number, line in lines(file):
        if line is None:
            yield number, TOO_LONG
        else:
            yield number, parse_json(line) if line.strip() else BLANK


def parse_json(line: bytes) -> Row:
    """The object in one line, or why there is none."""
    try:
        row = _JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):
        return "the line is not valid JSON, or has a key twice"
    return row if isinstance(row, dict) else "the line is not a JSON object"


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) != len(items):
        raise ValueError  # which of the two values is meant cannot be known
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys)  # `json.loads` makes one for every line


# ---- CSV, TSV


class _CsvReader:
    """Strict: a quote that never ends would else swallow the rest of the file into one cell.

    Such damage stops the reading even if bad rows are skipped: where the next row starts is lost.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        mark = "\t" if ".tsv" in file.suffixes else ","
        self._cells = csv.reader(_text_lines(file), delimiter=mark, strict=True)
        self.start = 1  # line of the next record
        self.header = _checked_header(self.next() or [], file)

    def next(self) -> list[str] | None:
        """The cells of the next record, None at the end."""
        limit = csv.field_size_limit(MAX_LINE_BYTES)  # global in Python: put back at once
        try:
            return next(self._cells, None)
        except csv.Error:
            raise DataError(
                f"{self._file} line {self.start}: the CSV record that starts here cannot be parsed "
                "(a quote that does not end, a lone CR, or a field over 100 MB); mend the file"
            ) from None
        finally:
            csv.field_size_limit(limit)
            self.line, self.start = self.start, self._cells.line_num + 1


def _csv_rows(file: Path) -> Iterator[tuple[int, Row]]:
    reader = _CsvReader(file)
    while (cells := reader.next()) is not None:
        yield reader.line, _csv_row(reader.header, cells)


def _text_lines(file: Path) -> Iterator[str]:
    for number, line in lines(file):
        if line is None:
            raise DataError(f"{file} line {number}: {TOO_LONG}; mend the file")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{file} line {number}: not UTF-8; save it as UTF-8") from None
        yield text


def _checked_header(cells: list[str], file: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not any(header):
        raise DataError(f"{file} line 1: no header; the first line must name the columns")
    _refuse_duplicates([name for name in header if name], file)
    return header


def _csv_row(header: list[str], cells: list[str]) -> Row:
    if not cells:
        return BLANK
    if [cell.strip() for cell in cells] == header:
        return "the row repeats the header"
    if len(cells) != len(header):
        return f"the row has {len(cells)} fields, the header {len(header)}"
    return dict(zip(header, cells, strict=True))


def _refuse_duplicates(names: Collection[str], file: Path) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{file}: two columns have the same name; rename one")


# ---- Parquet


def _parquet_columns(file: Path) -> tuple[str, ...]:
    with _open_parquet(file) as table:
        names = tuple(table.schema_arrow.names)
    _refuse_duplicates(names, file)
    return names


def _parquet(file: Path, wanted: Wanted) -> Iterator[tuple[int, Row]]:
    with _open_parquet(file) as table:
        names = [n for n in table.schema_arrow.names if wanted is None or n in wanted]
        batches = table.iter_batches(batch_size=ARROW_BATCH, columns=names)
        yield from enumerate(arrow_rows(batches), start=1)


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet ({type(error).__name__}); write the file again"
        ) from None


def arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of Arrow record batches or tables; a cell that Python cannot hold spoils its row."""
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # not UTF-8, or such as a date beyond Python's years
            rows = [_arrow_row(batch, index) for index in range(batch.num_rows)]
        yield from rows


def _arrow_row(batch: Any, index: int) -> Row:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError:
            return f"`{name}` is not UTF-8"
        except (ValueError, OverflowError) as error:
            return f"`{name}` cannot be read ({type(error).__name__})"
    return row
