"""CSV and TSV: records under a header, each one row.

The separator is a comma (in .tsv a tab), unless the header is only a header with another one of
; | tab and comma, or a line `sep=;` above it, as spreadsheets write, names one.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from report2impression.program.errors import DataError
from report2impression.reading.rows import (
    BLANK,
    MAX_LINE_BYTES,
    TOO_LONG,
    Row,
    lines,
    refuse_duplicates,
)

SEPARATORS = {",": "comma", ";": "semicolon", "|": "pipe", "\t": "tab"}
_SEP_LINE = re.compile(r"\"?sep=(?P<sign>[^\w\s\"]|\t|tab)\"?", re.IGNORECASE)
_SEP_NAMES = {"tab": "\t"}
_NAME = re.compile(r"[^\W\d][\w .()/-]{0,59}")


def _separator(header: str, usual: str) -> str:
    """The usual one, unless another one alone cuts the line into several names."""
    cut = {mark: _cells(header, mark) for mark in SEPARATORS}
    named = [
        mark for mark, cells in cut.items() if len(cells) > 1 and all(map(_NAME.fullmatch, cells))
    ]
    if usual in named or len(named) != 1:
        return usual
    return named[0]


def _cells(header: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([header], delimiter=mark), [])]
    except csv.Error:
        return []


class CsvReader:
    """Strict: a quote that never ends would else swallow the rest of the file into one cell.

    Such damage stops the reading even if bad rows are skipped: where the next row starts is lost.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = _text_lines(file)
        first = next(lines, "")
        if told := _SEP_LINE.fullmatch(first.strip("\ufeff\r\n")):
            self.separator = _SEP_NAMES.get(told["sign"], told["sign"])
        else:
            self.separator = _separator(first, "\t" if ".tsv" in file.suffixes else ",")
            lines = itertools.chain([first], lines)
        self._before = int(bool(told))  # lines above the header
        self._cells = csv.reader(lines, delimiter=self.separator, strict=True)
        self.start = 1 + self._before  # line of the next record
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
            self.line = self.start
            self.start = self._before + self._cells.line_num + 1


def csv_rows(file: Path) -> Iterator[tuple[int, Row]]:
    reader = CsvReader(file)
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
    refuse_duplicates([name for name in header if name], file)
    return header


def _csv_row(header: list[str], cells: list[str]) -> Row:
    if not cells:
        return BLANK
    if [cell.strip() for cell in cells] == header:
        return "the row repeats the header"
    if len(cells) != len(header):
        return f"the row has {len(cells)} fields, the header {len(header)}"
    return dict(zip(header, cells, strict=True))
