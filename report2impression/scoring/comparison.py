"""Every figure of an evaluation with its interval, every difference with its test.

    evaluation = compare(Inputs(ids, groups, sources, references, outputs, train), seed=0)
    found = compare_runs(read_per_report(one), read_per_report(other))

All systems answer the same reports, so all are resampled by the same draws: the interval of a
difference is that of the pairs. Figures are percent, keys as in scores.json; no text is returned.
BLEU is a figure of the corpus: where single reports are counted (wins, ties, losses) a report's own
BLEU decides, with the n-gram orders that it has; it is never averaged.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from report2impression.program.errors import ConfigError, DataError
from report2impression.scoring.baselines import BASELINES, explained
from report2impression.scoring.describe import Strata, by_group, by_length, by_training, describe
from report2impression.scoring.guard_rails import Limits, guard_rails, of_scores
from report2impression.scoring.records import Records
from report2impression.scoring.rouge_bleu import (
    ALL_METRICS,
    ALL_ROUGE,
    Statistics,
    TokenKind,
    bleu_of_counts,
    metrics_of_sums,
    signature,
    statistics,
)
from report2impression.scoring.significance import (
    RESAMPLES,
    ROUNDING,
    Floats,
    bootstrap,
    holm,
    interval,
    randomisation_p,
    reports_needed,
)

Figures = dict[str, Any]
BETTER, THAN = "lora", "base"


@dataclass(frozen=True)
class Inputs:
    """N test reports and what each system wrote for them, all in one order."""

    ids: Sequence[str]
    groups: Sequence[str | None]
    sources: Sequence[str]
    references: Sequence[str]
    outputs: Mapping[str, Sequence[str]]
    """By system: "base", "lora", and the baselines that could be made."""
    train: Sequence[tuple[str, str]] | None = None
    """(findings, impression) pairs; None = no training split at hand."""
    limits: Limits | None = None
    """What was cut before or after generation."""


@dataclass(frozen=True)
class Ahead:
    """What can be had while a model still writes."""

    statistics: Mapping[str, Statistics]
    """Of the systems that have written."""
    strata: Mapping[str, Strata]
    explained: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """Figures for scores.json, and what every report added to them."""

    figures: Figures
    statistics: dict[str, Statistics]

    @property
    def per_report(self) -> dict[str, dict[str, Floats]]:
        """F1 in [0, 1] of each report, by system and metric (no BLEU)."""
        return {system: found.rouge for system, found in self.statistics.items()}


def ahead(inputs: Inputs, *, stemmer: bool = True, tokens: TokenKind = "published") -> Ahead:
    """For a `compare` with further systems on the same reports."""
    found = {
        system: statistics(outputs, inputs.references, stemmer=stemmer, tokens=tokens)
        for system, outputs in inputs.outputs.items()
    }
    return Ahead(found, _strata(inputs), explained(inputs.train))


def compare(
    inputs: Inputs,
    known: Ahead | None = None,
    *,
    stemmer: bool = True,
    tokens: TokenKind = "published",
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Evaluation:
    """All figures of scores.json that need no model; what is `known` is not computed again.
    ValueError if there are no reports, or if a system has not exactly one output for each."""
    known = known or ahead(replace(inputs, outputs={}), stemmer=stemmer, tokens=tokens)
    found = {
        system: known.statistics.get(system)
        or statistics(outputs, inputs.references, stemmer=stemmer, tokens=tokens)
        for system, outputs in inputs.outputs.items()
    }
    figures: Figures = {"n": len(inputs.ids)}
    figures |= {name: found[name].figures() for name in (THAN, BETTER) if name in found}
    figures["baselines"] = {n: found[n].figures() if n in found else None for n in BASELINES}
    figures["baselines_explained"] = known.explained
    how = {"n_resamples": n_resamples, "seed": seed}
    figures["intervals"] = intervals(found, **how)
    figures["bleu_parts"] = {system: _bleu_parts(one) for system, one in found.items()}
    ours = {name: found[name] for name in (THAN, BETTER) if name in found}
    if len(ours) == 2:
        figures["paired"] = paired(ours[BETTER], ours[THAN], names=(BETTER, THAN), **how)
    figures["breakdown"] = {
        kind: {part: _part(ours, indices, how) for part, indices in strata.items()}
        for kind, strata in known.strata.items()
        if ours
    }
    texts = {name: inputs.outputs[name] for name in ours}
    figures["guard_rails"] = guard_rails(
        texts,
        inputs.sources,
        brevity_penalties={n: one.bleu_score().bp for n, one in ours.items()},
        limits=inputs.limits,
    )
    figures["guard_rails"] += of_scores(ours, inputs.references, texts, tokens)
    texts = {**inputs.outputs, "reference": inputs.references}
    figures["describe"] = {name: describe(text, inputs.sources) for name, text in texts.items()}
    figures["signature"] = signature(stemmer, tokens)
    ids_sha256 = hashlib.sha256(json.dumps(list(inputs.ids)).encode()).hexdigest()
    figures["sample"] = {"seed": seed, "ids_sha256": ids_sha256}
    figures["resampling"] = {"interval": "95 % percentile bootstrap of the reports", **how}
    return Evaluation(figures, found)


def intervals(
    systems: Mapping[str, Statistics], *, n_resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """95 % bootstrap interval [low, high] of each figure of each system."""
    columns = _stacked(list(systems.values()))
    samples = bootstrap(columns, metrics_of_sums, n_resamples=n_resamples, seed=seed)
    bounds = interval(samples)  # (2, S, M)
    return {system: _by_metric(bounds[:, i].T) for i, system in enumerate(systems)}


def paired(
    better: Statistics,
    than: Statistics,
    *,
    names: tuple[str, str],
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures:
    """`better` minus `than` on the same reports: the difference in points, its interval, p with
    and without Holm's correction over the metrics, reports won, tied and lost, and how many reports
    would settle a difference of one point."""
    n, how = len(better), {"n_resamples": n_resamples, "seed": seed}
    differences = _differences(_stacked([than, better]), **how)
    bounds = interval(differences).T
    p = randomisation_p(better.columns(), than.columns(), metrics_of_sums, **how)
    spread = differences.std(axis=0) * np.sqrt(n)  # BLEU has no per-report differences
    scores, others = better.figures(), than.figures()
    metrics: Figures = {}
    for i, (metric, p_holm) in enumerate(zip(ALL_METRICS, holm(p), strict=True)):
        gains = _of_reports(better, metric) - _of_reports(than, metric)
        sd = gains.std(ddof=1) if metric in ALL_ROUGE and n > 1 else spread[i]
        metrics[metric] = {
            "difference": scores[metric] - others[metric],
            "interval": bounds[i].tolist(),
            "p": float(p[i]),
            "p_holm": float(p_holm),
            "wins": int((gains > ROUNDING).sum()),
            "ties": int((np.abs(gains) <= ROUNDING).sum()),
            "losses": int((gains < -ROUNDING).sum()),
            "n_for_1_point": reports_needed(float(sd)),
        }
    return {"better": names[0], "than": names[1], "metrics": metrics}


def compare_runs(
    a: Records,
    b: Records,
    *,
    system: str = BETTER,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures:
    """`system` of run a against that of run b, on the reports they share.

    "n" reports are common, "only_a" and "only_b" were left out. Raises ConfigError where the runs
    were scored differently or lack the system, DataError where they share no report or where one
    id stands for two different references.
    """
    for name in sorted({*a.signature, *b.signature}):
        values = a.signature.get(name), b.signature.get(name)
        if values[0] != values[1]:
            raise ConfigError(
                f"{a.path} and {b.path} were not scored alike: {name} is {values[0]!r} and "
                f"{values[1]!r}; evaluate one of them again"
            )
    first, second = a.of(system), b.of(system)
    place = {name: i for i, name in enumerate(b.ids)}
    common = [(i, place[name]) for i, name in enumerate(a.ids) if name in place]
    if not common:
        raise DataError(f"{a.path} and {b.path} share no report; evaluate both on the same ones")
    mine, theirs = (list(indices) for indices in zip(*common, strict=True))
    first, second = first.take(mine), second.take(theirs)
    if differing := int((first.bleu[:, 1] != second.bleu[:, 1]).sum()):
        raise DataError(
            f"{a.path} and {b.path}: {differing:,} of {len(common):,} common ids have references "
            "of different lengths; evaluate both on the same data"
        )
    n, how = len(common), {"n_resamples": n_resamples, "seed": seed}
    bounds = intervals({"a": first, "b": second}, **how)
    return {
        "n": n,
        "only_a": len(a.ids) - n,
        "only_b": len(b.ids) - n,
        "a": first.figures(),
        "b": second.figures(),
        "intervals": bounds,
        "paired": paired(first, second, names=("a", "b"), **how),
        "signature": a.signature,
        "resampling": {"interval": "95 % percentile bootstrap of the reports", **how},
    }


def _strata(inputs: Inputs) -> dict[str, Strata]:
    found = {"group": by_group(inputs.groups), "source_length": by_length(inputs.sources)}
    if inputs.train:
        found |= by_training(inputs.sources, inputs.references, inputs.train)
    return {kind: strata for kind, strata in found.items() if strata}


def _part(
    systems: Mapping[str, Statistics], indices: NDArray[np.int64], how: Mapping[str, int]
) -> Figures:
    """One part of the test set: {metric: [figure, low, high]} per system, and the difference. Its
    size is fixed in the resamples."""
    parts = {name: one.take(indices) for name, one in systems.items()}
    samples = bootstrap(_stacked(list(parts.values())), metrics_of_sums, **how)
    figures = {name: np.array([*one.figures().values()]) for name, one in parts.items()}
    rows = {name: (figures[name], samples[:, i]) for i, name in enumerate(parts)}
    if len(parts) == 2:
        difference = figures[BETTER] - figures[THAN]
        rows["difference"] = difference, rows[BETTER][1] - rows[THAN][1]
    found = {
        name: _by_metric(np.column_stack([values, *interval(drawn)]))
        for name, (values, drawn) in rows.items()
    }
    return {"n": len(indices), **found}


def _differences(columns: Floats, *, n_resamples: int, seed: int) -> Floats:
    """Second system minus first on the same resamples, (N, 2, C) -> (B, M)."""
    samples = bootstrap(columns, metrics_of_sums, n_resamples=n_resamples, seed=seed)
    return samples[:, 1] - samples[:, 0]


def _stacked(systems: Sequence[Statistics]) -> Floats:
    """(N, S, C)."""
    return np.stack([one.columns() for one in systems], axis=1)


def _of_reports(one: Statistics, metric: str) -> Floats:
    """Percent of each single report, (N,)."""
    if metric == "bleu":
        return bleu_of_counts(one.bleu, effective_order=True)
    return 100 * one.rouge[metric]


def _by_metric(rows: Floats) -> dict[str, list[float]]:
    return dict(zip(ALL_METRICS, rows.tolist(), strict=True))


def _bleu_parts(one: Statistics) -> Figures:
    score = one.bleu_score()
    return {
        "brevity_penalty": score.bp,
        "length_ratio": score.ratio,
        "precisions": list(score.precisions),
    }
