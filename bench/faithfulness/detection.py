"""How often is the faithfulness check right? Labelled errors, one per impression, and clean twins.

    python -m bench.faithfulness.detection [--data.path DIR] [--n 1000] [--seed 0]

Each error type gets its share of n impressions. An impression that its report supports is the
clean twin; the injected one differs by one edit that is an error by construction. Precision counts
a check's alarms on the clean twins as false, recall its spans in the edited statement. Without a
path: synthetic reports, whose impression is a function of the findings (clean as it is). With one:
statements of the findings, restated by rule (its test split). The rules and the lexicon were
developed on other synthetic seeds (of the same grammar) and on the training split of Open-i. The
noise floor is the rate on the radiologists' own impressions: some of it true errors, some false
alarms, so a system is to be compared with it, not with 0. The last line is JSON.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.faithfulness.clean_impressions import Report
from bench.faithfulness.injections import CHECK_OF, Case, inject
from report2impression.corpora.synthetic import generate
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.pairs import read_split
from report2impression.scoring.faithfulness.checks import (
    CHECKS,
    Span,
    findings,
    rate,
    rates,
    unsupported,
)
from report2impression.scoring.faithfulness.claims import read
from report2impression.scoring.rouge_bleu import scores

HELD_OUT = 1_000_000  # synthetic seeds below were for development
METRICS = ("rouge1", "rouge2", "rougeL", "bleu")


@dataclass(frozen=True)
class Reports:
    path: str = ""
    """Folder or hub id of report pairs, whose test split is used; empty = synthetic reports."""


@dataclass(frozen=True)
class FaithfulnessConfig:
    """Precision and recall of the faithfulness check on injected errors."""

    n: int = 1000
    """Injected errors in all."""
    seed: int = 0
    """Seed of the synthetic reports and of the edits."""
    data: Reports = field(default_factory=Reports)


def load(config: FaithfulnessConfig) -> tuple[str, list[Report]]:
    """Name of the corpus and its reports."""
    if not config.data.path:
        made = generate(max(1000, config.n), HELD_OUT + config.seed)
        return "synthetic", [Report(r.prompt, r.impression, r.group, True) for r in made]
    pairs = read_split(config.data.path, "test").pairs
    return Path(config.data.path).name, [
        Report(p.prompt, p.impression, p.group, False) for p in pairs
    ]


def is_caught(case: Case, found: dict[str, list[Span]], checks: Sequence[str]) -> bool:
    """Does a span of these checks touch the edited statement?"""
    spans = [span for check in checks for span in found[check]]
    return any(span.start < case.end and case.start < span.end for span in spans)


def judge(cases: Sequence[Case], checks: Sequence[str]) -> dict[str, Any]:
    """Precision and recall of the checks together, in percent with Wilson intervals."""
    clean = [findings(case.source, case.clean) for case in cases]
    edited = [findings(case.source, case.edited) for case in cases]
    false = sum(any(found[check] for check in checks) for found in clean)
    true = sum(is_caught(case, f, checks) for case, f in zip(cases, edited, strict=True))
    figures: dict[str, Any] = {"n": len(cases), "true": true, "false": false}
    for name, count, of in (("precision", true, true + false), ("recall", true, len(cases))):
        figures[name] = rate(count, of) if of else None
    return figures


def moved(cases: Sequence[Case]) -> dict[str, float]:
    """Points that each metric loses by the error, the clean impression being the reference."""
    worse = scores([case.edited for case in cases], [case.clean for case in cases])
    return {name: 100 - worse[name] for name in METRICS}


def share(figures: dict[str, Any] | None) -> str | None:
    """Such as "12.3 [10.1, 14.9]"."""
    if figures is None:
        return None
    low, high = figures["interval"]
    return f"{figures['per_100']:.1f} [{low:.1f}, {high:.1f}]"


def _rounded(value: Any) -> Any:
    """Two decimals wherever there are any."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def _tables(corpus: str, judged: dict[str, Any], shifts: dict[str, Any], floor: Any) -> None:
    columns = ("error", "check", "n", "precision %", "recall %", "any check: recall %")
    print_table(
        f"Faithfulness on injected errors, {corpus} (95 % Wilson intervals)",
        columns,
        [
            (kind, CHECK_OF.get(kind, "any"), own["n"], *map(share, (own["precision"],
             own["recall"], any_["recall"])))
            for kind, (own, any_) in judged.items()
        ],
    )  # fmt: skip
    print_table(
        f"Points lost under one error, {corpus}",
        ("error", "n", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU"),
        [(k, judged[k][0]["n"], *(s[name] for name in METRICS)) for k, s in shifts.items()],
        digits=1,
    )
    print_table(
        f"Noise floor: radiologists' impressions flagged per 100, {corpus}"
        if corpus != "synthetic"
        else "Flagged per 100 of the synthetic impressions (all of them supported)",
        ("check", "per 100"),
        [(check, share(floor[check])) for check in CHECKS],
    )


@exits_cleanly
def main() -> None:
    config = parse(FaithfulnessConfig, description=(__doc__ or "").partition("\n")[0])
    if config.n < len(CHECK_OF):
        raise ConfigError(f"--n is {config.n}; ask for {len(CHECK_OF)} or more")
    corpus, reports = load(config)
    rng = random.Random(config.seed)
    each = -(-config.n // len(CHECK_OF))
    cases = {kind: inject(kind, reports, each, rng) for kind in CHECK_OF}
    cases = {kind: found for kind, found in cases.items() if found}
    judged = {
        kind: (judge(found, [CHECK_OF[kind]]), judge(found, CHECKS))
        for kind, found in cases.items()
    }
    every = [case for found in cases.values() for case in found]
    if not every:
        raise ConfigError(f"{corpus}: no report offers a place for an error; give it more reports")
    judged["overall"] = (judge(every, CHECKS),) * 2
    shifts = {kind: moved(found) for kind, found in cases.items()}
    sources, references = [r.source for r in reports], [r.reference for r in reports]
    read.cache_clear()
    started = time.perf_counter()
    floor = rates(unsupported(sources, references))
    seconds = time.perf_counter() - started
    _tables(corpus, judged, shifts, floor)
    print(f"{len(reports)} reports and impressions checked in {seconds:.1f} s")
    lines = {
        k: {"own": own, "any": any_, "lost": shifts.get(k)} for k, (own, any_) in judged.items()
    }
    figures = {"corpus": corpus, "errors": lines, "references": floor, "seconds": seconds}
    print(json.dumps(_rounded(figures)))


if __name__ == "__main__":
    main()
