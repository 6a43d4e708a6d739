"""Figures -> pictures with their tables: matplotlib draws, the page's style sheet paints.

Colours are stand-ins that become CSS variables, so one picture serves the light and the dark
page; text stays text, in the page's own font. Series differ in line and marker, never in colour
alone. One set of figures makes both the picture and the table beside it, so the two cannot
disagree. The same figures always give the same bytes: no date, no random id.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from report2impression.reporting.pages import Cell, printable

BINS = 25  # of a histogram
FEW = 20  # reports; a bootstrap of fewer gives intervals that are too narrow
WIDTH = 4.4  # inches: legible when a phone shows the picture over its whole width
PAINT = ("ink", "line", "lora", "base", "reference", "other")  # variables of page.css
INK, GRID, LORA, BASE, REFERENCE, OTHER = (f"#00000{digit}" for digit in range(1, 7))
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # measures; page.css gives the page's own
    "font.size": 9.5,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a label is a dollar
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


class Look(NamedTuple):
    """How a series is told apart."""

    color: str
    marker: str
    line: Any


BY_NAME = {
    "base": Look(BASE, "s", (0, (4, 2))),
    "lora": Look(LORA, "o", "-"),
    "reference": Look(REFERENCE, "D", (0, (1, 1.2))),
}
BY_POSITION = (
    BY_NAME["lora"],
    BY_NAME["base"],
    BY_NAME["reference"],
    Look(OTHER, "^", (0, (5, 1.5, 1, 1.5))),
)


class Picture(NamedTuple):
    """A picture and the same figures as a table."""

    title: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    digits: int = 1
    note: str = ""


class Line(NamedTuple):
    """A curve; `thin` for the many noisy points behind others."""

    x: Sequence[float]
    y: Sequence[float]
    thin: bool = False


def look(name: str, position: int) -> Look:
    return BY_NAME.get(name.lower(), BY_POSITION[position % len(BY_POSITION)])


def label(text: str, most: int = 30) -> str:
    """One printable line of at most `most` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def forest(
    title: str,
    parts: Mapping[str, Mapping[str, Cell]],
    *,
    head: str,
    xlabel: str,
    counts: Mapping[str, int] | None = None,
    zero: bool = False,
) -> Picture:
    """Means (or (mean, low, high)) by part and series, a row each; `head` names the parts,
    `counts` their reports; `zero` draws the line of no difference."""
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    of_part = [[counts[part]] if counts else [] for part in parts]
    rows = [
        [part, *n, *map(values.get, names)]
        for (part, values), n in zip(parts.items(), of_part, strict=True)
    ]
    alt = f"{title}: means with intervals of {', '.join(names)}; figures in the table."
    with _axes(alt, 0.9 + (0.2 + 0.12 * max(2, len(names))) * len(parts)) as axes:
        axes.grid(axis="x")
        for position, name in enumerate(names):
            shape, shift = look(name, position), 0.22 * (position - (len(names) - 1) / 2)
            at = [(y, _ends(v[name])) for y, v in enumerate(parts.values()) if name in v]
            mean, *ends = np.array([ends for _, ends in at]).T
            axes.errorbar(
                mean,
                [y + shift for y, _ in at],
                xerr=np.abs(ends - mean),
                fmt=shape.marker,
                color=shape.color,
                markersize=4,
                linewidth=1.6,
                label=label(name),
            )
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        shown = [f"{label(part, 20)} ({counts[part]:,})" if counts else part for part in parts]
        axes.set_yticks(range(len(parts)), [label(part) for part in shown])
        axes.set(xlabel=label(xlabel, 70), ylim=(len(parts) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        svg = _finish(axes, alt)
    columns = [head, *(["Reports"] if counts else []), *names]
    few = [label(part, 20) for part, n in (counts or {}).items() if n < FEW]
    note = f"Fewer than {FEW} reports show little, however short the bar: {', '.join(few)}."
    return Picture(title, svg, columns, rows, title, note=note if few else "")


def _ends(value: Cell) -> tuple[float, ...]:
    if isinstance(value, tuple):
        return tuple(math.nan if x is None else x for x in value)
    return (float(value),) * 3 if isinstance(value, int | float) else (math.nan,) * 3


def binned(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    span: tuple[float, float] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges (BINS + 1,) and the share (percent) of each series in each bin.

    Without a span, the bins reach to the 99th percentile and the last one takes what is beyond.
    """
    arrays = {name: np.asarray(values, float) for name, values in series.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if values.size}
    if span is None:
        pooled = np.concatenate([*arrays.values(), [0.0]])
        top = float(np.percentile(pooled, 99))
        step = max(1, -(-top // BINS))  # whole numbers, as these are counts
        span = 0.0, float(BINS * step)
    edges = np.linspace(*span, BINS + 1)
    return edges, {
        name: 100 * np.histogram(np.clip(values, *span), edges)[0] / values.size
        for name, values in arrays.items()
    }


def histogram(
    title: str,
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    xlabel: str,
    span: tuple[float, float] | None = None,
    of: str = "reports",
    note: str = "",
) -> list[Picture]:
    """Outlines over common bins, the first series also filled; none without values."""
    edges, shares = binned(series, span=span)
    if not shares:
        return []
    alt = f"{title}: histogram of {', '.join(shares)}; figures in the table."
    with _axes(alt) as axes:
        axes.grid(axis="y")
        for position, (name, share) in enumerate(shares.items()):
            color, _, line = look(name, position)
            if position == 0:
                axes.stairs(share, edges, fill=True, color=color, alpha=0.18)
            axes.stairs(share, edges, color=color, linestyle=line, linewidth=1.6, label=label(name))
        axes.set(xlabel=label(xlabel, 70), ylabel=f"% of {of}", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        svg = _finish(axes, alt)
    rows: list[list[Cell]] = [
        [f"{low:g} to {high:g}", *(float(share[i]) for share in shares.values())]
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]
    return [Picture(title, svg, [xlabel, *shares], rows, f"{title}, % of {of}", note=note)]


def lines(curves: Mapping[str, Line], *, alt: str, xlabel: str, ylabel: str) -> Markup:
    """Curves over a common axis. Of long ones every k-th point is drawn."""
    with _axes(alt) as axes:
        axes.grid()
        for position, (name, line) in enumerate(curves.items()):
            shape, every = look(name, position), max(1, len(line.x) // 1000)
            axes.plot(
                line.x[::every],
                line.y[::every],
                color=shape.color,
                linestyle="-" if line.thin else shape.line,
                linewidth=0.8 if line.thin else 1.6,
                marker=shape.marker if len(line.x) <= 30 and not line.thin else "",
                markersize=4,
                alpha=0.6 if line.thin else 1,
                label=label(name),
            )
        axes.set(xlabel=label(xlabel, 70), ylabel=ylabel)
        return _finish(axes, alt)


def prepare() -> None:
    """What takes a second at the first picture."""
    with _axes("") as axes:
        _finish(axes, "")


@contextmanager
def _axes(alt: str, height: float = 2.9) -> Iterator[Any]:
    """A place to draw on; its ids, hashed with `alt`, are no other picture's."""
    import matplotlib  # a second to load
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": printable(alt)}):
        yield Figure(figsize=(WIDTH, height), layout="constrained").add_subplot()


def _finish(axes: Any, alt: str) -> Markup:
    """The drawing as matplotlib writes it (every text escaped), with `alt` as its label, painted,
    and without the names of its groups, which all pictures share."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.figure.legend(loc="outside upper left", ncols=3, borderpad=0, handlelength=2.4)
    file = io.StringIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():  # a glyph our font lacks: the reader's browser draws the text
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        axes.figure.savefig(file, format="svg", metadata=none)
    svg = file.getvalue().partition("<svg ")[2].replace('<g id="', '<g class="')
    svg = re.sub(r"(?<=: )#00000(\d)", lambda found: f"var(--{PAINT[int(found[1]) - 1]})", svg)
    return Markup(f'<svg role="img" aria-label="{escape(printable(alt))}" {svg}')
