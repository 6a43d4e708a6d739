"""Precision and recall of the structured items, field by field.

    python -m bench.structure [--n 2000] [--mtsamples DIR] [--parrot DIR] [--peers PYTHON]

Without folders: synthetic impressions of all groups, whose slots are the truth. With them: the
labelled impressions, and the share of PARROT impressions (English, German) in which anything is
found. Rules and lexicon were developed on other synthetic seeds (of the same grammar). Intervals
are Wilson's, 95 %. The last line is JSON.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.faithfulness.detection import share
from bench.structured import grammar, peers
from bench.structured.labels import PARTS, Labelled, impressions, labelled
from bench.structured.matching import ADVICE, FIELDS, Tally, judge_advice, judge_findings
from report2impression.corpora.synthetic import generate
from report2impression.extracting.items import structure
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table

HELD_OUT = 1_000_000  # synthetic seeds below were for development
NAMES = ("finding", "finding + presence", "certainty", *FIELDS, "recommendation", *ADVICE)


@dataclass(frozen=True)
class StructureConfig:
    """Precision and recall of the structured items."""

    n: int = 2000
    """Synthetic impressions."""
    seed: int = 0
    """Seed of the synthetic reports."""
    mtsamples: str = ""
    """Folder of MTSamples pairs as .jsonl, for the labelled impressions; empty = none."""
    parrot: str = ""
    """Folder with pairs_en.jsonl and pairs_de.jsonl of PARROT, some of them labelled; empty =
    none."""
    peers: str = ""
    """The Python of an environment with openmed and radreport (bench/structured/peers.py), to judge
    them on the labelled impressions; empty = not."""


def synthetic(n: int, seed: int) -> dict[str, dict[str, Any]]:
    """Figures of each field on n synthetic impressions of all groups."""
    tally = Tally()
    for report in generate(n, HELD_OUT + seed):
        found = structure(report.impression)
        findings, advice = grammar.labels(report.group, report.impression)
        judge_findings(tally, findings, [f for item in found.items for f in item.findings])
        judge_advice(tally, advice, [r for item in found.items for r in item.recommendations])
    return tally.figures(name for name in NAMES if name not in ("certainty", "interval"))


def real(reports: Sequence[Labelled]) -> dict[str, dict[str, Any]]:
    """Figures of each field on labelled impressions."""
    tally = Tally()
    for report in reports:
        found = structure(report.text)
        judge_findings(tally, report.findings, [f for i in found.items for f in i.findings])
        judge_advice(tally, report.advice, [r for i in found.items for r in i.recommendations])
    return tally.figures(NAMES)


def by_part(reports: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """In the order of PARTS."""
    found = {part: [report for report in reports if report.part == part] for part in PARTS}
    return {part: own for part, own in found.items() if own}


def coverage(texts: Sequence[str]) -> dict[str, float]:
    """Impressions in which a finding is found, per 100; findings an impression."""
    counts = [sum(len(item.findings) for item in structure(text).items) for text in texts]
    with_any = sum(count > 0 for count in counts)
    return {
        "n": len(texts),
        "per_100": 100 * with_any / len(texts),
        "findings": sum(counts) / len(texts),
    }


def _show(title: str, figures: dict[str, dict[str, Any]]) -> None:
    rows = [
        (name, f["labelled"], share(f["precision"]), share(f["recall"]))
        for name, f in figures.items()
    ]
    print_table(title, ("field", "labelled", "precision %", "recall %"), rows)


@exits_cleanly
def main() -> None:
    config = parse(StructureConfig, description=(__doc__ or "").partition("\n")[0])
    if config.n < 1:
        raise ConfigError(f"--n is {config.n}; ask for 1 or more")
    folders = [Path(folder) for folder in (config.mtsamples, config.parrot) if folder]
    for folder in folders:
        if not labelled(folder):
            raise ConfigError(f"{folder} has none of the labelled texts")
    structure("")  # what takes a second at the first use
    started = time.perf_counter()
    figures: dict[str, Any] = {"synthetic": synthetic(config.n, config.seed)}
    seconds = time.perf_counter() - started
    _show(f"{config.n} synthetic impressions ({seconds:.1f} s)", figures["synthetic"])
    reports = [report for folder in folders for report in labelled(folder)]
    for part, own in by_part(reports).items():
        figures[part] = real(own)
        _show(f"{len(own)} labelled impressions, {part}", figures[part])
        for tool, found in (peers.judged(config.peers, own) if config.peers else {}).items():
            figures[f"{tool}, {part}"] = found
            _show(f"{tool} on the same", found)
    if config.parrot:
        for language in ("en", "de"):
            texts = impressions(Path(config.parrot) / f"pairs_{language}.jsonl")
            figures[f"coverage {language}"] = coverage(texts)
        rows = [(k, *v.values()) for k, v in figures.items() if k.startswith("coverage")]
        columns = ("set", "n", "with a finding, per 100", "findings an impression")
        print_table("Coverage of PARROT", columns, rows, digits=1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
