"""The figures of an audit -> the page that shows them: findings, checks, lengths, groups, scores.

Only counts and names come in, never a report's text. The words of the page stand in
reporting/templates/audit.html.j2.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from report2impression.reporting import pages, plots
from report2impression.reporting.pages import Cell

Figures = Mapping[str, Any]

SEVERITY = {"error": "problem", "warning": "warning", "note": "note"}  # the page's words
SYSTEMS = {
    "most_frequent": "constant answer: the commonest training target",
    "nearest_neighbour": "the target of the nearest training input (TF-IDF)",
    "copy": "the input, unchanged",
}
MOST_GROUPS = 30


def audit_page(figures: Figures, words: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """The page as HTML. `words` is side ("input", "target") -> split -> words of each text."""
    n_pairs = sum(split["pairs"] for split in figures["splits"].values())
    kinds = [told["severity"] for told in figures["findings"]]
    counts = [
        f"{kinds.count(kind):,} {name}{'s' * (kinds.count(kind) != 1)}"
        for kind, name in SEVERITY.items()
        if kind in kinds
    ]
    head, rows = check_rows(figures)
    return pages.render(
        "audit.html.j2",
        title=f"Audit of {n_pairs:,} report pairs",
        lead=f"{', '.join(counts) or 'No finding'} in {n_pairs:,} pairs.",
        splits=list(figures["splits"]),
        findings=[_finding(told) for told in figures["findings"]],
        check_columns=head,
        check_rows=[[row[0], SEVERITY.get(str(row[1]), ""), *row[2:]] for row in rows],
        has_tokens=bool(figures["settings"]["tokenizer"]),
        has_patients="shared_patient" in figures["checks"],
        unknown=figures["unknown_characters"][:20],
        pictures=[
            picture
            for side, series in words.items()
            for picture in plots.histogram(
                f"Length of the {side}", series, xlabel="words", of="pairs"
            )
        ],
        length_rows=list(_length_rows(figures["lengths"])),
        repetition=[
            [split, x["pairs"], x["different_targets"], x["commonest_target_percent"]]
            for split, x in figures["splits"].items()
        ],
        groups=_groups(figures["groups"], list(figures["splits"])),
        scores=(scores := figures["scores"]),
        score_rows=[[SYSTEMS[n], *x.values()] for n, x in scores.get("systems", {}).items()],
        settings=[
            [name, "none" if value in (None, "") else str(value)]
            for name, value in figures["settings"].items()
        ],
    )


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


def _finding(told: Figures) -> tuple[str, ...]:
    counts = [f"{n:,} in {split}" for split, n in told["counts"].items() if n]
    title, remedy = (told[key][0].upper() + told[key][1:] for key in ("title", "remedy"))
    return SEVERITY[told["severity"]], title, ", ".join(counts), f"{remedy}."


def _length_rows(lengths: Figures) -> Iterator[Sequence[Cell] | str]:
    keys = ("mean", "median", "p95", "longest", "placeholders")
    for unit, kinds in lengths.items():
        yield f"In {unit}"
        for side, by_split in kinds.items():
            yield from ([split, side, *map(x.get, keys)] for split, x in by_split.items())


def _groups(groups: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> list[list[Cell]]:
    shown = sorted(groups.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows: list[list[Cell]] = [
        [plots.label(name, 40), *(n[s] for s in splits)] for name, n in shown[:MOST_GROUPS]
    ]
    if rest := [n for _, n in shown[MOST_GROUPS:]]:
        rows.append([f"{len(rest):,} more", *(sum(n[s] for n in rest) for s in splits)])
    return rows
