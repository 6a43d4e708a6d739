"""A file, or several of one kind, as a table: rows that can be read again and again.

table = open_table(Path("train.csv.gz"))      # jsonl, json, csv, tsv (also .gz, .zst), parquet
for place, number, row in table.rows(None):   # such as ("train.csv.gz line", 2, {...})
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from report2impression.program.errors import DataError
from report2impression.reading import arrow
from report2impression.reading.delimited import SEPARATORS, CsvReader, csv_rows
from report2impression.reading.rows import (
    ENDINGS,
    PlacedRow,
    Row,
    Table,
    Wanted,
    check_regular,
    json_rows,
    jsonl_rows,
    told,
)


def ending_of(name: str) -> str:
    """Which of ENDINGS it has, "" for none."""
    return next((e for e in reversed(ENDINGS) if name.lower().endswith(f".{e}")), "")


def open_table(file: Path) -> Table:
    """The file as a table, its header read. DataError: it is missing or cannot be read."""
    name, ending = file.name, ending_of(file.name)
    kind = ending.split(".")[0]
    with told(file):
        check_regular(file)
        if kind == "jsonl":
            return Table(name, ending, None, lambda _: _placed(file, "line", jsonl_rows(file)))
        if kind == "json":
            return Table(name, ending, None, lambda _: _placed(file, "row", json_rows(file)))
        if kind == "parquet":
            names = arrow.parquet_columns(file)
            return Table(
                name, ending, names, lambda w: _placed(file, "row", arrow.parquet_rows(file, w))
            )
        reader = CsvReader(file)
        usual = "\t" if kind == "tsv" else ","
        mark = "" if reader.separator == usual else f", {SEPARATORS.get(reader.separator, 'sep=')}"
        return Table(
            name,
            ending + mark,
            tuple(reader.header),
            lambda _: _placed(file, "line", csv_rows(file)),
        )


def open_saved(folder: Path) -> Table:
    """A set that `datasets.save_to_disk` wrote. DataError."""
    files = arrow.saved_files(folder)

    def one(file: Path) -> Table:
        with told(file):
            names = arrow.saved_columns(file)
        place = f"{folder.name}/{file.name} row"
        return Table(
            place, "arrow", names, lambda w: ((place, *at) for at in arrow.saved_rows(file, w))
        )

    return joined(f"{folder.name}/*.arrow", [one(file) for file in files], files)


def open_shards(name: str, files: Sequence[Path]) -> Table:
    """Files of one format one behind the other. DataError: their columns differ."""
    return joined(name, [open_table(file) for file in files], files)


def joined(name: str, tables: Sequence[Table], files: Sequence[Path]) -> Table:
    first = tables[0]
    for table, file in zip(tables, files, strict=True):
        if {*(table.columns or ())} != {*(first.columns or ())}:
            raise DataError(f"{file} has other columns than {files[0].name}; write the files again")

    def rows(wanted: Wanted) -> Iterator[PlacedRow]:
        for table in tables:
            yield from table.rows(wanted)

    return Table(name, f"{first.format} x {len(tables)}", first.columns, rows)


def _placed(file: Path, unit: str, rows: Iterator[tuple[int, Row]]) -> Iterator[PlacedRow]:
    place = f"{file.name} {unit}"
    with told(file):
        for number, row in rows:
            yield place, number, row
