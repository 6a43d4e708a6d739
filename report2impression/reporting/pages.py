"""Tables, figures and cases -> one self-contained HTML page that opens offline.

The idea: a page is data. `Page` holds sections, a section holds blocks (`Text`, `Table`, `Figure`,
`Findings`, `Cases`), and one template (templates/page.html.j2, page.css inside it) gives them all
the same look: light and dark, phone and desk, keyboard and screen reader. There is no script, and
a content security policy forbids any; every text is escaped, and characters that could hide or
turn it are shown as a replacement character. The only markup let through is `Markup`, which
`plots` makes.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report2impression.program.errors import ConfigError
from report2impression.program.unseen import HIDDEN

TEMPLATES = Path(__file__).with_name("templates")
SEVERITIES = ("problem", "warning", "note")


def printable(text: str) -> str:
    """The text with each hidden or direction-turning character as U+FFFD."""
    return HIDDEN.sub("\ufffd", text)


class Value(NamedTuple):
    """A figure and its interval, shown below it."""

    value: float
    low: float
    high: float


class P(NamedTuple):
    """A p value."""

    p: float | None


class Heading(NamedTuple):
    """A row that names the rows below it."""

    text: str


Cell = str | int | float | Value | P | None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its header. Floats get `digits` decimals, None
    and what is not finite a dash."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell] | Heading]
    digits: int = 1
    note: str = ""
    strong: str = ""  # the row with this header stands out
    folded: bool = False  # closed until asked for

    @property
    def is_text(self) -> list[bool]:
        """Which columns hold words: those are set left, figures right."""
        rows = [row for row in self.rows if not isinstance(row, Heading)]
        return [
            index == 0 or any(isinstance(row[index], str) for row in rows)
            for index in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Figure:
    """A picture by `plots` (its label says what it shows) and the same figures as a table."""

    title: str
    svg: Markup
    table: Table
    note: str = ""


class Finding(NamedTuple):
    """Something to act on: one of SEVERITIES, what was found, and what to do about it."""

    severity: str
    title: str
    text: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Findings:
    """Findings, the gravest first."""

    items: Sequence[Finding]

    @property
    def ordered(self) -> list[Finding]:
        return sorted(self.items, key=lambda item: SEVERITIES.index(item.severity))


class Run(NamedTuple):
    """Words marked alike: kind is "", "source", "unsupported" or "omitted"; `tag` says more."""

    text: str
    kind: str = ""
    tag: str = ""


class Passage(NamedTuple):
    """A titled text of a case."""

    title: str
    runs: Sequence[Run]


class CaseView(NamedTuple):
    """One case: a heading, texts over the whole width, and columns of texts beside each other."""

    heading: str
    passages: Sequence[Passage]
    columns: Sequence[tuple[str, Sequence[Passage]]]
    is_open: bool = False


@dataclass(frozen=True)
class Cases:
    """Cases to unfold, after the legend of their marks."""

    items: Sequence[CaseView]


Block = Text | Table | Figure | Findings | Cases


@dataclass(frozen=True)
class Section:
    """A chapter; neighbouring figures share a row where the screen is wide enough."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def runs(self) -> list[list[Block]]:
        """The blocks; figures that follow one another together."""
        found: list[list[Block]] = []
        for block in self.blocks:
            if found and isinstance(block, Figure) and isinstance(found[-1][-1], Figure):
                found[-1].append(block)
            else:
                found.append([block])
        return found


@dataclass(frozen=True)
class Page:
    """A whole page: `lead` is its message in a sentence, `notice` says how it may be passed on
    and stands out where `is_sensitive`."""

    title: str
    sections: Sequence[Section]
    lead: str = ""
    notice: str = ""
    is_sensitive: bool = False


def number(value: float | int, digits: int = 1) -> str:
    """A figure for people: thousands apart, a true minus, a dash for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "–"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    if shown.startswith("-") and not shown.strip("-0.,"):
        shown = shown[1:]  # no minus nought
    return shown.replace("-", "\u2212")


def probability(p: float | None) -> str:
    """A p value; None is a dash."""
    if p is None or not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell(value: Cell, digits: int) -> str:
    """What a table shows of a value; the interval of a `Value` is the template's."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, P):
        return probability(value.p)
    return number(value.value if isinstance(value, Value) else value, digits)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda x: x if isinstance(x, Markup) or not isinstance(x, str) else printable(x),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=cell, number=number)
    environment.tests.update(
        text=lambda x: isinstance(x, Text),
        table=lambda x: isinstance(x, Table),
        figure=lambda x: isinstance(x, Figure),
        findings=lambda x: isinstance(x, Findings),
        cases=lambda x: isinstance(x, Cases),
        heading=lambda x: isinstance(x, Heading),
        value=lambda x: isinstance(x, Value),
    )
    return environment


def render(page: Page) -> str:
    """The page as one HTML document; the same page always gives the same bytes."""
    return _environment().get_template("page.html.j2").render(page=page)


def write_page(path: Path, html: str) -> None:
    """Write the page whole or not at all. Raises ConfigError if it cannot be written."""
    temporary = path.with_name(f"{path.name}.partial")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write {path}: {reason}; give another folder") from None
