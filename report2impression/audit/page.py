"""The figures of an audit -> the page that shows them: findings, checks, lengths, groups, scores.

Only counts and names come in, never a report's text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from report2impression.reporting import pages, plots
from report2impression.reporting.pages import (
    Block,
    Cell,
    Figure,
    Finding,
    Findings,
    Heading,
    Page,
    Section,
    Table,
    Text,
)

Figures = Mapping[str, Any]

NO_TEXT = "Counts only: this page holds no report text."
SEVERITY = {"error": "problem", "warning": "warning", "note": "note"}  # the page's words
SYSTEMS = {
    "most_frequent": "constant answer: the commonest training target",
    "nearest_neighbour": "the target of the nearest training input (TF-IDF)",
    "copy": "the input, unchanged",
}
MOST_GROUPS = 30
LENGTHS = (
    *("Split", "Side", "Mean", "Median", "95th percentile", "Longest"),
    "Placeholders, % of words",
)


def audit_page(figures: Figures, words: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """The page as HTML. `words` is side ("input", "target") -> split -> words of each text."""
    n_pairs = sum(split["pairs"] for split in figures["splits"].values())
    kinds = [told["severity"] for told in figures["findings"]]
    counts = [
        f"{kinds.count(kind):,} {name}{'s' * (kinds.count(kind) != 1)}"
        for kind, name in SEVERITY.items()
        if kind in kinds
    ]
    sections = [
        _findings(figures),
        _checks(figures),
        _lengths(figures, words),
        *_groups(figures["groups"], list(figures["splits"])),
        _scores(figures["scores"]),
        _settings(figures["settings"]),
    ]
    page = Page(
        title=f"Audit of {n_pairs:,} report pairs",
        lead=f"{', '.join(counts) or 'No finding'} in {n_pairs:,} pairs.",
        notice=NO_TEXT,
        sections=sections,
    )
    return pages.render(page)


def check_rows(figures: Figures) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the table of counts: pairs and their percentage by split."""
    splits = list(figures["splits"])
    head = ["Check", "Severity", *(name for split in splits for name in (split, "%"))]
    rows: list[list[Cell]] = []
    for key, label in (("rows", "rows read"), ("pairs", "pairs")):
        counts = [x[key] for x in figures["splits"].values()]
        rows.append([label, "", *(cell for count in counts for cell in (count, None))])
    for check in figures["checks"].values():
        row: list[Cell] = [check["label"], check["severity"]]
        for split in splits:
            row += [check["pairs"][split], check["percent"][split]]
        rows.append(row)
    return head, rows


def _findings(figures: Figures) -> Section:
    items = []
    for told in figures["findings"]:
        counts = [f"{n:,} in {split}" for split, n in told["counts"].items() if n]
        title = told["title"][0].upper() + told["title"][1:]
        remedy = told["remedy"][0].upper() + told["remedy"][1:] + "."
        items.append(Finding(SEVERITY[told["severity"]], title, ", ".join(counts), remedy))
    blocks: list[Block] = [Findings(items)] if items else [Text("No check found anything.")]
    return Section("Findings", blocks)


def _checks(figures: Figures) -> Section:
    head, rows = check_rows(figures)
    for row in rows:
        row[1] = SEVERITY.get(str(row[1]), "")
    blocks: list[Block] = [
        Table(
            "Pairs that each check flags",
            head,
            rows,
            digits=2,
            note="Texts are compared in lower case and without punctuation; “nearly”: the sets of "
            "3-word runs overlap by at least 0.8. A pair may be flagged by several checks. What "
            "is shared by two splits is counted in both. Severity stands beside findings only; a "
            "problem is an error to --fail_on.",
        )
    ]
    if not figures["settings"]["tokenizer"]:
        blocks.append(
            Text("Tokens were not counted: give --tokenizer to see what would be cut or unknown.")
        )
    if "shared_patient" not in figures["checks"]:
        blocks.append(Text("Patients were not compared: the data have no column “patient”."))
    if unknown := figures["unknown_characters"]:
        rows = [[name, n] for name, n in unknown[:20]]
        blocks.append(
            Table("Characters that the tokenizer does not know", ["Character", "Texts"], rows)
        )
    return Section("Checks", blocks)


def _lengths(figures: Figures, words: Mapping[str, Mapping[str, np.ndarray]]) -> Section:
    blocks: list[Block] = []
    for side, by_split in words.items():
        edges, shares = plots.binned(by_split)
        rows: list[list[Cell]] = [
            [f"{low:.0f} to {high:.0f}", *(float(share[i]) for share in shares.values())]
            for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
        ]
        table = Table(f"Words of the {side}, % of pairs", ["Words", *shares], rows)
        svg = plots.histogram(
            edges,
            shares,
            alt=f"Histogram of the words of the {side}, by split",
            xlabel="words",
            ylabel="% of pairs",
        )
        blocks.append(Figure(f"Length of the {side}", svg, table))
    rows = []
    for unit, kinds in figures["lengths"].items():
        rows_of_unit = [
            [
                split,
                side,
                *(x[key] for key in ("mean", "median", "p95", "longest")),
                x.get("placeholders"),
            ]
            for side, by_split in kinds.items()
            for split, x in by_split.items()
        ]
        rows += [Heading(f"In {unit}"), *rows_of_unit]  # type: ignore[list-item]
    blocks.append(Table("Lengths", LENGTHS, rows))
    rows = [
        [split, x["pairs"], x["different_targets"], x["commonest_target_percent"]]
        for split, x in figures["splits"].items()
    ]
    head = ["Split", "Pairs", "Different targets", "Commonest target, % of pairs"]
    blocks.append(Table("How often targets repeat", head, rows))
    return Section("Lengths and repetition", blocks)


def _groups(groups: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> list[Section]:
    if not groups:
        return []
    shown = sorted(groups.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows: list[list[Cell]] = [
        [plots.label(name, 40), *(n[s] for s in splits)] for name, n in shown[:MOST_GROUPS]
    ]
    rest = [n for _, n in shown[MOST_GROUPS:]]
    if rest:
        rows.append([f"{len(rest):,} more", *(sum(n[s] for n in rest) for s in splits)])
    return [Section("Groups", [Table("Pairs by group", ["Group", *splits], rows)])]


def _scores(scores: Figures) -> Section:
    if not scores:
        text = "Not scored: that needs a training split and a test or validation split."
        return Section("What no model needs", [Text(text)])
    rows: list[list[Cell]] = [
        [SYSTEMS[name], *figures.values()] for name, figures in scores["systems"].items()
    ]
    head = ["System", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU"]
    note = (
        f"Scored on {scores['scored']:,} of {scores['of']:,} {scores['split']} pairs; neighbours "
        f"are looked for among {scores['neighbours']:,} of {scores['train']:,} training pairs. A "
        "model that is not clearly above these has learned little."
    )
    return Section(
        "What no model needs", [Table("Scores of simple answers, percent", head, rows, note=note)]
    )


def _settings(settings: Mapping[str, Any]) -> Section:
    rows = [
        [name, "none" if value in (None, "") else str(value)] for name, value in settings.items()
    ]
    return Section("Settings", [Table("As run", ["Name", "Value"], rows)])
