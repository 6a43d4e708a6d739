"""What is handed in: rows, texts or columns -> reports, each with its findings or why it has none.

A column of findings is taken as it is, as in training. Another text is cut at its headings
(reading/sections); one that has none is findings already, one that has others but no findings gets
no impression: nothing is made up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report2impression.extracting.options import Sections
from report2impression.program.unseen import has_ink
from report2impression.reading.pairs import cell_problem, to_mark
from report2impression.reading.sections import NAMES, find_sections, places_of, texts_of

FINDINGS = ("prompt", "findings")  # as they are
WHOLE = ("report", "text")
IMPRESSIONS = ("impressions", "impression", "summary")
MOST = 2**20  # characters of a report: 200 times the longest that anybody dictates


@dataclass(frozen=True)
class Report:
    """A text, or why it cannot be read."""

    id: str
    text: str = ""
    group: str | None = None
    problem: str = ""
    as_is: bool = False  # by its column: nothing to cut
    source: str | None = None  # of an impression that is there already: its findings


@dataclass(frozen=True)
class Columns:
    """Which column is what: the first of `as_is` and `whole` that is there."""

    as_is: Sequence[str] = FINDINGS
    whole: Sequence[str] = WHOLE
    sources: Sequence[str] = ()
    asked: str | None = None  # the user's word
    id: str = "id"
    group: str = "group"

    def of(self, names: Mapping[str, Any] | Sequence[str]) -> str | None:
        """The report's column among those that are there."""
        known = (self.asked,) if self.asked else (*self.as_is, *self.whole)
        return next((name for name in known if name in names), None)

    def report(self, row: Mapping[str, Any] | str, default_id: str) -> Report:
        """Of a row of cells, or of the reason why there are none."""
        if isinstance(row, str):
            return Report(default_id, problem=row)
        marks = [to_mark(row.get(name)) for name in (self.id, self.group)]
        for column, mark in zip((self.id, self.group), marks, strict=True):
            if problem := cell_problem(mark, may_be_empty=True):
                return Report(default_id, problem=f"`{column}` {problem}")
        number, group = marks[0] or default_id, marks[1] or None
        name = self.of(row)
        if name is None:
            wanted = self.asked or " or ".join((*self.as_is, *self.whole))
            return Report(number, group=group, problem=f"there is no column {wanted}")
        source = next((row[n] for n in self.sources if n != name and n in row), None)
        texts: tuple[tuple[str, Any], ...] = ((name, row[name]), ("the source", source or ""))
        for column, cell in texts:
            if problem := text_problem(cell):
                return Report(number, group=group, problem=f"`{column}` {problem}")
        return Report(number, row[name], group, as_is=name in self.as_is, source=source)


def text_problem(text: Any) -> str:
    """Why a cell is no text of a report; an empty one is."""
    if text is None or text != text:  # NaN, which pandas writes for a missing cell
        return "is missing"
    problem = cell_problem(text, may_be_empty=True)
    if not problem and len(text) > MOST:
        return f"has {len(text):,} characters, {MOST:,} are allowed"
    return problem


def findings_of(report: Report, how: Sections) -> tuple[str, Callable[[], list[int]]] | None:
    """The findings and where each of their characters stands in the text; None: there are none."""
    text = report.text
    if not has_ink(text):
        return None
    if how == "cut" or (how == "auto" and not report.as_is):
        parts = texts_of(text)
        if "findings" in parts:
            return parts["findings"], lambda: places_of(text, "findings")
        headings = {section.name for section in find_sections(text)}
        if how == "cut" or headings & {*NAMES, "examination"}:
            return None
    start = len(text) - len(text.lstrip())
    stripped = text.strip()
    return stripped, lambda: list(range(start, start + len(stripped)))
