"""What every page of ours shares: one self-contained HTML file that opens offline.

A page is a Jinja template (templates/*.html.j2) made of the macros of templates/parts.html.j2,
with page.css inside: light and dark, phone and desk, keyboard and screen reader. There is no
script, and a content security policy forbids any; every text is escaped, and characters that could
hide or turn it are shown as a replacement character. The only markup let through is `Markup`, which
`plots` makes.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report2impression.program.errors import ConfigError
from report2impression.program.files import write_file
from report2impression.program.unseen import HIDDEN

TEMPLATES = Path(__file__).with_name("templates")


class P(float):
    """A p value."""


Cell = str | float | tuple[float, float, float] | None  # the tuple: a figure and its interval


def printable(text: str) -> str:
    """The text with each hidden or direction-turning character as U+FFFD."""
    return HIDDEN.sub("\ufffd", text)


def number(value: float | None, digits: int = 1) -> str:
    """A figure for people: thousands apart, a true minus, a dash for None and what is not
    finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, P):
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    if shown.startswith("-") and not shown.strip("-0.,"):
        shown = shown[1:]  # no minus nought
    return shown.replace("-", "\u2212")


def has_words(rows: Sequence[Sequence[Cell] | str], column: int) -> bool:
    """Whether a column holds words: those are set left, figures right. A row that is a text names
    the rows below it."""
    own = [row[column] for row in rows if not isinstance(row, str)]
    return column == 0 or any(isinstance(cell, str) for cell in own)


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
    environment.filters.update(number=number, has_words=has_words)
    return environment


def render(template: str, **content: Any) -> str:
    """The page as one HTML document; the same content always gives the same bytes."""
    return _environment().get_template(template).render(content)


def write_page(path: Path, html: str) -> None:
    """Write the page whole or not at all. Raises ConfigError if it cannot be written."""
    try:
        write_file(path, html.encode())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write {path}: {reason}; give another folder") from None
