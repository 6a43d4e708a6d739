"""The rows of one file, as a stream: bytes -> lines -> rows of cells, in constant memory.

What all formats share, and JSON; `reading.delimited` has CSV, `reading.arrow` Parquet and Arrow.

A row that cannot be read is a text that says why, and the reading goes on: one bad byte costs one
row. Damage behind which the next row cannot be found (a cut archive, a quote that never ends)
refuses the file with a DataError. Lines are bounded, so that a small archive of one endless line
does not fill the memory. Messages hold no report text.
"""

import codecs
import io
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report2impression.program.errors import DataError

TEXT_FORMATS = ("jsonl", "json", "csv", "tsv")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*(f + c for f in TEXT_FORMATS for c in ("", *COMPRESSIONS)), "parquet")
MAX_LINE_BYTES = 100_000_000  # also characters of a CSV field; Python's default is 131,072
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
    notes: Callable[[], list[str]] = list
    """What there is to tell after a reading, without report text."""


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


def refuse_duplicates(names: Collection[str], file: Path) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{file}: two columns have the same name; rename one")


# ---- JSON: an object per line, or an array of objects


def jsonl_rows(file: Path) -> Iterator[tuple[int, Row]]:
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
    if isinstance(row, list):
        return "the line is not a JSON object but an array; name a file of one array .json"
    return row if isinstance(row, dict) else "the line is not a JSON object"


def unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook. ValueError: a key twice."""
    row = dict(items)
    if len(row) != len(items):
        raise ValueError  # which of the two values is meant cannot be known
    return row


_JSON = json.JSONDecoder(object_pairs_hook=unique_keys)  # `json.loads` makes one for every line


def json_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """The objects of an array, one by one; or, where no array is opened, those of the lines."""
    with open_bytes(file) as stream:
        text = _Ahead(stream, file)
        if text.skip() != "[":
            yield from jsonl_rows(file)
            return
        text.at += 1
        number, mark = 0, text.skip()
        while mark != "]":
            number += 1
            value = text.value(number)
            yield number, value if isinstance(value, dict) else "the row is not a JSON object"
            mark = text.skip()
            text.at += mark == ","
            if mark not in (",", "]"):
                raise text.damaged(number)
            mark = text.skip() if mark == "," else mark
        text.at += 1
        if text.skip():
            raise text.damaged(number + 1)


class _Ahead:
    """A text that is read as far as one value of it needs."""

    def __init__(self, stream: io.BufferedIOBase, file: Path) -> None:
        self._stream, self._file = stream, file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._buffer, self.at, self._is_whole = "", 0, False
        self._more(4)
        self._buffer = self._buffer.removeprefix("\ufeff")

    def skip(self) -> str:
        """The next sign that is not blank; "" at the end."""
        while True:
            rest = self._buffer[self.at : self.at + 1]
            if rest and rest not in " \t\r\n":
                return rest
            if not rest and not self._more(2**16):
                return ""
            self.at += bool(rest)

    def value(self, number: int) -> Any:
        """The value that starts here; DataError if it does not end."""
        while True:
            try:
                value, end = _JSON.raw_decode(self._buffer, self.at)
            except (ValueError, RecursionError):
                end = None
            if end is not None and (end < len(self._buffer) or self._is_whole):
                self.at = end
                return value
            n_ahead = len(self._buffer) - self.at
            if n_ahead > MAX_LINE_BYTES or not self._more(n_ahead + 2**16):
                raise self.damaged(number)

    def damaged(self, number: int) -> DataError:
        return DataError(
            f"{self._file} row {number}: the JSON array cannot be parsed from here on, or has a "
            "key twice; write the file again"
        )

    def _more(self, n_bytes: int) -> bool:
        data = self._stream.read(n_bytes)
        try:
            self._buffer = self._buffer[self.at :] + self._decode(data, final=not data)
        except UnicodeDecodeError:
            raise DataError(f"{self._file}: not UTF-8; save it as UTF-8") from None
        self.at, self._is_whole = 0, not data
        return bool(data)
