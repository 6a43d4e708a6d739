"""How far a figure, and a difference of two systems, could have come out otherwise.

A metric is a function of sums over reports (scoring.rouge_bleu), so a resample needs sums only:

  bootstrap      draw N reports with replacement: how often each came up, (B, N) @ columns (N, C)
  randomisation  swap the two systems on a random half of the reports: 0 or 1, (B, N) @ differences

One matrix product per chunk of resamples serves all systems and metrics; the same draws for all
make their differences paired. Before it, columns are rounded to steps of 2^-k so small that no sum
of N of them needs more than a float's 53 bits. The product is then exact: equal to the last bit
for any BLAS, number of threads and chunk size, and a tie is a tie.

Sources: Efron & Tibshirani 1993, ch. 13 (percentile interval); Noreen 1989, Riezler & Maxwell 2005
(approximate randomisation); North et al. 2002 (p = (k + 1) / (B + 1)); Holm 1979.
Shapes: N reports, B resamples, S systems, C columns, M metrics.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Measure = Callable[[Floats, int], Floats]  # sums over n reports (..., C), n -> metrics (..., M)

RESAMPLES = 10_000
CHUNK_CELLS = 200_000  # resamples x reports at once: 1.6 MB, so that they stay in the cache
TAILS = (1 - 0.95) / 2, 1 - (1 - 0.95) / 2
ROUNDING = 1e-9  # metrics closer than this are equal: divisions and logarithms round


def exact(columns: Floats) -> Floats:
    """Columns (N, C) in steps that make every sum of N of their rows exact; integers stay as they
    are. The error is at most N * max / 2^53 per value: 1e-12 at 13,057 reports of F1."""
    if not np.isfinite(columns).all():
        raise ValueError("statistics that are not finite cannot be resampled")
    largest = np.maximum(1, np.abs(columns).max(axis=0, initial=0)) * max(len(columns), 1)
    step = 2.0 ** (np.ceil(np.log2(largest)) - 52)
    return np.rint(columns / step) * step


def _chunks(n_resamples: int, n: int) -> Iterator[slice]:
    size = max(1, CHUNK_CELLS // n)
    for start in range(0, n_resamples, size):
        yield slice(start, min(start + size, n_resamples))


def bootstrap_sums(columns: Floats, *, n_resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Sums over N reports drawn with replacement, (N, C) -> (B, C)."""
    n = len(columns)
    values, draw = exact(columns), np.random.default_rng([seed, 1])
    sums = np.empty((n_resamples, columns.shape[1]))
    for chunk in _chunks(n_resamples, n):
        rows = chunk.stop - chunk.start
        drawn = draw.integers(0, n, (rows, n))
        drawn += n * np.arange(rows)[:, None]  # counted in one call: each row in cells of its own
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        np.matmul(times.astype(float), values, out=sums[chunk])
    return sums


def swap_sums(differences: Floats, *, n_resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Sums over a random subset of the reports, each in it with probability 1/2, (N, C) -> (B, C):
    what a system loses to the other when these reports are swapped."""
    n = len(differences)
    values, draw = exact(differences), np.random.default_rng([seed, 2])
    sums = np.empty((n_resamples, differences.shape[1]))
    row_bytes = -(-n // 64) * 8  # whole words of the generator: no bit depends on the chunk size
    for chunk in _chunks(n_resamples, n):
        rows = chunk.stop - chunk.start
        random = np.frombuffer(draw.bytes(rows * row_bytes), np.uint8).reshape(rows, row_bytes)
        np.matmul(np.unpackbits(random, axis=1, count=n).astype(float), values, out=sums[chunk])
    return sums


def bootstrap(
    columns: Floats, measure: Measure, *, n_resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Metrics of S systems on the same resamples of their reports, (N, S, C) -> (B, S, M)."""
    n, n_systems, n_columns = columns.shape
    sums = bootstrap_sums(columns.reshape(n, -1), n_resamples=n_resamples, seed=seed)
    return measure(sums.reshape(n_resamples, n_systems, n_columns), n)


def interval(samples: Floats) -> Floats:
    """95 % percentile interval over the resamples, (B, ...) -> (2, ...): low, high."""
    return np.quantile(samples, TAILS, axis=0)


def randomisation_p(
    better: Floats, than: Floats, measure: Measure, *, n_resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Two-sided p of each metric's difference of two systems, (N, C) each -> (M,).

    If the systems were alike, any report's two outputs could be swapped: p is the share of random
    swaps (the observed labelling among them, hence never 0) with a difference at least as large.
    """
    n, (a, b) = len(better), (exact(better), exact(than))
    moved = swap_sums(a - b, n_resamples=n_resamples, seed=seed)
    observed = measure(a.sum(axis=0), n) - measure(b.sum(axis=0), n)
    swapped = measure(a.sum(axis=0) - moved, n) - measure(b.sum(axis=0) + moved, n)
    as_large = (np.abs(swapped) >= np.abs(observed) - ROUNDING).sum(axis=0)
    return (as_large + 1) / (n_resamples + 1)


def holm(p_values: Floats) -> Floats:
    """p-values adjusted so that the chance of any false alarm among them stays below the level."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def reports_needed(sd: float) -> int | None:
    """Reports that settle a true difference of one with 80 % power at the 5 % level, from the
    standard deviation of the per-report differences; None where they never differ.

    n = ((1.96 + 0.84) * sd)^2.
    """
    return math.ceil((2.8 * sd) ** 2) if sd > ROUNDING else None
