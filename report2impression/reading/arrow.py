"""Tables of columns: Parquet, and the Arrow files that `datasets` saves to a disk.

Where the metadata name the classes of a column (a ClassLabel of `datasets`), its numbers become
these names.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report2impression.program.errors import DataError
from report2impression.reading.rows import Row, Wanted, check_regular, refuse_duplicates

ARROW_BATCH = 64  # rows; a batch of long reports must fit into memory
CLASSES = "ClassLabel"

Classes = Mapping[str, Sequence[str]]  # names of the classes of a column, by their numbers


def parquet_columns(file: Path) -> tuple[str, ...]:
    """DataError: it cannot be read, or has two columns of one name."""
    with _open_parquet(file) as table:
        names = tuple(table.schema_arrow.names)
    refuse_duplicates(names, file)
    return names


def parquet_rows(file: Path, wanted: Wanted) -> Iterator[tuple[int, Row]]:
    with _open_parquet(file) as table:
        names = _chosen(table.schema_arrow, wanted)
        batches = table.iter_batches(batch_size=ARROW_BATCH, columns=names)
        yield from enumerate(arrow_rows(batches, _classes(table.schema_arrow)), start=1)


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


def saved_files(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of a set that was saved there, as its state.json lists them. DataError."""
    state = folder / "state.json"
    try:
        found = json.loads(state.read_bytes())
        names = [entry["filename"] for entry in found["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    files = tuple(folder / name for name in names if isinstance(name, str))
    if not files or any(file.parent != folder or file.suffix != ".arrow" for file in files):
        raise DataError(f"{state} lists no .arrow files beside it; save the data set again")
    for file in files:
        check_regular(file)
    return files


def saved_columns(file: Path) -> tuple[str, ...]:
    """DataError: it cannot be read, or has two columns of one name."""
    with _open_saved(file) as table:
        names = tuple(table.schema.names)
    refuse_duplicates(names, file)
    return names


def saved_rows(file: Path, wanted: Wanted) -> Iterator[tuple[int, Row]]:
    with _open_saved(file) as table:
        names, classes = _chosen(table.schema, wanted), _classes(table.schema)
        batches = (
            batch.select(names).slice(start, ARROW_BATCH)
            for batch in table
            for start in range(0, batch.num_rows, ARROW_BATCH)
        )
        yield from enumerate(arrow_rows(batches, classes), start=1)


@contextmanager
def _open_saved(file: Path) -> Iterator[Any]:
    import pyarrow

    try:
        with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as table:
            yield table
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"{file} cannot be read as an Arrow stream ({type(error).__name__}); save the data set "
            "again"
        ) from None


def _chosen(schema: Any, wanted: Wanted) -> list[str]:
    return [name for name in schema.names if wanted is None or name in wanted]


def _classes(schema: Any) -> Classes:
    """As `datasets` writes them into the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == CLASSES
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def arrow_rows(batches: Iterable[Any], classes: Classes | None = None) -> Iterator[Row]:
    """The rows of Arrow record batches or tables; a cell that Python cannot hold spoils its row."""
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # not UTF-8, or such as a date beyond Python's years
            rows = [_arrow_row(batch, index) for index in range(batch.num_rows)]
        yield from (_named(row, classes) for row in rows) if classes else rows


def _named(row: Row, classes: Classes) -> Row:
    """The row with names of classes for their numbers; -1 is none."""
    if isinstance(row, str):
        return row
    for column, names in classes.items():
        number = row.get(column)
        if not isinstance(number, int):
            continue
        if not -1 <= number < len(names):
            return f"`{column}` is {number}, but there are {len(names)} classes"
        row[column] = names[number] if number >= 0 else None
    return row


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
