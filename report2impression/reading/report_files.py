"""Folders of whole reports, a .txt file each, in subfolders or not.

The id is the file's name, with its subfolders where there are some ("p10/s5"); a subfolder that is
named like MIMIC-CXR's patients ("p10000032") gives the patient.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report2impression.reading.hl7 import from_hl7
from report2impression.reading.rows import MAX_LINE_BYTES, PlacedRow, Row, Table, told
from report2impression.reading.sections import (
    NAMES,
    chosen,
    find_sections,
    texts_in,
    unknown_headings,
)

LEAST = 5  # reports in which words recur that may be told: then they are no report's own text
MANY_LACKING = 0.1  # share of reports
MOST_TITLES = 10_000  # different ones that are counted
SHOWN = 5
_PATIENT = re.compile(r"p\d{8}")


def report_files(folder: Path) -> Iterator[Path]:
    """All .txt files below a folder, in the order of their names, folder by folder."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        reports = [name for name in [*files, *folders] if name.lower().endswith(".txt")]
        yield from (Path(place) / name for name in sorted(reports))


def open_reports(folder: Path) -> Table:
    """The reports as a table of their sections."""
    return _Reports(folder).table()


class _Reports:
    """The reports of a folder, and what was seen at their last reading."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        first = next(report_files(folder), folder)
        self._has_patients = bool(_PATIENT.fullmatch(first.parent.name))
        is_flat = first.parent == folder
        self._name = f"{folder.name}/*.txt" if is_flat else f"{folder.name}/**/*.txt"
        self._clear()

    def table(self) -> Table:
        columns = ("id", *NAMES, *(("patient",) if self._has_patients else ()))
        return Table(self._name, "txt", columns, lambda _: self._rows(), self._notes)

    def _clear(self) -> None:
        self._n = self._n_several = self._n_lacking = self._n_instead = 0
        self._titles: Counter[str] = Counter()

    def _rows(self) -> Iterator[PlacedRow]:
        self._clear()
        for file in report_files(self._folder):
            name = file.relative_to(self._folder).as_posix()
            self._n += 1
            yield f"{self._folder.name}/{name}", 0, self._row(file, name)

    def _row(self, file: Path, name: str) -> Row:
        report = read_report(file)
        if isinstance(report, ValueError):
            return str(report)
        report = from_hl7(report)
        sections = find_sections(report)
        every = texts_in(report, sections)
        self._n_several += len(every.get("impression", ())) > 1
        self._n_instead += any(section.instead for section in sections)
        if not {"findings", "impression"} <= every.keys():
            self._n_lacking += 1
            titles = unknown_headings(report)
            if len(self._titles) < MOST_TITLES:
                self._titles.update(titles)
        row: dict[str, Any] = {"id": name[: -len(file.suffix)]} | chosen(every)
        if self._has_patients and _PATIENT.fullmatch(file.parent.name):
            row["patient"] = file.parent.name
        return row

    def _notes(self) -> list[str]:
        notes = []
        if self._n_several:
            notes.append(
                f"{self._name}: {self._n_several:,} of {self._n:,} reports have several "
                "impressions; the last one counts"
            )
        if self._n_instead:
            notes.append(
                f"{self._name}: {self._n_instead:,} of {self._n:,} reports have no findings "
                "heading; what stands before the impression was taken (report2impression sections "
                "shows it)"
            )
        ranked = sorted(self._titles.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        recurring = [(title, n) for title, n in ranked if n >= LEAST]
        if recurring and self._n_lacking >= MANY_LACKING * self._n:
            named = ", ".join(f"{title} ({n:,})" for title, n in recurring)
            notes.append(
                f"{self._name}: {self._n_lacking:,} of {self._n:,} reports lack findings or "
                f"impression; headings that are not known: {named}; rename those that mean "
                "FINDINGS or IMPRESSION"
            )
        return notes


def read_report(file: Path) -> str | ValueError:
    """The report, or why it cannot be read. DataError: the disk."""
    if not os.path.isfile(file):
        return ValueError("not a regular file")
    with told(file), open(file, "rb") as stream:
        return decoded(stream.read(MAX_LINE_BYTES + 1))


def decoded(data: bytes) -> str | ValueError:
    """A report's bytes as text, or why they are none."""
    if len(data) > MAX_LINE_BYTES:
        return ValueError("the report is longer than 100 MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ValueError("the report is not UTF-8")
