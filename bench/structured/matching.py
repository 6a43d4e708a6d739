"""Findings read against findings labelled: precision and recall of each field.

Two findings are one where their spans overlap; each is matched once, the largest overlap first. An
attribute is judged on matched findings only: a missed finding is counted once, as a finding.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from report2impression.extracting.parts import Finding, Recommendation
from report2impression.scoring.faithfulness.checks import rate

FIELDS = ("laterality", "level", "severity", "change", "acuity", "values_mm")
ADVICE = ("modality", "interval")


@dataclass(frozen=True)
class Label:
    """A finding or an advice as it should be read. `values` lacks what is not said; what is in
    `open` is left to taste and not judged."""

    start: int
    end: int
    values: Mapping[str, Any]
    open: frozenset[str] = frozenset()


@dataclass
class Tally:
    """Per field: right, read and wrong or too much, missed."""

    right: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def value(self, name: str, due: Any, read: Any) -> None:
        if due is not None and due == read:
            self.right[name] += 1
            return
        self.extra[name] += read is not None
        self.missed[name] += due is not None

    def figures(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """{"labelled", "precision", "recall"} of each field, in percent with Wilson intervals."""
        found = {}
        for name in names:
            right, extra, missed = self.right[name], self.extra[name], self.missed[name]
            found[name] = {
                "labelled": right + missed,
                "precision": rate(right, right + extra) if right + extra else None,
                "recall": rate(right, right + missed) if right + missed else None,
            }
        return found


def pairs(
    due: Sequence[Label], spans: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], set[int], set[int]]:
    """(label, read) that overlap, the labels without a match, the read ones without."""
    overlaps = [
        (min(label.end, end) - max(label.start, start), -i, -j)
        for i, label in enumerate(due)
        for j, (start, end) in enumerate(spans)
    ]
    left, free = set(range(len(due))), set(range(len(spans)))
    matched = []
    for size, i, j in sorted(overlaps, reverse=True):
        if size > 0 and -i in left and -j in free:
            matched.append((-i, -j))
            left.remove(-i)
            free.remove(-j)
    return sorted(matched), left, free


def judge_findings(tally: Tally, due: Sequence[Label], read: Sequence[Finding]) -> None:
    matched, missed, extra = pairs(due, [(f.span.start, f.span.end) for f in read])
    for name in ("finding", "finding + presence"):
        tally.missed[name] += len(missed)
        tally.extra[name] += len(extra)
    for i, j in matched:
        tally.right["finding"] += 1
        label, found = due[i], read[j]
        as_read = _values(found)
        tally.value("finding + presence", label.values["presence"], found.presence)
        if "certainty" in label.values:
            tally.value("certainty", label.values["certainty"], found.certainty)
        for name in FIELDS:
            if name not in label.open:
                tally.value(name, label.values.get(name), as_read[name])


def _values(found: Finding) -> dict[str, Any]:
    now = [m for m in found.measurements if not m.of_prior]
    return {
        "laterality": found.laterality,
        "level": found.level and found.level.lower(),
        "severity": found.severity,
        "change": found.change,
        "acuity": found.acuity,
        "values_mm": list(now[0].values_mm) if now else None,
    }


def judge_advice(tally: Tally, due: Sequence[Label], read: Sequence[Recommendation]) -> None:
    matched, missed, extra = pairs(due, [(r.span.start, r.span.end) for r in read])
    tally.missed["recommendation"] += len(missed)
    tally.extra["recommendation"] += len(extra)
    for i, j in matched:
        tally.right["recommendation"] += 1
        for name in ADVICE:
            tally.value(name, due[i].values.get(name), getattr(read[j], name))
