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
from report2impression.reading.pairs import show_names, without_last_blanks
from report2impression.reading.rows import (
    ENDINGS,
    MAX_LINE_BYTES,
    Row,
    Table,
    parse_json,
    told,
)
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
    if os.path.isdir(path) and next(path.glob("*.txt"), None):
        return Input(lambda: _text_files(path))
    if os.path.isdir(path):
        return _table(open_split(path, config.split), columns, config.split)
    if path.suffix == ".txt":
        return Input(lambda: iter([_text_file(path)]), is_one=True)
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


def _text_files(folder: Path) -> Iterator[Report]:
    return map(_text_file, sorted(folder.glob("*.txt")))


def _text_file(file: Path) -> Report:
    if not os.path.isfile(file):
        return Report(file.stem, problem="is not a regular file")
    with told(file), open(file, "rb") as stream:
        data = stream.read(MAX_LINE_BYTES + 1)
    return Columns().report(_decoded(data), file.stem)


def _decoded(data: bytes) -> Row:
    if len(data) > MAX_LINE_BYTES:
        return "the report is longer than 100 MB"
    try:
        return {"text": data.decode("utf-8-sig")}
    except UnicodeDecodeError:
        return "the report is not UTF-8"


def _standard_input(columns: Columns) -> Input:
    """JSON lines, if the first line is one; else one report."""
    stream = sys.stdin.buffer
    first = stream.readline(MAX_LINE_BYTES)
    if not isinstance(parse_json(first), dict):
        data = first + stream.read(MAX_LINE_BYTES)
        return Input(lambda: iter([Columns().report(_decoded(data), "stdin")]), True, False)

    def reports() -> Iterator[Report]:
        for number, line in enumerate(_lines(first, stream)):
            yield columns.report(parse_json(line), f"stdin-{number}")

    return Input(reports, can_count=False)


def _lines(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield first
    while line := stream.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line
