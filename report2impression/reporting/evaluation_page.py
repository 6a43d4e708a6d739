"""The figures of an evaluation -> the page that shows them: scores with intervals, groups,
lengths and copying, training curves, faithfulness, cases, configuration and provenance.

The words of the page stand in templates/evaluation.html.j2; here are the rows and the pictures.
`figures` are the content of scores.json. No report text gets in but through `Case.texts`, which the
caller fills on request only; then the page says so at its top.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from report2impression.reporting import pages, plots
from report2impression.reporting.pages import Cell, P
from report2impression.reporting.plots import Picture
from report2impression.reporting.word_diff import Mark, Run, omitted_runs, output_runs

SHOWS_TEXT = (
    "This page shows REPORT TEXT. Pass it on only to people who may read the reports; without "
    "show_text the page holds ids and figures only."
)
NO_TEXT = "Figures and report ids only: this page holds no report text."
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
DESCRIBED = {
    "words_mean": "Words, mean",
    "words_median": "Words, median",
    "copy_rate": "Copied words, %",
    "novel_bigrams": "New word pairs, %",
    "empty": "Empty",
    "equal_to_source": "Equal to the report",
}
COMPARED = ("base", "lora", "reference")
Figures = Mapping[str, Any]
Series = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A test report of the gallery. `texts` (source, reference, base, lora) is None where report
    text may not be shown; `marks` are spans of an output that a check found unsupported."""

    id: str
    group: str | None
    kind: str  # worst, median or best
    rougeL: Mapping[str, float]  # percent, by system
    texts: Mapping[str, str] | None = None
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)


def evaluation_page(
    figures: Figures,
    *,
    published: Figures,
    curves: Sequence[Figures],
    per_report: Mapping[str, Series],
    lengths: Series,
    settings: Mapping[str, str],
    cases: Sequence[Case] | None,
) -> str:
    """The page as HTML. `published` is by system and metric, percent; `curves` are the rows of
    metrics.jsonl; `per_report` is F1 in [0, 1], by system and metric; `lengths` are words."""
    shows_text = any(case.texts for case in cases or ())
    tests = figures["paired"]["metrics"]
    systems = list(dict.fromkeys(name for case in cases or () for name in case.rougeL))
    return pages.render(
        "evaluation.html.j2",
        title=f"Base and LoRA on {figures['n']:,} test reports",
        lead=_lead(tests["rougeL"]),
        notice=SHOWS_TEXT if shows_text else NO_TEXT,
        shows_text=shows_text,
        metrics=list(METRICS.values()),
        score_rows=list(_score_rows(figures, published, tests)),
        test_rows=[_test_row(name, tests[name]) for name in METRICS],
        bleu_rows=[
            [readable(name), x["brevity_penalty"], x["length_ratio"], *x["precisions"]]
            for name, x in figures["bleu_parts"].items()
        ],
        rails=[_guard_rail(rail) for rail in figures["guard_rails"]],
        breakdowns=list(_breakdowns(figures["breakdown"])),
        distributions=list(_distributions(per_report)),
        lengths=_lengths(lengths),
        copying=_copying(figures["describe"]),
        described=["System", *DESCRIBED.values()],
        description=[
            [readable(name), *map(x.get, DESCRIBED)] for name, x in figures["describe"].items()
        ],
        faithfulness=_faithfulness(figures["faithfulness"]),
        structured=[_structured_row(*item) for item in figures["structured"].items()],
        training=_training(curves),
        case_columns=["Report", "Kind", "Group", *(f"ROUGE-L, {readable(s)}" for s in systems)],
        case_rows=[[c.id, c.kind, c.group, *map(c.rougeL.get, systems)] for c in cases or ()],
        views=_views(cases or ()),
        configuration=list(_configuration(figures, settings)),
    )


def readable(name: str) -> str:
    """A key for people."""
    return SYSTEMS.get(name, name.replace("_", " "))


def _difference(test: Figures) -> Cell:
    return test["difference"], *test["interval"]


def _lead(test: Figures) -> str:
    """The result in a sentence."""
    difference, (low, high) = test["difference"], test["interval"]
    p = pages.number(P(test["p_holm"]))
    return (
        f"LoRA is {pages.number(abs(difference))} ROUGE-L points "
        f"{'above' if difference >= 0 else 'below'} the base (95 % interval of the difference "
        f"{pages.number(low)} to {pages.number(high)}, p {p if p.startswith('<') else f'= {p}'}); "
        f"chance {'alone does not explain that.' if low > 0 or high < 0 else 'may explain that.'}"
    )


def _score_rows(
    figures: Figures, published: Figures, tests: Figures
) -> Iterator[Sequence[Cell] | str]:

    def row(system: str, scores: Mapping[str, float] | None) -> list[Cell]:
        if scores is None:  # a baseline that could not be made
            return [readable(system), *(None for _ in METRICS)]
        own = figures["intervals"][system]
        return [readable(system), *((scores[m], *own[m]) for m in METRICS)]

    if published:
        yield "Published (MIMIC-III, 1,000 test reports)"
        for system, scores in published.items():
            yield [f"published {readable(system)}", *map(scores.get, METRICS)]
    yield "Measured here"
    yield from (row(name, figures[name]) for name in ("base", "lora"))
    yield ["LoRA − base, paired", *(_difference(tests[m]) for m in METRICS)]
    yield ["p (Holm)", *(P(tests[m]["p_holm"]) for m in METRICS)]
    yield "Baselines: what needs no model"
    yield from (row(name, scores) for name, scores in figures["baselines"].items())


def _test_row(name: str, test: Figures) -> list[Cell]:
    counts = map(test.get, ("wins", "ties", "losses", "n_for_1_point"))
    return [METRICS[name], _difference(test), P(test["p"]), P(test["p_holm"]), *counts]


def _structured_row(field: str, found: Figures) -> list[Cell]:
    systems = ((found[n]["f1"], *found[n]["interval"]) for n in ("base", "lora"))
    test = found["paired"]
    return [readable(field), *systems, _difference(test), P(test["p_holm"])]


def _guard_rail(rail: Figures) -> tuple[str, ...]:
    what = f"{readable(rail['name'])}, {readable(rail['system'])}"
    return "warning", f"{what}: {pages.number(rail['value'], 2)}", rail["message"], ""


def _breakdowns(breakdown: Figures) -> Iterator[Picture]:
    """ROUGE-L by each way of dividing the reports."""
    for key, parts in breakdown.items():
        title = BREAKDOWNS[key]
        counts = {part: found["n"] for part, found in parts.items()}
        for systems, caption, xlabel in (
            (("base", "lora"), f"ROUGE-L by {title}", "percent"),
            (("difference",), f"LoRA − base, ROUGE-L, by {title}", "points"),
        ):
            values: dict[str, dict[str, Cell]] = {
                part: {readable(s): tuple(x[s]["rougeL"]) for s in systems}
                for part, x in parts.items()
            }
            yield plots.forest(
                caption,
                values,
                head=title.capitalize(),
                xlabel=xlabel,
                counts=counts,
                zero=xlabel == "points",
            )


def _distributions(per_report: Mapping[str, Series]) -> Iterator[Picture]:
    """Scores of single reports; F1 in [0, 1] comes in, percent is shown."""
    for metric in ("rouge1", "rougeL"):
        series = {
            readable(name): 100 * np.asarray(per_report[name][metric], float)
            for name in ("lora", "base")
            if metric in per_report.get(name, {})
        }
        title = f"{METRICS[metric]} of single reports"
        yield from plots.histogram(title, series, xlabel="percent", span=(0, 100))


def _lengths(lengths: Series) -> list[Picture]:
    outputs = {readable(n): lengths[n] for n in ("lora", "base", "reference") if n in lengths}
    source = {"report": lengths["source"]} if "source" in lengths else {}
    note = "The last bin holds all that is longer."
    return [
        *plots.histogram("Length of the impressions", outputs, xlabel="words", note=note),
        *plots.histogram("Length of the reports", source, xlabel="words", note=note),
    ]


def _copying(describe: Figures) -> Picture:
    shares = {"copy_rate": "copied words", "novel_bigrams": "new word pairs"}
    values: dict[str, dict[str, Cell]] = {
        text: {readable(name): describe[name][key] for name in COMPARED}
        for key, text in shares.items()
    }
    return plots.forest("Copying from the report", values, head="Share", xlabel="percent")


def _faithfulness(checks: Figures) -> Picture:
    """Unsupported statements per 100 impressions, by check; the reference is the noise floor."""
    values: dict[str, dict[str, Cell]] = {
        readable(check): {
            readable(name): (found[name]["per_100"], *found[name]["interval"]) for name in COMPARED
        }
        for check, found in checks.items()
    }
    title = "Impressions with an unsupported statement, per 100"
    return plots.forest(title, values, head="Check", xlabel="impressions per 100")


def _curve(rows: Sequence[Figures], key: str, *, thin: bool = False) -> plots.Line | None:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and "step" in row]
    return plots.Line([x for x, _ in points], [y for _, y in points], thin) if points else None


def _training(curves: Sequence[Figures]) -> list[Picture]:
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
        return []
    skip = {"kind", "step", "epoch"}
    names = list(dict.fromkeys(name for row in epochs for name in row if name not in skip))
    columns = ["Epoch", "Step", *map(readable, names)]
    rows = [[f"{row.get('epoch')}", row.get("step"), *map(row.get, names)] for row in epochs]
    axes = {"xlabel": "optimizer step", "ylabel": "nats per label token"}
    alt = "Training and validation loss over optimizer steps; epochs in the table."
    svg = plots.lines(losses, alt=alt, **axes)
    shown = [Picture("Loss", svg, columns, rows, "Figures by epoch", digits=4)]
    if rate := _curve(steps, "lr"):
        ends = {"first": rate.y[0], "highest": max(rate.y), "last": rate.y[-1]}
        told = [[name, f"{value:.2e}"] for name, value in ends.items()]
        alt = "Learning rate over optimizer steps: " + ", ".join(map(" ".join, told))
        svg = plots.lines({"rate": rate}, alt=alt, xlabel="optimizer step", ylabel="learning rate")
        shown.append(Picture("Learning rate", svg, ["Step", "Rate"], told, "Learning rate"))
    return shown


def _views(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Each report, and beside each other what each system wrote and left out; the first of a kind
    open."""
    views, seen = [], set()
    for case in cases:
        if (texts := case.texts) is None:
            continue
        source, reference = texts["source"], texts["reference"]
        columns = [
            (
                f"{readable(name)}, ROUGE-L {pages.number(rate)}",
                output_runs(texts[name], reference, source, case.marks.get(name, ()))
                or [Run("(empty)")],
                omitted_runs(reference, texts[name]),
            )
            for name, rate in case.rougeL.items()
            if name in texts
        ]
        heading = " · ".join(filter(None, (case.kind.capitalize(), case.id, case.group)))
        view = {"heading": heading, "source": [Run(source)], "columns": columns}
        views.append({**view, "is_open": case.kind not in seen})
        seen.add(case.kind)
    return views


def _configuration(figures: Figures, settings: Mapping[str, str]) -> Iterator[Sequence[Cell] | str]:
    """All that another run must share to be comparable, as it is: nothing rounded."""
    parts = {
        "How the outputs were made": figures.get("decoding"),
        "How they were scored": figures.get("signature"),
        "How the intervals were made": figures.get("resampling"),
        "Which reports": figures.get("sample"),
        "Settings of this evaluation": settings,
        "Provenance": figures.get("provenance"),
    }
    for title, facts in parts.items():
        if facts:
            yield title
            yield from ([k, "none" if v is None else str(v)] for k, v in facts.items())
