"""Intervals and tests: against enumeration, scipy and theory; the same bits on any machine."""

import itertools
import json

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from report2impression.scoring import significance
from report2impression.scoring.rouge_bleu import ALL_METRICS, COLUMNS, metrics_of_sums, statistics
from report2impression.scoring.significance import (
    bootstrap,
    bootstrap_sums,
    exact,
    holm,
    interval,
    randomisation_p,
    reports_needed,
    swap_sums,
)
from tests.programs import forked
from tests.test_scoring import random_pairs


def mean(sums: np.ndarray, n: int) -> np.ndarray:
    return sums / n


def column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def draws(seed: int, n: int = 40, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 1)) + shift


# Exact sums


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.integers(0, 2**32))
def test_exact_columns_add_to_the_same_bits_in_any_order(values, seed):
    rounded = exact(column(values))
    assert np.abs(rounded[:, 0] - values).max() <= 2.0**-46
    shuffled = np.random.default_rng(seed).permutation(rounded)
    assert sum(shuffled[:, 0].tolist()) == sum(rounded[:, 0].tolist())  # one after the other


def test_counts_are_not_rounded():
    counts = np.random.default_rng(0).integers(0, 5000, (13057, 3)).astype(float)
    assert (exact(counts) == counts).all()


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        exact(column([1, float("nan")]))


@pytest.mark.parametrize("sums", [bootstrap_sums, swap_sums])
def test_no_bit_depends_on_threads_or_chunks(sums, monkeypatch):
    columns = np.random.default_rng(1).random((301, 15))
    expected = sums(columns, n_resamples=50, seed=3)
    monkeypatch.setattr(significance, "CHUNK_CELLS", 301 * 7)
    for threads in (1, 2):
        with threadpool_limits(threads):
            assert (sums(columns, n_resamples=50, seed=3) == expected).all()
    assert (sums(columns, n_resamples=20, seed=3) == expected[:20]).all()
    assert (sums(columns, n_resamples=50, seed=4) != expected).any()


# Bootstrap


def test_resamples_of_three_reports_are_those_that_exist():
    """27 equally likely draws of 3 from {1, 10, 100}: each sum as often as enumeration says."""
    values = (1, 10, 100)
    expected: dict[int, float] = {}
    for drawn in itertools.product(values, repeat=3):
        expected[sum(drawn)] = expected.get(sum(drawn), 0) + 1 / 27
    sums = bootstrap_sums(column(list(values)), n_resamples=20_000, seed=0)[:, 0]
    found = {value: float((sums == value).mean()) for value in expected}
    assert sum(found.values()) == pytest.approx(1)
    assert found == pytest.approx(expected, abs=0.012)  # 4 standard errors


def test_interval_is_scipys():
    data = np.random.default_rng(7).gamma(2, size=80)
    theirs = scipy.stats.bootstrap(
        (data,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    ours = interval(bootstrap(data[:, None, None], mean, n_resamples=20_000, seed=2))[:, 0, 0]
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))


def test_systems_share_their_resamples():
    one = draws(0)
    samples = bootstrap(np.stack([one, one, one + 1], axis=1), mean, n_resamples=300)
    assert samples.shape == (300, 3, 1)
    assert (samples[:, 0] == samples[:, 1]).all()
    assert samples[:, 2] - samples[:, 0] == pytest.approx(1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Mean of 60 exponential draws, whose true mean is 1: theory says about 93.5 %."""
    hits = 0
    for seed in range(400):
        data = np.random.default_rng(seed).exponential(size=(60, 1, 1))
        low, high = interval(bootstrap(data, mean, n_resamples=400, seed=seed)).ravel()
        hits += int(low <= 1 <= high)
    assert 0.90 <= hits / 400 <= 0.97


# Randomisation


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.3])
def test_p_is_that_of_all_swaps(shift):
    a, b = draws(1, 12, shift), draws(2, 12)
    theirs = scipy.stats.permutation_test(
        (a[:, 0], b[:, 0]),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    (ours,) = randomisation_p(a, b, mean, n_resamples=20_000)
    assert ours == pytest.approx(theirs, abs=4 * np.sqrt(theirs * (1 - theirs) / 20_000) + 1e-4)


def test_p_of_bleu_is_that_of_all_swaps_scored_anew():
    predictions, references = random_pairs(60, seed=8)
    kept = [i for i, text in enumerate(references) if len(text.split()) > 3][:7]
    references = [references[i] for i in kept]
    one = [predictions[i] for i in kept]
    other = [" ".join(text.split()[:-2]) for text in references]
    gaps = []
    for swap in itertools.product([False, True], repeat=len(kept)):
        sides = [(o, a) if s else (a, o) for a, o, s in zip(one, other, swap, strict=True)]
        left, right = ([side[k] for side in sides] for k in (0, 1))
        gaps.append(
            abs(
                sacrebleu.corpus_bleu(left, [references]).score
                - sacrebleu.corpus_bleu(right, [references]).score
            )
        )
    expected = float(np.mean(np.array(gaps) >= gaps[0] - 1e-9))
    a, b = (statistics(texts, references).columns() for texts in (one, other))
    p = randomisation_p(a, b, metrics_of_sums, n_resamples=20_000)[ALL_METRICS.index("bleu")]
    assert 0 < expected < 1 and p == pytest.approx(expected, abs=0.015)


def test_p_is_never_zero_and_one_for_equals():
    a = draws(3)
    assert randomisation_p(a + 9, a, mean, n_resamples=999).tolist() == [1 / 1000]
    assert randomisation_p(a, a, mean, n_resamples=99).tolist() == [1.0]


def test_p_does_not_ask_which_system_comes_first():
    a, b = draws(4), draws(5)
    p = randomisation_p(a, b, mean, n_resamples=500)
    assert randomisation_p(b, a, mean, n_resamples=500) == p


def test_alike_systems_are_told_apart_as_rarely_as_the_level_says():
    alarms = 0
    for seed in range(400):
        a, b = np.random.default_rng(seed).random((2, 30, 1))
        alarms += bool(randomisation_p(a, b, mean, n_resamples=199, seed=seed) <= 0.05)
    assert 0.02 <= alarms / 400 <= 0.08


# Holm, sample size


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.01], [0.04, 0.02]),
        ([0.5, 0.9, 0.6], [1.0, 1.0, 1.0]),
        ([0.01, 0.01, 0.01, 0.01], [0.04, 0.04, 0.04, 0.04]),
        ([0.001, 0.02, 0.021, 0.5], [0.004, 0.06, 0.06, 0.5]),
        ([0.2], [0.2]),
    ],
)
def test_holm_by_hand(p, adjusted):
    assert holm(np.array(p)).tolist() == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_and_keeps_the_order(p):
    raw, adjusted = np.array(p), holm(np.array(p))
    assert (adjusted >= raw).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()


def test_reports_needed():
    assert reports_needed(20.0) == 3136  # (2.8 * 20)^2
    assert reports_needed(0.0) is None


# The benchmark


def test_the_benchmark_ends_with_json():
    done = forked("-m", "bench.scoring", "--n=40", "--n_resamples=100", "--threads=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["n"] == 40 and found["n_metrics"] == 6 and len(COLUMNS) == 15
    assert min(*found["ours"].values(), *found["others"].values()) > 0
