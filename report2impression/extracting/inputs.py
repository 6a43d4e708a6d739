"""Where reports come from, as a stream that can be read again and again (but standard input)."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from report2impression.extracting.options import ExtractConfig
from report2impression.extracting.reports import Columns, Report
from report2impression.program.errors import DataError
from report2impression.reading.hub import open_hub_table
from report2impression.reading.pairs import has_split, show_names, without_last_blanks
from report2impression.reading.report_files import decoded, read_report, report_files
from report2impression.reading.rows import ENDINGS, MAX_LINE_BYTES, Table, parse_json
from report2impression.reading.split_files import open_split
from report2impression.reading.tables import open_table


@dataclass(frozen=True)
class Input:
    """Reports in the order of the input."""

    reports: Callable[[], Iterator[Report]]
    is_one: bool = False  # a single report, whose impression is all that is wanted
    can_count: bool = True  # reading it twice is possible, and cheap


def open_input(config: ExtractConfig, columns: Columns) -> Input:
    """ConfigError, DataError: it is none of these, or has none of the columns."""
    if config.input == "-":
        return _standard_input(columns)
    path = Path(config.input).expanduser()
    if os.path.isdir(path) and _holds_reports(path, config.split):
        return Input(lambda: _text_files(path))
    if os.path.isdir(path):
        return _table(open_split(path, config.split), columns, config.split)
    if path.suffix.lower() == ".txt":
        return Input(lambda: iter([_as_report(read_report(path), path.stem)]), is_one=True)
    if path.name.endswith(tuple(f".{ending}" for ending in ENDINGS)):
        return _table(open_table(path), columns, path.name)
    if os.path.lexists(path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", config.input, re.ASCII):
        raise DataError(
            f"--input {config.input} is no folder of .txt files, no {', .'.join(ENDINGS)} file and "
            "no hub id (owner/name): give one of these, or - for standard input"
        )
    table = open_hub_table(config.input, config.split, config.revision)
    return _table(table, columns, config.split, can_count=False)


def _table(table: Table, columns: Columns, name: str, *, can_count: bool = True) -> Input:
    if table.columns is not None and columns.of(table.columns) is None:
        raise DataError(
            f"{table.name}: no column of reports; found: {show_names(table.columns)}; name it with "
            "--column"
        )
    stem = name.partition(".")[0]

    def reports() -> Iterator[Report]:
        rows = without_last_blanks(table.rows(None))
        for number, (_, _, row) in enumerate(rows):
            yield columns.report(row, f"{stem}-{number}")

    return Input(reports, can_count=can_count)


def _holds_reports(folder: Path, split: str) -> bool:
    """Whole reports, in subfolders or not, and not the splits of a data set."""
    first = next(report_files(folder), None)
    return first is not None and (first.parent == folder or not has_split(str(folder), split))


def _text_files(folder: Path) -> Iterator[Report]:
    for file in report_files(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        yield _as_report(read_report(file), name)


def _as_report(text: str | ValueError, name: str) -> Report:
    return Columns().report(str(text) if isinstance(text, ValueError) else {"text": text}, name)


def _standard_input(columns: Columns) -> Input:
    """JSON lines, if the first line is one; else one report."""
    stream = sys.stdin.buffer
    first = stream.readline(MAX_LINE_BYTES)
    if not isinstance(parse_json(first), dict):
        data = first + stream.read(MAX_LINE_BYTES)
        return Input(lambda: iter([_as_report(decoded(data), "stdin")]), True, False)

    def reports() -> Iterator[Report]:
        for number, line in enumerate(_lines(first, stream)):
            yield columns.report(parse_json(line), f"stdin-{number}")

    return Input(reports, can_count=False)


def _lines(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield first
    while line := stream.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line
