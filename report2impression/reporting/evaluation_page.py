"""The figures of an evaluation -> the page that shows them: scores with intervals, groups,
lengths and copying, training curves, faithfulness, cases, configuration and provenance.

Each section takes what it needs from `figures` (the content of scores.json) and leaves itself out
where that was not computed. No report text gets in but through `Case.texts`, which the caller
fills on request only; then the page says so at its top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from report2impression.reporting import pages
from report2impression.reporting.evaluation_plots import (
    METRICS,
    Figures,
    Series,
    breakdown_section,
    distribution_section,
    faithfulness_section,
    known_metrics,
    length_section,
    readable,
    training_section,
    with_interval,
)
from report2impression.reporting.pages import (
    Block,
    Cell,
    Finding,
    Findings,
    Heading,
    P,
    Page,
    Passage,
    Run,
    Section,
    Table,
)
from report2impression.reporting.word_diff import Mark, omitted_runs, output_runs

SHOWS_TEXT = (
    "This page shows REPORT TEXT. Pass it on only to people who may read the reports; without "
    "show_text the page holds ids and figures only."
)
NO_TEXT = "Figures and report ids only: this page holds no report text."


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
    sections = [
        _scores(figures, published),
        _guard_rails(figures.get("guard_rails") or []),
        breakdown_section(figures.get("breakdown") or {}),
        distribution_section(per_report),
        length_section(figures.get("describe") or {}, lengths),
        faithfulness_section(figures.get("faithfulness") or {}),
        training_section(curves),
        _gallery(cases or []),
        _configuration(figures, settings),
    ]
    page = Page(
        title=f"Base and LoRA on {figures['n']:,} test reports",
        lead=_lead(figures),
        notice=SHOWS_TEXT if shows_text else NO_TEXT,
        is_sensitive=shows_text,
        sections=[section for section in sections if section],
    )
    return pages.render(page)


def _paired(figures: Figures) -> Figures:
    return (figures.get("paired") or {}).get("metrics") or {}


def _lead(figures: Figures) -> str:
    """The result in a sentence."""
    test = _paired(figures).get("rougeL")
    if not test:
        return ""
    difference, (low, high) = test["difference"], test["interval"]
    p = pages.probability(test.get("p_holm", test.get("p")))
    return (
        f"LoRA is {pages.number(abs(difference))} ROUGE-L points "
        f"{'above' if difference >= 0 else 'below'} the base (95 % interval of the difference "
        f"{pages.number(low)} to {pages.number(high)}, p {p if p.startswith('<') else f'= {p}'}); "
        f"chance {'alone does not explain that.' if low > 0 or high < 0 else 'may explain that.'}"
    )


def _scores(figures: Figures, published: Figures) -> Section:
    names, tests = known_metrics(figures["base"]), _paired(figures)
    intervals = figures.get("intervals") or {}

    def row(system: str, scores: Mapping[str, float] | None) -> list[Cell]:
        own = intervals.get(system) or {}
        return [
            readable(system),
            *(with_interval((scores or {}).get(m), own.get(m)) for m in names),
        ]

    rows: list[Sequence[Cell] | Heading] = []
    if published:
        rows.append(Heading("Published (MIMIC-III, 1,000 test reports)"))
        rows += [[f"published {readable(s)}", *map(x.get, names)] for s, x in published.items()]
    rows += [Heading("Measured here"), *(row(name, figures[name]) for name in ("base", "lora"))]
    if tests:
        shown = [tests.get(name) or {} for name in names]
        differences = [with_interval(x.get("difference"), x.get("interval")) for x in shown]
        rows.append(["LoRA − base, paired", *differences])
        rows.append(["p (Holm)", *(P(x.get("p_holm")) for x in shown)])
    if figures.get("baselines"):
        rows.append(Heading("Baselines: what needs no model"))
        rows += [row(name, scores) for name, scores in figures["baselines"].items()]
    headline = Table(
        "Scores, percent",
        ["System", *(METRICS[name] for name in names)],
        rows,
        strong="LoRA",
        note="Below a score: its 95 % bootstrap interval over the test reports. ROUGE is F1, BLEU "
        "is corpus BLEU. ROUGE-Lsum splits at newlines only, as published; “split” also at items "
        "and sentences. A dash: not available.",
    )
    return Section("Scores", [headline, *_tests(tests), *_bleu_parts(figures)])


def _tests(tests: Figures) -> list[Block]:
    rows = [
        [
            METRICS[name],
            with_interval(tests[name].get("difference"), tests[name].get("interval")),
            *(P(tests[name].get(key)) for key in ("p", "p_holm")),
            *(tests[name].get(key) for key in ("wins", "ties", "losses", "n_for_1_point")),
        ]
        for name in known_metrics(tests)
    ]
    head = [
        "Metric",
        "Difference",
        "p",
        "p (Holm)",
        "Better",
        "Same",
        "Worse",
        "Reports for 1 point",
    ]
    note = (
        "Better, same, worse: reports on which LoRA scores above, like or below the base. The last "
        "column is the sample that would show a difference of one point."
    )
    caption = "LoRA against base, report by report"
    return [Table(caption, head, rows, digits=2, note=note)] if rows else []


def _bleu_parts(figures: Figures) -> list[Block]:
    rows = [
        [readable(name), x["brevity_penalty"], x["length_ratio"], *x["precisions"]]
        for name, x in (figures.get("bleu_parts") or {}).items()
    ]
    head = ["System", "Brevity penalty", "Length ratio", *(f"{n}-gram, %" for n in range(1, 5))]
    note = (
        "A penalty below 1: the outputs are shorter than the references. BLEU may fall for it "
        "while ROUGE rises."
    )
    caption = "What BLEU is made of"
    return [Table(caption, head, rows, digits=2, note=note, folded=True)] if rows else []


def _guard_rails(rails: Sequence[Figures]) -> Section | None:
    items = [
        Finding(
            "warning",
            f"{readable(x['name'])}, {readable(x['system'])}: {pages.number(x['value'], 2)}",
            x["message"],
        )
        for x in rails
    ]
    return Section("Guard rails", [Findings(items)]) if items else None


def _gallery(cases: Sequence[Case]) -> Section | None:
    if not cases:
        return None
    systems = list(dict.fromkeys(name for case in cases for name in case.rougeL))
    rows = [[c.id, c.kind, c.group, *map(c.rougeL.get, systems)] for c in cases]
    head = ["Report", "Kind", "Group", *(f"ROUGE-L, {readable(name)}" for name in systems)]
    blocks: list[Block] = [Table("The worst, the median and the best reports", head, rows)]
    views, seen = [], set()
    for case in cases:
        if case.texts is not None:
            views.append(_view(case, case.texts, is_open=case.kind not in seen))
            seen.add(case.kind)
    if views:
        blocks.append(pages.Cases(views))
    return Section("Cases", blocks)


def _view(case: Case, texts: Mapping[str, str], *, is_open: bool) -> pages.CaseView:
    """The report, and beside each other what each system wrote and left out."""
    source, reference = texts["source"], texts["reference"]
    columns = []
    for name, rate in case.rougeL.items():
        if name in texts:
            output = output_runs(texts[name], reference, source, case.marks.get(name, ()))
            passages = [
                Passage("Output", output or [Run("(empty)")]),
                Passage("Reference", omitted_runs(reference, texts[name])),
            ]
            columns.append((f"{readable(name)}, ROUGE-L {pages.number(rate)}", passages))
    heading = " · ".join([case.kind.capitalize(), case.id, *([case.group] if case.group else [])])
    return pages.CaseView(heading, [Passage("Report", [Run(source)])], columns, is_open)


def _configuration(figures: Figures, settings: Mapping[str, str]) -> Section:
    """All that another run must share to be comparable, as it is: nothing rounded."""
    parts = {
        "How the outputs were made": figures.get("decoding"),
        "How they were scored": figures.get("signature"),
        "How the intervals were made": figures.get("resampling"),
        "Which reports": figures.get("sample"),
        "Settings of this evaluation": settings,
        "Provenance": figures.get("provenance"),
    }
    rows: list[Sequence[Cell] | Heading] = []
    for title, facts in parts.items():
        if facts:
            rows.append(Heading(title))
            rows += [[k, "none" if v is None else str(v)] for k, v in facts.items()]
    return Section("Configuration and provenance", [Table("As run", ["Name", "Value"], rows)])
