"""denoise.py: what is hidden can be put back, and how much is hidden depends on length alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DenoiseDataset
from report2impression.batching.denoise import (
    MIN_TOKENS,
    IdArray,
    corrupt,
    corrupted_lengths,
    cuts,
    span_counts,
    split_at,
)
from report2impression.batching.tokens import Tokens

FAST = settings(max_examples=100, deadline=None)
EOS = 1
FIRST_SENTINEL = 1000  # ids fall from here, as in T5; every word id is below

lengths = st.integers(MIN_TOKENS, 700)
sentinel_counts = st.integers(2, 101)
seeds = st.integers(0, 2**31)


def sentinels(n: int) -> IdArray:
    return np.arange(FIRST_SENTINEL + n - 1, FIRST_SENTINEL - 1, -1, dtype=np.int32)


def report(n: int) -> IdArray:
    """All ids different, so that a swap would show."""
    return np.arange(2, n + 2, dtype=np.int32)


def corrupted(n: int, n_sentinels: int, seed: int) -> tuple[list[int], list[int]]:
    draw = np.random.default_rng(seed)
    source, target = corrupt(report(n), sentinels(n_sentinels), EOS, draw)
    assert source.dtype == target.dtype == np.int32
    return source.tolist(), target.tolist()


def used(ids: list[int]) -> list[int]:
    return [i for i in ids if i >= FIRST_SENTINEL]


def put_back(source: list[int], target: list[int]) -> list[int]:
    """The report: each sentinel of the source replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= FIRST_SENTINEL:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    parts = (spans.get(token, [token]) for token in source[:-1])
    return [token for part in parts for token in part]


@FAST
@given(lengths, sentinel_counts, seeds)
def test_round_trip(n: int, n_sentinels: int, seed: int) -> None:
    assert put_back(*corrupted(n, n_sentinels, seed)) == report(n).tolist()


@FAST
@given(lengths, sentinel_counts, seeds)
def test_lengths_are_known_before_the_draw(n: int, n_sentinels: int, seed: int) -> None:
    source, target = corrupted(n, n_sentinels, seed)
    assert (len(source), len(target)) == corrupted_lengths(n, n_sentinels - 1)


@FAST
@given(lengths, sentinel_counts, seeds)
def test_sentinels_in_order_one_more_at_the_end_then_eos(
    n: int, n_sentinels: int, seed: int
) -> None:
    source, target = corrupted(n, n_sentinels, seed)
    in_order = sentinels(n_sentinels).tolist()
    n_spans = len(used(source))
    assert 1 <= n_spans < n_sentinels
    assert used(source) == in_order[:n_spans]
    assert used(target) == in_order[: n_spans + 1]
    assert source[-1] == target[-1] == EOS
    assert target[0] == in_order[0] and target[-2] == in_order[n_spans]
    assert source[0] == report(n)[0]  # the first token always stays
    pairs = zip(target[:-2], target[1:-2], strict=False)
    assert not any(min(pair) >= FIRST_SENTINEL for pair in pairs)  # no span is empty


@FAST
@given(lengths, st.integers(1, 100))
def test_span_counts(n: int, max_spans: int) -> None:
    noise, spans = span_counts(n, max_spans)
    assert 1 <= noise < n
    assert 1 <= spans <= min(max_spans, noise, n - noise)
    if n >= 20:
        assert abs(noise / n - 0.15) <= 0.5 / n + 1e-9


@pytest.mark.parametrize("n", [100, 300, 512])
def test_fifteen_percent_in_spans_of_three(n: int) -> None:
    noise, spans = span_counts(n, 100)
    assert noise / n == pytest.approx(0.15, abs=0.005)
    assert noise / spans == pytest.approx(3.0, abs=0.15)


@FAST
@given(lengths, seeds)
def test_a_pure_function_of_the_generator(n: int, seed: int) -> None:
    assert corrupted(n, 101, seed) == corrupted(n, 101, seed)


def test_every_place_but_the_first_gets_hidden() -> None:
    hidden: set[int] = set()
    for seed in range(200):
        hidden |= set(corrupted(40, 101, seed)[1]) - {EOS}
    places = {i for i in hidden if i < FIRST_SENTINEL}
    assert places == set(report(40)[1:].tolist())


def dataset(**changes: Any) -> DenoiseDataset:
    sizes = [2, 5, 40, 300]
    ids = np.concatenate([report(n) for n in sizes])
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(sizes)]), 0)
    names = [f"report-{n}" for n in sizes]
    call = {"seed": 3, **changes}
    starts = tokens.lengths * 3 // 4
    return DenoiseDataset("train", names, tokens, starts, sentinels(101), EOS, **call)


def rows(data: DenoiseDataset) -> list[tuple[list[int], list[int]]]:
    return [
        (source.tolist(), target.tolist()) for source, target in map(data.__getitem__, range(4))
    ]


def test_dataset_knows_the_lengths_that_it_draws() -> None:
    data = dataset()
    assert len(data) == 4
    for epoch in range(3):
        drawn = [(len(s), len(t)) for s, t in rows(data.for_epoch(epoch))]
        known = zip(data.source_lengths.tolist(), data.target_lengths.tolist(), strict=True)
        assert drawn == list(known)


def test_epoch_seed_and_index_decide_the_draw() -> None:
    data = dataset()
    assert rows(data.for_epoch(1)) == rows(dataset().for_epoch(1))
    assert rows(data.for_epoch(1))[3] != rows(data.for_epoch(2))[3]
    assert rows(dataset(seed=4))[3] != rows(data)[3]
    same, starts = data.report.take([3, 3]), data.impressions[[3, 3]]
    twice = replace(data, ids=["a", "b"], report=same, impressions=starts)
    assert twice[0][1].tolist() != twice[1][1].tolist()


def test_for_epoch_leaves_the_dataset_as_it_is() -> None:
    data = dataset()
    before = rows(data)
    data.for_epoch(5)
    assert data.epoch == 0 and rows(data) == before


@FAST
@given(lengths, st.integers(1, 700), st.sampled_from([0.0, 0.5, 1.0]), seeds)
def test_a_report_cut_in_two_can_be_joined_again(
    n: int, start: int, at_impression: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    (cut,) = cuts(np.array([n]), np.array([start]), 1.0, at_impression, draw).tolist()
    assert n // 2 <= cut < n or cut == start
    source, target = split_at(report(n), cut, EOS)
    assert source[-1] == target[-1] == EOS and len(source) > 1 and len(target) > 1
    assert [*source[:-1].tolist(), *target[:-1].tolist()] == report(n).tolist()


@pytest.mark.parametrize(
    ("start", "at_impression", "share"),
    [(35, 0.0, 0.05), (35, 0.6, 0.62), (35, 1.0, 1.0), (4, 1.0, 1.0), (40, 1.0, 0.0)],
)  # (35: one of the 20 random places is the impression's; 40: the limit has cut it off)
def test_a_share_of_the_reports_is_cut_in_two_some_at_the_impression(
    start: int, at_impression: float, share: float
) -> None:
    n, draw = 20_000, np.random.default_rng(0)
    found = cuts(np.full(n, 40), np.full(n, start), 0.3, at_impression, draw)
    cut = found[found > 0]
    assert len(cut) / n == pytest.approx(0.3, abs=0.02)
    assert np.mean(cut == start) == pytest.approx(share, abs=0.02)
    assert {*cut.tolist()} - {start} <= {*range(20, 40)}
    assert not cuts(np.full(50, 40), np.full(50, 9), 0.0, 1.0, draw).any()


def test_lengths_of_cut_reports_are_known_and_change_with_the_epoch() -> None:
    data = dataset(continued=0.5, at_impression=0.5)
    kinds = set()
    for epoch in range(20):
        now = data.for_epoch(epoch)
        drawn = [(len(s), len(t)) for s, t in rows(now)]
        assert drawn == list(
            zip(now.source_lengths.tolist(), now.target_lengths.tolist(), strict=True)
        )
        kinds |= {sum(pair) == n + 2 for pair, n in zip(drawn, [2, 5, 40, 300], strict=True)}
    assert kinds == {True, False}
