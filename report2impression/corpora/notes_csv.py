"""The records of a large CSV file of notes, cut into blocks that many processes can parse.

    with NotesFile(Path("NOTEEVENTS.csv.gz"), COLUMNS) as notes:
        for block in notes.blocks():               # bytes: whole records, in the file's order
            for fields in notes.layout.records(block):   # or in another process

The dialect is that of PostgreSQL, which wrote the file, and of Python's `csv` module: a field that
begins with a quote goes on to the next quote that is not doubled, over commas and newlines. A
record is found by one regular expression on the bytes: the separators are ASCII, and only the
fields that somebody wants are ever decoded.

A record is malformed if it has another number of fields than the header, or text between an end
quote and the comma. A lost quote would turn text into records and records into text from there to
the end of the file; so, within a malformed record, a line that begins with the numbers with which
each row begins is taken for the next row.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from report2impression.program.errors import ConfigError, DataError

BLOCK_BYTES = 2**20
MAX_RECORD_BYTES = 2**26  # a thousand times the longest note; beyond it the file is no such CSV

# Possessive (`*+`): without it a quote that is not closed would be tried in every possible way.
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_PLAIN = rb'(?:[^",\r\n][^,\r\n]*+)?'
_FIELD = rb"(?:%b|%b)" % (_QUOTED, _PLAIN)
_ANY_FIELD = rb"(?:%b[^,\r\n]*+|%b)" % (_QUOTED, _PLAIN)  # also with text after the end quote
_NEWLINE = rb"(?:\r\n|\n|\r(?!\n))"
_ANY_RECORD = re.compile(rb"%b(?:,%b)*+%b" % (_ANY_FIELD, _ANY_FIELD, _NEWLINE))


@dataclass(frozen=True)
class Layout:
    """The columns of the file. Small and picklable: each process has its own."""

    n_columns: int
    wanted: tuple[int, ...]  # positions, in the order in which `records` yields them
    numeric: tuple[int, ...]  # positions of numbers that no row lacks

    def records(self, block: bytes) -> Iterator[tuple[bytes, ...] | int]:
        """The wanted fields of each record, still quoted; of a malformed one the number of its
        fields, 0 if a quote does not end. Blank lines are no records."""
        in_file = sorted(self.wanted)
        groups = [in_file.index(place) + 1 for place in self.wanted]
        start = 0
        while start < len(block):
            found = self.next_record(block, start, is_all=True)
            assert found
            end, match = found
            if match:
                yield match.group(*groups)
            elif block[start:end].strip(b"\r\n"):
                yield _count(block[start:end])
            start = end

    def next_record(
        self, text: bytes, start: int, *, is_all: bool = False
    ) -> tuple[int, re.Match[bytes] | None] | None:
        """(end, match) of the record that begins there, no match if it is malformed or a blank
        line. Unless the text is all there is: None if the record does not end within it."""
        if match := _record(self).match(text, start):
            return match.end(), match
        if not (match := _ANY_RECORD.match(text, start)) and not is_all:
            return None
        end = match.end() if match else len(text)
        next_row = _row_start(self).search(text, start, end) if self.numeric else None
        return next_row.end() if next_row else end, None


@cache
def _record(layout: Layout) -> re.Pattern[bytes]:
    """One record with a group around each wanted field."""
    places = [
        rb"(%b)" % _FIELD if place in layout.wanted else _FIELD for place in range(layout.n_columns)
    ]
    return re.compile(b",".join(places) + _NEWLINE)


@cache
def _row_start(layout: Layout) -> re.Pattern[bytes]:
    """A newline before what looks like the beginning of a row."""
    places = [
        rb'"?\d+"?' if place in layout.numeric else rb'[^",\r\n]*+'
        for place in range(max(layout.numeric) + 1)
    ]
    return re.compile(rb"[\r\n](?=%b,)" % b",".join(places))


def _fields(record: bytes) -> list[bytes]:
    """All fields of a record, still quoted."""
    found, end = [], -1
    while end < 0 or record[end : end + 1] == b",":
        match = re.compile(_ANY_FIELD).match(record, end + 1)
        assert match
        found.append(match.group())
        end = match.end()
    return found


def _count(record: bytes) -> int:
    """Number of fields; 0 if a quote does not end."""
    return len(_fields(record)) if _ANY_RECORD.fullmatch(record) else 0


def unquote(field: bytes) -> bytes:
    """The value of a field of a record that is not malformed."""
    return field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field


class NotesFile:
    """A CSV file, plain or gzipped, that is read once from beginning to end.

    `columns` are those wanted, `numeric` those of them that hold a number in each row. ConfigError:
    the file cannot be read. DataError: a broken archive, no header, or a wanted column that is
    missing. Messages hold neither cells nor names from the file.
    """

    def __init__(self, path: Path, columns: Sequence[str], numeric: Sequence[str] = ()) -> None:
        self.path = path
        if not path.is_file():
            raise ConfigError(f"--notes {path} is not a file; name NOTEEVENTS.csv or .csv.gz")
        self.n_bytes = path.stat().st_size
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise ConfigError(f"--notes {path} cannot be read: {error.strerror}") from None
        self._stream: io.BufferedIOBase = self._raw
        if self._raw.read(2) == b"\x1f\x8b":  # the content decides, not the name
            self._stream = gzip.GzipFile(fileobj=self._raw)
        self._raw.seek(0)
        self._rest, self._at_end = b"", False
        self.layout = self._read_header(columns, numeric)

    def __enter__(self) -> "NotesFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._raw.close()

    def position(self) -> int:
        """Bytes of the file (compressed ones, if it is) that have been read."""
        return self._raw.tell()

    def blocks(self) -> Iterator[bytes]:
        """Whole records, about BLOCK_BYTES at a time; a last line without newline gets one."""
        while True:
            if end := self._end_of_last_record():
                yield self._rest[:end]
                self._rest = self._rest[end:]
            if self._at_end:
                break
            self._read()
        if self._rest:
            yield self._rest + b"\n" * (_count(self._rest + b"\n") > 0)

    def _read(self) -> None:
        if len(self._rest) > MAX_RECORD_BYTES:
            raise DataError(
                f"{self.path}: a record over {MAX_RECORD_BYTES >> 20} MiB (a quote that does not "
                "end?); is it a CSV file of notes?"
            )
        try:
            # A long record is scanned anew each time: twice as much a time keeps that linear.
            more = self._stream.read(max(BLOCK_BYTES, len(self._rest)))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{self.path} cannot be read to its end ({type(error).__name__}): cut short or "
                "damaged; compare its checksum and download it again"
            ) from None
        self._at_end = not more
        self._rest += more

    def _end_of_last_record(self) -> int:
        """Where the whole records in `_rest` end. Of a CRLF cut in two, the LF is a blank line."""
        end = 0
        while found := self.layout.next_record(self._rest, end):
            end = found[0]
        return end

    def _read_header(self, columns: Sequence[str], numeric: Sequence[str]) -> Layout:
        self._read()
        while not (match := _ANY_RECORD.match(self._rest)) and not self._at_end:
            self._read()
        if self._rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{self.path} is UTF-16; save it as UTF-8")
        if not match:
            raise DataError(f"{self.path}: no header line; is it a CSV file of notes?")
        self._rest = self._rest[match.end() :]
        fields = _fields(match.group().removeprefix(codecs.BOM_UTF8))
        # Some builds of MIMIC have the names in lower case.
        names = [unquote(field).decode("ascii", "replace").strip().upper() for field in fields]
        missing = [name for name in columns if names.count(name) != 1]
        if missing:
            raise DataError(
                f"{self.path}: the first line does not name the column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)} (once); is it NOTEEVENTS.csv with its header?"
            )
        places = (tuple(names.index(name) for name in wanted) for wanted in (columns, numeric))
        return Layout(len(names), *places)
