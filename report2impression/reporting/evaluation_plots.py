"""The sections of the evaluation page that show pictures: by group, distributions, lengths and
copying, faithfulness, training curves. Each is None where its figures were not computed.

One set of figures makes both the picture and the table beside it, so the two cannot disagree.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from report2impression.reporting import plots
from report2impression.reporting.pages import Block, Cell, Figure, Section, Table, Text, Value

METRICS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "rougeLsum_split": "ROUGE-Lsum, split",
    "bleu": "BLEU",
}
SYSTEMS = {
    "base": "base",
    "lora": "LoRA",
    "copy": "copy of the report",
    "lead": "first words",
    "most_frequent": "most frequent impression",
    "nearest_neighbour": "nearest training report",
    "extractive_oracle": "extractive oracle",
    "reference": "reference",
    "difference": "LoRA − base",
}
BREAKDOWNS = {
    "group": "group",
    "source_length": "length of the report",
    "duplicates": "copies of the report in training",
    "reference": "reference",
}
COMPARED = ("base", "lora", "reference")
Figures = Mapping[str, Any]
Series = Mapping[str, np.ndarray]
Parts = Mapping[str, Mapping[str, Cell]]  # by row, then by series


def readable(name: str) -> str:
    """A key for people."""
    return SYSTEMS.get(name, name.replace("_", " "))


def known_metrics(scores: Mapping[str, Any]) -> list[str]:
    return [name for name in METRICS if name in scores]


def with_interval(value: float | None, interval: Sequence[float] | None) -> Cell:
    return Value(value, *interval) if value is not None and interval else value


def forest(
    title: str,
    parts: Parts,
    *,
    head: str,
    xlabel: str,
    counts: Mapping[str, int] | None = None,
    zero: bool = False,
) -> Figure:
    """A picture and a table of means with intervals; `head` names the rows, `counts` their
    reports."""
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    rows = [
        plots.Row(
            f"{plots.label(part, 20)} ({counts[part]:,})" if counts else part,
            {readable(name): _ends(value) for name, value in values.items()},
        )
        for part, values in parts.items()
    ]
    alt = (
        f"{title}: means with intervals of {', '.join(map(readable, names))}; figures in the table."
    )
    columns = [head, *(["Reports"] if counts else []), *map(readable, names)]
    cells = [
        [part, *([counts[part]] if counts else []), *(values.get(name) for name in names)]
        for part, values in parts.items()
    ]
    return Figure(
        title,
        plots.forest(rows, alt=alt, xlabel=xlabel, zero=zero),
        Table(title, columns, cells),
    )


def _ends(value: Cell) -> tuple[float, float, float]:
    if isinstance(value, Value):
        mean, low, high = (math.nan if x is None else x for x in value)
        return mean, low, high
    return (float(value),) * 3 if isinstance(value, int | float) else (math.nan,) * 3


def breakdown_section(breakdown: Figures) -> Section | None:
    """ROUGE-L (or the first metric there is) by each way of dividing the reports."""
    blocks: list[Block] = []
    for key, parts in breakdown.items():
        if not parts:
            continue
        first = next(iter(parts.values()))["base"]
        metric = "rougeL" if "rougeL" in first else known_metrics(first)[0]
        title, name = BREAKDOWNS.get(key, readable(key)), METRICS[metric]
        for systems, caption in (
            (("base", "lora"), f"{name} by {title}"),
            (("difference",), f"LoRA − base, {name}, by {title}"),
        ):
            values = {
                part: {s: Value(*found[s][metric]) for s in systems if metric in found.get(s, {})}
                for part, found in parts.items()
            }
            if any(values.values()):
                zero = systems == ("difference",)
                blocks.append(
                    forest(
                        caption,
                        values,
                        head=title.capitalize(),
                        xlabel="points" if zero else "percent",
                        counts={part: found["n"] for part, found in parts.items()},
                        zero=zero,
                    )
                )
    if not blocks:
        return None
    text = (
        "Means with 95 % intervals; in brackets the number of reports: few reports, wide intervals."
    )
    return Section("Where it is better and worse", [Text(text), *blocks])


def _histogram(
    title: str, series: Series, *, xlabel: str, span: tuple[float, float] | None, note: str = ""
) -> list[Figure]:
    """One figure; none without values."""
    edges, shares = plots.binned({readable(n): v for n, v in series.items()}, span=span)
    if not shares:
        return []
    alt = f"{title}: histogram of {', '.join(shares)}; figures in the table."
    svg = plots.histogram(edges, shares, alt=alt, xlabel=xlabel)
    rows: list[list[Cell]] = [
        [f"{low:g} to {high:g}", *(float(share[i]) for share in shares.values())]
        for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]
    table = Table(f"{title}, % of reports", [xlabel, *shares], rows)
    return [Figure(title, svg, table, note)]


def distribution_section(per_report: Mapping[str, Series]) -> Section | None:
    """Scores of single reports; F1 in [0, 1] comes in, percent is shown."""
    blocks: list[Block] = []
    for metric in ("rouge1", "rougeL"):
        series = {
            name: 100 * np.asarray(per_report[name][metric], float)
            for name in ("lora", "base")
            if metric in per_report.get(name, {})
        }
        title = f"{METRICS[metric]} of single reports"
        blocks += _histogram(title, series, xlabel="percent", span=(0, 100))
    return Section("Distribution of the scores", blocks) if blocks else None


def length_section(describe: Figures, lengths: Series) -> Section | None:
    """Histograms of words, and what the outputs copy."""
    outputs = {name: lengths[name] for name in ("lora", "base", "reference") if name in lengths}
    source = {"report": lengths["source"]} if "source" in lengths else {}
    note = "The last bin holds all that is longer."
    blocks: list[Block] = [
        *_histogram("Length of the impressions", outputs, xlabel="words", span=None, note=note),
        *_histogram("Length of the reports", source, xlabel="words", span=None, note=note),
    ]
    if describe:
        blocks += _copying(describe)
    return Section("Lengths and copying", blocks) if blocks else None


def _copying(describe: Figures) -> list[Block]:
    shares = {"copy_rate": "copied words", "novel_bigrams": "new word pairs"}
    values = {
        text: {name: describe[name][key] for name in COMPARED if key in describe.get(name, {})}
        for key, text in shares.items()
    }
    columns = {
        "words_mean": "Words, mean",
        "words_median": "Words, median",
        "copy_rate": "Copied words, %",
        "novel_bigrams": "New word pairs, %",
        "empty": "Empty",
        "equal_to_source": "Equal to the report",
    }
    rows = [[readable(name), *(x.get(key) for key in columns)] for name, x in describe.items()]
    table = Table("The impressions in figures", ["System", *columns.values()], rows)
    if not any(values.values()):
        return [table]
    figure = forest("Copying from the report", values, head="Share", xlabel="percent")
    text = (
        "Copied words stand in the report too; new word pairs do not. A system far above the "
        "reference in copying repeats the report instead of concluding."
    )
    return [Text(text), figure, table]


def faithfulness_section(checks: Figures) -> Section | None:
    """Unsupported statements per 100 impressions, by check; the reference is the noise floor."""
    if not checks:
        return None
    values = {
        readable(check): {
            name: with_interval(found[name]["per_100"], found[name].get("interval"))
            for name in COMPARED
            if name in found
        }
        for check, found in checks.items()
    }
    text = (
        "A statement is unsupported if the report does not carry its measurement, side, level, "
        "negation and so on. The radiologist’s reference has such statements too (priors, history, "
        "the images): its rate is the noise floor."
    )
    title = "Impressions with an unsupported statement, per 100"
    figure = forest(title, values, head="Check", xlabel="impressions per 100")
    return Section("Faithfulness to the report", [Text(text), figure])


def _curve(rows: Sequence[Figures], key: str, *, thin: bool = False) -> plots.Line | None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and "step" in row]
    return plots.Line([x for x, _ in points], [y for _, y in points], thin) if points else None


def training_section(curves: Sequence[Figures]) -> Section | None:
    """Losses and learning rate from the rows of metrics.jsonl."""
    steps = [row for row in curves if row.get("kind") == "step"]
    epochs = [row for row in curves if row.get("kind") == "epoch"]
    found = {
        "training": _curve(epochs, "training_loss"),
        "validation": _curve(epochs, "validation_loss"),
        "training, steps": _curve(steps, "loss", thin=True),
    }
    losses = {name: line for name, line in found.items() if line}
    if not losses:
        return None
    skip = {"kind", "step", "epoch"}
    names = list(dict.fromkeys(name for row in epochs for name in row if name not in skip))
    table = Table(
        "Figures by epoch",
        ["Epoch", "Step", *map(readable, names)],
        [[f"{row.get('epoch')}", row.get("step"), *map(row.get, names)] for row in epochs],
        digits=4,
    )
    axes = {"xlabel": "optimizer step", "ylabel": "nats per label token"}
    alt = "Training and validation loss over optimizer steps; epochs in the table."
    blocks: list[Block] = [Figure("Loss", plots.lines(losses, alt=alt, **axes), table)]
    if rate := _curve(steps, "lr"):
        ends = {"first": rate.y[0], "highest": max(rate.y), "last": rate.y[-1]}
        rows = [[name, f"{value:.2e}"] for name, value in ends.items()]
        table = Table("Learning rate", ["Step", "Rate"], rows)
        alt = "Learning rate over optimizer steps: " + ", ".join(map(" ".join, rows))
        svg = plots.lines({"rate": rate}, alt=alt, xlabel="optimizer step", ylabel="learning rate")
        blocks.append(Figure("Learning rate", svg, table))
    return Section("Training", blocks)
