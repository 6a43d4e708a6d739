"""Structured F1: do an output's items say what the radiologist's say? A clinical figure that needs
no weights and no modality.

A finding of the output agrees with one of the reference where both have the same term; with the
same presence it counts for `presence`; with the same value besides for that value's field. F1 is
over all reports together (2 * agreeing / (in the outputs + in the references)), so that a report
with many findings counts as such; the interval and the test resample reports.
Shapes: N reports, F fields, C = 2F columns (agreeing, in either).
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from report2impression.extracting.items import structure
from report2impression.extracting.parts import Finding
from report2impression.scoring.significance import (
    RESAMPLES,
    Floats,
    bootstrap,
    holm,
    interval,
    randomisation_p,
)

FIELDS = ("finding", "presence", "laterality", "level", "size", "severity", "change")
BETTER, THAN = "lora", "base"


def counts_by(outputs: Mapping[str, Sequence[str]], references: Sequence[str]) -> dict[str, Floats]:
    """Per system the columns (N, 2F) of its outputs. ValueError if N differ."""
    due = [_said(text) for text in references]
    return {system: _columns(texts, due) for system, texts in outputs.items()}


def figures(counts: Mapping[str, Floats], *, n_resamples: int = RESAMPLES, seed: int = 0) -> Any:
    """{field: {system: {"f1", "interval"}, "paired": {...}}} in percent; None for no reports.

    `paired` is LoRA minus base: difference, its interval, p, and p by Holm over the fields.
    """
    stacked = np.stack(list(counts.values()), axis=1)  # (N, S, C)
    if not len(stacked):
        return None
    samples = bootstrap(stacked, f1_of_sums, n_resamples=n_resamples, seed=seed)  # (B, S, F)
    totals = f1_of_sums(stacked.sum(axis=0), len(stacked))  # (S, F)
    bounds = interval(samples)
    found: dict[str, Any] = {
        field: {
            system: {"f1": float(totals[s, f]), "interval": bounds[:, s, f].tolist()}
            for s, system in enumerate(counts)
        }
        for f, field in enumerate(FIELDS)
    }
    if BETTER in counts and THAN in counts:
        systems = list(counts)
        a, b = systems.index(BETTER), systems.index(THAN)
        p = randomisation_p(
            counts[BETTER], counts[THAN], f1_of_sums, n_resamples=n_resamples, seed=seed
        )
        between = interval(samples[:, a] - samples[:, b])
        for f, (field, adjusted) in enumerate(zip(FIELDS, holm(p), strict=True)):
            found[field]["paired"] = {
                "difference": float(totals[a, f] - totals[b, f]),
                "interval": between[:, f].tolist(),
                "p": float(p[f]),
                "p_holm": float(adjusted),
            }
    return found


def f1_of_sums(sums: Floats, n: int) -> Floats:
    """Sums over reports (..., 2F) -> percent (..., F); where neither side says any such thing, they
    agree."""
    agreeing, either = sums[..., : len(FIELDS)], sums[..., len(FIELDS) :]
    return np.where(either > 0, 200 * agreeing / np.maximum(either, 1), 100.0)


def _columns(texts: Sequence[str], due: Sequence[list[Counter[Hashable]]]) -> Floats:
    rows = []
    for text, reference in zip(texts, due, strict=True):
        said = _said(text)
        both = [(ours & theirs).total() for ours, theirs in zip(said, reference, strict=True)]
        either = [
            ours.total() + theirs.total() for ours, theirs in zip(said, reference, strict=True)
        ]
        rows.append([*both, *either])
    return np.array(rows, dtype=float).reshape(-1, 2 * len(FIELDS))


@lru_cache(maxsize=32_768)
def _said(text: str) -> list[Counter[Hashable]]:
    """For each field, how often each value is said of each finding."""
    found = [finding for item in structure(text).items for finding in item.findings]
    return [Counter(_keys(found, field)) for field in FIELDS]


def _keys(found: Sequence[Finding], field: str) -> list[Hashable]:
    if field == "finding":
        return [finding.term for finding in found]
    if field == "presence":
        return [(finding.term, finding.presence) for finding in found]
    values = [(f, _size(f) if field == "size" else getattr(f, field)) for f in found]
    return [(f.term, f.presence, value) for f, value in values if value is not None]


def _size(finding: Finding) -> tuple[float, ...] | None:
    return next((m.values_mm for m in finding.measurements if not m.of_prior), None)
