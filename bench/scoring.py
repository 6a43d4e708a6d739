"""How long do intervals and tests of a whole evaluation take, and what else would they take?

    python -m bench.scoring [--n 13057] [--n_resamples 10000] [--threads 2]

Two systems on n synthetic reports: the paired comparison (10,000 bootstrap resamples and 10,000
random swaps, 6 metrics) has 10 s on 2 cores at the size of MIMIC-III's test split. Beside it the
obvious ways to do the same: a matrix product in float32 (not exact), fetching and adding the rows
of every resample, and scoring every resample anew; the slow ones on a few resamples, scaled up. The
last line is JSON.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from bench.common import print_json
from bench.timing import now, timed
from report2impression.corpora.synthetic import generate
from report2impression.program.config import parse
from report2impression.program.errors import check_least, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.scoring.comparison import Inputs, compare, paired
from report2impression.scoring.rouge_bleu import ALL_METRICS, scores, statistics
from report2impression.scoring.significance import CHUNK_CELLS, Floats, bootstrap_sums, swap_sums

LIMIT_S = 10.0


@dataclass(frozen=True)
class ScoringConfig:
    """Size of the comparison."""

    n: int = 13057
    """Test reports; MIMIC-III's test split has 13,057."""
    n_resamples: int = 10_000
    """Bootstrap resamples, and as many random swaps."""
    threads: int = 0
    """Threads of the matrix product; 0 = as many as there are cores."""
    seed: int = 0
    """Seed of reports, outputs and resamples."""

    def __post_init__(self) -> None:
        check_least(2, self, "n")
        check_least(20, self, "n_resamples")
        check_least(0, self, "threads")


def synthetic_inputs(n: int, seed: int) -> Inputs:
    """Reports, and two systems that lose some of the reference's words and stray now and then."""
    reports, draw = generate(n, seed), random.Random(seed)
    references = [report.impression for report in reports]

    def worse(text: str, share: float) -> str:
        kept = [word for word in text.split() if draw.random() > share]
        return " ".join(kept) if draw.random() > share else draw.choice(references)

    outputs = {
        name: [worse(text, share) for text in references]
        for name, share in (("base", 0.4), ("lora", 0.3))
    }
    return Inputs(
        [report.id for report in reports],
        [report.group for report in reports],
        [report.prompt for report in reports],
        references,
        outputs,
    )


def float32_sums(columns: Floats, n_resamples: int, seed: int) -> None:
    """The same product in single precision: sums depend on the order of the additions."""
    n, draw = len(columns), np.random.default_rng(seed)
    values, size = columns.astype(np.float32), max(1, CHUNK_CELLS // len(columns))
    for _ in range(0, n_resamples, size):
        times = np.empty((size, n), np.float32)
        for row in times:
            row[:] = np.bincount(draw.integers(0, n, n), minlength=n)
        times @ values


def gathered_sums(columns: Floats, n_resamples: int, seed: int) -> None:
    """Each resample's rows fetched and added."""
    n, draw = len(columns), np.random.default_rng(seed)
    for _ in range(n_resamples):
        columns[draw.integers(0, n, n)].sum(axis=0)


def rescored(inputs: Inputs, n_resamples: int, seed: int) -> None:
    """Each resample's texts scored anew."""
    n, draw = len(inputs.ids), np.random.default_rng(seed)
    for _ in range(n_resamples):
        drawn = draw.integers(0, n, n)
        references = [inputs.references[i] for i in drawn]
        for texts in inputs.outputs.values():
            scores([texts[i] for i in drawn], references)


def measure(config: ScoringConfig) -> dict[str, dict[str, float]]:
    """Seconds of our steps, and of other ways to the bootstrap's sums."""
    inputs = synthetic_inputs(config.n, config.seed)
    how: dict[str, Any] = {"n_resamples": config.n_resamples, "seed": config.seed}
    start = now()
    base, lora = (statistics(inputs.outputs[k], inputs.references) for k in ("base", "lora"))
    scored = now() - start
    columns, difference = np.hstack([base.columns(), lora.columns()]), lora.columns()
    few = max(1, config.n_resamples // 100)
    ours = {
        "scoring_once": scored,
        "bootstrap_sums": timed(lambda: bootstrap_sums(columns, **how))(),
        "swap_sums": timed(lambda: swap_sums(difference, **how))(),
        "paired": timed(lambda: paired(lora, base, names=("lora", "base"), **how))(),
        "compare": timed(lambda: compare(inputs, **how))(),
    }
    scale = config.n_resamples / few
    others = {
        "float32": timed(lambda: float32_sums(columns, config.n_resamples, config.seed))(),
        "gather": scale * timed(lambda: gathered_sums(columns, few, config.seed))(),
        "rescore": config.n_resamples * timed(lambda: rescored(inputs, 1, config.seed))(),
    }
    return {"ours": ours, "others": others}


NAMES = {
    "scoring_once": "scoring both systems once",
    "bootstrap_sums": "bootstrap sums, exact matrix product",
    "swap_sums": "random swaps, exact matrix product",
    "paired": "the paired table: both, with intervals, p and Holm",
    "compare": "all of compare(): also breakdowns, describe, guard rails",
    "float32": "bootstrap sums, float32 matrix product",
    "gather": "bootstrap sums, rows fetched and added",
    "rescore": "bootstrap by scoring each resample anew",
}


@exits_cleanly
def main() -> None:
    config = parse(ScoringConfig, None, description=(__doc__ or "").partition("\n")[0])
    with threadpool_limits(config.threads or None):
        found = measure(config)
        threads = max(pool["num_threads"] for pool in threadpool_info())
    size = f"{config.n:,} reports, {config.n_resamples:,} resamples, {len(ALL_METRICS)} metrics"
    rows = [(NAMES[k], value) for part in found.values() for k, value in part.items()]
    print_table(f"{size}, {threads} threads", ("", "s"), rows, digits=2)
    paired_s = found["ours"]["paired"]
    print(f"paired table: {paired_s:.2f} s of the {LIMIT_S:.0f} s that it may take")
    setting = {"n": config.n, "n_resamples": config.n_resamples, "threads": threads}
    print_json({**setting, "n_metrics": len(ALL_METRICS), "limit_s": LIMIT_S, **found})


if __name__ == "__main__":
    main()
