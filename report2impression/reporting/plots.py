"""Figures -> inline SVG: matplotlib draws, the page's style sheet paints.

Colours are stand-ins that become CSS variables, so one picture serves the light and the dark
page; text stays text, in the page's own font. Series differ in line and marker, never in colour
alone. The same figures always give the same bytes: no date, no random id.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from report2impression.reporting.pages import printable

WIDTH = 4.4  # inches: legible when a phone shows the picture over its whole width
INK, GRID, LORA, BASE, REFERENCE, OTHER = (f"#00000{digit}" for digit in range(1, 7))
PAINT = {
    INK: "var(--ink)",
    GRID: "var(--line)",
    LORA: "var(--lora)",
    BASE: "var(--base)",
    REFERENCE: "var(--reference)",
    OTHER: "var(--other)",
}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "report2impression",
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
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


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


class Row(NamedTuple):
    """A line of a forest plot: (mean, low, high) by series; no values: a heading."""

    label: str
    values: Mapping[str, tuple[float, float, float]]


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


def forest(rows: Sequence[Row], *, alt: str, xlabel: str, zero: bool = False) -> Markup:
    """Means with intervals, a row each; `zero` draws the line of no difference."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    with _style():
        canvas, axes = _canvas(0.9 + (0.2 + 0.12 * max(2, len(names))) * len(rows))
        axes.grid(axis="x")
        for position, name in enumerate(names):
            shape, shift = look(name, position), 0.22 * (position - (len(names) - 1) / 2)
            at = [(y, row.values[name]) for y, row in enumerate(rows) if name in row.values]
            mean = np.array([value[0] for _, value in at])
            ends = np.array([value[1:] for _, value in at]).T
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
        ticks = axes.set_yticks(range(len(rows)), [label(row.label) for row in rows])
        for tick, row in zip(ticks, rows, strict=True):
            if not row.values:
                tick.label1.set_fontweight("bold")
        axes.set(xlabel=label(xlabel, 70), ylim=(len(rows) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        return _finish(canvas, alt, legend=len(names) > 1)


def binned(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    n: int = 25,
    span: tuple[float, float] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges (n + 1,) and the share (percent) of each series in each bin, for `histogram`.

    Without a span, the bins reach to the 99th percentile and the last one takes what is beyond.
    """
    arrays = {name: np.asarray(values, float) for name, values in series.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if values.size}
    if span is None:
        pooled = np.concatenate([*arrays.values(), [0.0]])
        top = float(np.percentile(pooled, 99))
        step = max(1, -(-top // n))  # whole numbers, as these are counts
        span = (0.0, float(n * step)) if top else (0.0, float(n))
    edges = np.linspace(*span, n + 1)
    return edges, {
        name: 100 * np.histogram(np.clip(values, *span), edges)[0] / values.size
        for name, values in arrays.items()
    }


def histogram(
    edges: np.ndarray,
    shares: Mapping[str, np.ndarray],
    *,
    alt: str,
    xlabel: str,
    ylabel: str = "% of reports",
) -> Markup:
    """Outlines over common bins, the first series also filled."""
    with _style():
        canvas, axes = _canvas(2.9)
        axes.grid(axis="y")
        for position, (name, share) in enumerate(shares.items()):
            shape = look(name, position)
            if position == 0:
                axes.stairs(share, edges, fill=True, color=shape.color, alpha=0.18)
            axes.stairs(
                share,
                edges,
                color=shape.color,
                linestyle=shape.line,
                linewidth=1.6,
                label=label(name),
            )
        axes.set(xlabel=label(xlabel, 70), ylabel=ylabel, xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        return _finish(canvas, alt, legend=len(shares) > 1)


def lines(curves: Mapping[str, Line], *, alt: str, xlabel: str, ylabel: str) -> Markup:
    """Curves over a common axis. Of long ones every k-th point is drawn."""
    with _style():
        canvas, axes = _canvas(2.9)
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
        return _finish(canvas, alt, legend=len(curves) > 1)


def _style() -> AbstractContextManager[None]:
    import matplotlib  # a second to load

    return matplotlib.rc_context(STYLE)


def _canvas(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    return canvas, canvas.add_subplot()


def _finish(canvas: Any, alt: str, *, legend: bool) -> Markup:
    """The drawing as an SVG element that carries `alt` as its label."""
    if legend:
        canvas.legend(loc="outside upper left", ncols=3, borderpad=0, handlelength=2.4)
    file = io.BytesIO()
    none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():  # a glyph our font lacks: the reader's browser draws the text
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.savefig(file, format="svg", metadata=none)
    return _inline(file.getvalue(), alt)


def _inline(svg: bytes, alt: str) -> Markup:
    """matplotlib's file as an element of a page: no prologue, comments, style sheet or size of its
    own; ids that no other picture has. Parsed and written anew, so that every text is escaped."""
    root = ElementTree.fromstring(svg)
    prefix = "p" + hashlib.sha256(svg + alt.encode("utf-8", "replace")).hexdigest()[:8]
    used = set(
        re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values()))
    )
    for element in root.iter():
        if element.text and not element.text.strip():
            element.text = None
        element.tail = None
        for child in [c for c in element if c.tag in {f"{{{SVG}}}style", f"{{{SVG}}}metadata"}]:
            element.remove(child)
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}{value}")
            elif name in {"clip-path", f"{{{XLINK}}}href"}:
                element.set(name, value.replace("#", f"#{prefix}"))
            elif name == "style":
                value = re.sub(r"#00000\d", lambda found: PAINT[found[0]], value)
                element.set(name, re.sub(r"font-family: [^;]*; ", "", value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", printable(alt))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
