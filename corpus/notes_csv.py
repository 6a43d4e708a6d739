"""The records of a large CSV file of notes, cut into blocks that many processes can parse.

    with NotesFile(Path("NOTEEVENTS.csv.gz"), COLUMNS) as notes:
        for block in notes.blocks():               # bytes: whole records, in the file's order
            for fields in notes.layout.records(block):   # or in another process

The dialect is that of Python's `csv` module (and of PostgreSQL, which wrote the file): a field that
begins with a quote goes on to the next quote that is not doubled, over commas and newlines; what
follows that quote up to the comma belongs to the field too. So a lost quote costs the records that
it touches and not the rest of the file. A record is found by one regular expression on the bytes:
the separators are ASCII, and only the fields that somebody wants are ever decoded.
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

from errors import ConfigError, DataError

BLOCK_BYTES = 2**20
MAX_RECORD_BYTES = 2**26  # a thousand times the longest note; beyond it the file is no such CSV

# Possessive (`*+`): without it a quote that is not closed would be tried in every possible way.
_FIELD = rb'(?:"[^"]*+(?:""[^"]*+)*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+|)'
_NEWLINE = rb"(?:\r\n|\n|\r(?!\n))"
_RECORD = re.compile(rb"%b(?:,%b)*+%b" % (_FIELD, _FIELD, _NEWLINE))
_ANY_FIELD = re.compile(_FIELD)
_QUOTED = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"')


@dataclass(frozen=True)
class Layout:
    """Which fields of a record are wanted. Small and picklable: each process has its own."""

    n_columns: int
    wanted: tuple[int, ...]  # positions, in the order in which `records` yields them

    def records(self, block: bytes) -> Iterator[tuple[bytes, ...] | int]:
        """The wanted fields of each record, still quoted; of one that has another number of
        fields than the header, that number (0: the file ends within quotes). Blank lines are no
        records."""
        pattern, position = _pattern(self), 0
        in_file = sorted(self.wanted)
        groups = [in_file.index(place) + 1 for place in self.wanted]
        while position < len(block):
            match = pattern.match(block, position)
            if match:
                yield match.group(*groups)
            else:
                match = _RECORD.match(block, position)
                if not match:
                    yield 0
                    return
                if match.group().strip(b"\r\n"):
                    yield _count(match.group())
            position = match.end()


@cache
def _pattern(layout: Layout) -> re.Pattern[bytes]:
    """One whole record with a group around each wanted field."""
    places = [
        rb"(%b)" % _FIELD if place in layout.wanted else _FIELD for place in range(layout.n_columns)
    ]
    return re.compile(b",".join(places) + _NEWLINE)


def _count(record: bytes) -> int:
    """Number of fields."""
    n_fields = position = 0
    while True:
        match = _ANY_FIELD.match(record, position)
        assert match
        n_fields, position = n_fields + 1, match.end() + 1
        if record[match.end() : position] != b",":
            return n_fields


def unquote(field: bytes) -> bytes:
    """The value of a field, without its quotes; what stands after the end quote is kept."""
    match = _QUOTED.match(field)
    if not match:
        return field
    return match.group(1).replace(b'""', b'"') + field[match.end() :]


class NotesFile:
    """A CSV file, plain or gzipped, that is read once from beginning to end.

    ConfigError: the file or the encoding cannot be used. DataError: a broken archive, no header, or
    a wanted column that is missing. Messages hold neither cells nor names from the file.
    """

    def __init__(self, path: Path, columns: Sequence[str], encoding: str = "utf-8") -> None:
        self.path, self.encoding = path, _check_encoding(encoding)
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
        self.layout = self._read_header(columns)

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
            yield self._rest + b"\n" if _RECORD.fullmatch(self._rest + b"\n") else self._rest

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
        """Where the whole records in `_rest` end. A CR at its end may be half a CRLF."""
        end, text = 0, self._rest
        while match := _RECORD.match(text, end):
            if match.end() == len(text) and text.endswith(b"\r") and not self._at_end:
                break
            end = match.end()
        return end

    def _read_header(self, columns: Sequence[str]) -> Layout:
        self._read()
        while not (match := _RECORD.match(self._rest)) and not self._at_end:
            self._read()
        if self._rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{self.path} is UTF-16; save it as UTF-8")
        if not match:
            raise DataError(f"{self.path}: no header line; is it a CSV file of notes?")
        self._rest = self._rest[match.end() :]
        names = self._names(match.group())
        missing = [name for name in columns if names.count(name) != 1]
        if missing:
            raise DataError(
                f"{self.path}: the first line does not name the column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)} (once); is it NOTEEVENTS.csv with its header?"
            )
        return Layout(len(names), tuple(names.index(name) for name in columns))

    def _names(self, header: bytes) -> list[str]:
        header, names, position = header.removeprefix(codecs.BOM_UTF8), [], 0
        for _ in range(_count(header)):
            match = _ANY_FIELD.match(header, position)
            assert match
            name = unquote(match.group()).decode(self.encoding, "replace")
            names.append(name.strip().upper())  # row_id in the builds that make lower case of it
            position = match.end() + 1
        return names


def _check_encoding(encoding: str) -> str:
    """Refuse what is unknown or does not keep ASCII bytes for ASCII characters (UTF-16, EBCDIC)."""
    sample = 'a,"\r\n'
    try:
        keeps_ascii = sample.encode(encoding) == sample.encode("ascii")
    except LookupError:
        keeps_ascii = False
    if not keeps_ascii:
        raise ConfigError(f"--encoding {encoding!r} is not one to read CSV by; try utf-8 or cp1252")
    return encoding
