"""Where a split of a folder lies: in one file, in a pair of .tok files, or in a folder of reports.

    DIR/train.jsonl | .csv | .tsv (each also .gz or .zst) | .parquet
    DIR/train.findings.tok + DIR/train.impression.tok       one text per line; "validate" counts too
    DIR/train/*.txt                                         whole reports with section headings
    DIR/GROUP/train.findings.tok + ...                      several groups; only if nothing else is

In .tok files a blank line is a text like others: dropping it would pair all later lines wrongly.
"""

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.rows import (
    ENDINGS,
    MAX_LINE_BYTES,
    NOT_UTF8,
    TOO_LONG,
    PlacedRow,
    Row,
    Table,
    check_regular,
    lines,
    open_table,
    told,
)
from report2impression.reading.sections import NAMES, texts_of

TOK_NAMES = {"train": ("train",), "validation": ("validate", "validation"), "test": ("test",)}
FINDINGS, IMPRESSION = ".findings.tok", ".impression.tok"


def find_split(folder: Path, split: str) -> Path:
    """What holds the split: a file, the findings' .tok file, a folder of .txt, or, for groups of
    .tok files, the folder itself."""
    names = [f"{split}.{ending}" for ending in ENDINGS]
    names += [name + FINDINGS for name in TOK_NAMES[split]]
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    if next((folder / split).glob("*.txt"), None):
        found.append(folder / split)
    if len(found) > 1:
        raise ConfigError(
            f"{folder}: {' and '.join(f.name for f in found)} are both there; keep one of them"
        )
    if found:
        return found[0]
    if _groups(folder, split):
        return folder
    raise DataError(
        f"{folder}: none of {split}.jsonl, {split}.csv, {split}.tsv (also .gz, .zst), "
        f"{split}.parquet, {split}{FINDINGS}, {split}/*.txt is there; add one, or point "
        "`--data.path` to the folder that holds it"
    )


def open_split(folder: Path, split: str) -> Table:
    """The split of the folder as a table. DataError: missing or unreadable; ConfigError: twice."""
    found = find_split(folder, split)
    if found == folder:
        files = _groups(folder, split)
        names: tuple[str, ...] = ("findings", "impression", "group")
        return Table(f"*/{files[0].name}", "tok", names, lambda _: _grouped(files))
    if found.name.endswith(FINDINGS):
        names = ("findings", "impression")
        return Table(found.name, "tok", names, lambda _: _tok_rows(found, found.name))
    if found == folder / split:
        return Table(f"{split}/*.txt", "txt", ("id", *NAMES), lambda _: _report_rows(found))
    return open_table(found)


# ---- .tok: line n of one file belongs to line n of the other


def _groups(folder: Path, split: str) -> list[Path]:
    """The findings' files of the subfolders."""
    return sorted(file for name in TOK_NAMES[split] for file in folder.glob(f"*/{name}{FINDINGS}"))


def _grouped(files: list[Path]) -> Iterator[PlacedRow]:
    for file in files:
        group = file.parent.name
        for place, number, row in _tok_rows(file, f"{group}/{file.name}"):
            yield place, number, row if isinstance(row, str) else row | {"group": group}


def _tok_rows(findings: Path, name: str) -> Iterator[PlacedRow]:
    impression = findings.with_name(findings.name.removesuffix(FINDINGS) + IMPRESSION)
    both = zip_longest(_separated(findings), _separated(impression))
    for number, (prompt, answer) in enumerate(both, start=1):
        if prompt in (b"", None) and answer in (b"", None):
            return
        if prompt is None or answer is None:
            raise DataError(
                f"{findings} and {impression.name} differ in their number of lines from line "
                f"{number} on: line n of one must belong to line n of the other"
            )
        yield f"{name} line", number, _tok_row(prompt, answer)


def _separated(file: Path) -> Iterator[bytes | str]:
    """The lines, at the end b"" if the last one ends: `corpora.mimic_iii` puts the LF between the
    texts, others behind each, so that only the other file tells whether an empty text follows."""
    check_regular(file)
    line: bytes | None = b""
    with told(file):
        for _, line in lines(file):
            yield TOO_LONG if line is None else line
    if not line or line.endswith(b"\n"):
        yield b""


def _tok_row(*sides: bytes | str) -> Row:
    cells = {}
    for column, side in zip(("findings", "impression"), sides, strict=True):
        if isinstance(side, str):
            return side
        try:
            cells[column] = side.decode("utf-8")
        except UnicodeDecodeError:
            return NOT_UTF8
    return cells


# ---- .txt: a report each


def _report_rows(folder: Path) -> Iterator[PlacedRow]:
    for file in sorted(folder.glob("*.txt")):
        yield f"{folder.name}/{file.name}", 0, _report(file)


def _report(file: Path) -> Row:
    """Its sections (reading.sections) by name, and its file's name as id."""
    if not os.path.isfile(file):
        return "not a regular file"
    with told(file), open(file, "rb") as stream:
        data = stream.read(MAX_LINE_BYTES + 1)
    if len(data) > MAX_LINE_BYTES:
        return "the report is longer than 100 MB"
    try:
        texts = texts_of(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "the report is not UTF-8"
    return {"id": file.stem} | texts
