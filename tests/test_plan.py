"""plan.py on random lengths: every example once, the same steps however they are cut."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report2impression.batching import plan as plans
from report2impression.batching.plan import (
    IntArray,
    Plan,
    Step,
    n_steps,
    padded_cost,
    plan_epoch,
    plan_evaluation,
)

FAST = settings(max_examples=40, deadline=None)


def report_lengths(n: int, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Lengths (n,) as reports have them: lognormal, the target loosely tied to the source."""
    draw = np.random.default_rng(seed)
    source = np.clip(draw.lognormal(4.6, 0.6, n), 4, 512).astype(np.int64)
    target = np.clip(source * 0.2 * draw.lognormal(0, 0.5, n), 2, 256).astype(np.int64)
    return source, target


@st.composite
def epochs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of plan_epoch: 1 to 200 examples, any cut, ragged last steps included."""
    n = draw(st.integers(1, 200))
    lengths = np.random.default_rng(draw(st.integers(0, 2**32)))  # 400 draws of st are slow
    longest = st.integers(1, 60)  # small ones give many equal lengths
    return {
        "source_lengths": lengths.integers(1, draw(longest), n, endpoint=True),
        "target_lengths": lengths.integers(1, draw(longest), n, endpoint=True),
        "global_batch_size": draw(st.integers(1, 40)),
        "n_ranks": draw(st.integers(1, 8)),
        "grad_accum_steps": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**31)),
        "epoch": draw(st.integers(0, 50)),
    }


def dealt(step: Step) -> list[int]:
    return [int(i) for shards in step.micro_batches for shard in shards for i in shard]


def as_lists(steps: Sequence[Step]) -> list[Any]:
    return [[[shard.tolist() for shard in m] for m in step.micro_batches] for step in steps]


def step_by_step(
    source: IntArray, target: IntArray, size: int, draw: np.random.Generator
) -> list[IntArray]:
    """The examples of each step, as lists in plain words: what `plan_epoch` does with arrays."""
    pool_size = max(1, min(plans.POOL_STEPS, n_steps(len(source), size) // plans.POOLS)) * size
    group_size = plans.GROUP_STEPS * size
    shuffled = draw.permutation(len(source)).tolist()
    steps: list[list[int]] = []
    for begin in range(0, len(shuffled), pool_size):
        pool = sorted(shuffled[begin : begin + pool_size], key=lambda i: -source[i])
        for first in range(0, len(pool), group_size):
            group = sorted(pool[first : first + group_size], key=lambda i: (-target[i], -source[i]))
            steps += [group[i : i + size] for i in range(0, len(group), size)]
    cost = [len(s) * (max(source[s]) + plans.DECODER_COST * max(target[s])) for s in steps]
    longest = cost.index(max(cost))
    rest = [i for i in draw.permutation(len(steps)).tolist() if i != longest]
    return [np.array(steps[i]) for i in [longest, *rest]]


@settings(max_examples=100, deadline=None)
@given(epochs())
def test_the_steps_are_those_of_the_plain_method(call: dict[str, Any]) -> None:
    """Published figures depend on them: the same seed must give the same steps in all versions."""
    draw = np.random.default_rng([call["seed"], call["epoch"]])
    lengths = call["source_lengths"], call["target_lengths"]
    expected = step_by_step(*lengths, call["global_batch_size"], draw)
    found = plan_epoch(**call)
    assert [step.indices.tolist() for step in found] == [step.tolist() for step in expected]


def test_a_pinned_plan() -> None:
    source, target = report_lengths(5000)
    plan = plan_epoch(source, target, global_batch_size=16, n_ranks=2, seed=3, epoch=1)
    digest = hashlib.sha256(repr(as_lists(plan)).encode()).hexdigest()
    assert digest == "b8e1dc858a6d4c51947cd5f5d12eddce615edce9bf909cf356a896dfececefad"


def test_a_pinned_plan_of_three_ranks() -> None:
    """Two cannot tell in which direction the ranks take turns."""
    source, target = report_lengths(500)
    plan = plan_epoch(source, target, global_batch_size=14, n_ranks=3, grad_accum_steps=2)
    digest = hashlib.sha256(repr(as_lists(plan)).encode()).hexdigest()
    assert digest == "225b582cfc841ad842cdb45340dffdf3e0ee16411ef0c5c898a48ff818d06707"


def test_one_process_and_the_first_epoch_of_seed_0_if_nothing_is_said() -> None:
    lengths = report_lengths(200)
    said: dict[str, Any] = {"n_ranks": 1, "grad_accum_steps": 1, "seed": 0, "epoch": 0}
    plain, told = (plan_epoch(*lengths, global_batch_size=8, **some) for some in ({}, said))
    assert as_lists(plain) == as_lists(told)


def test_a_rank_with_one_long_report_still_gets_its_share() -> None:
    tokens = np.array([100, 1, 1, 1, 1, 1, 1])
    (step,) = plan_epoch(tokens - 1, tokens * 0 + 1, global_batch_size=7, n_ranks=3)
    (shards,) = step.micro_batches
    assert sorted(len(shard) for shard in shards) == [2, 2, 3]


@FAST
@given(epochs(), st.integers(-300, 300), st.integers(-300, 300))
def test_a_part_of_a_plan_is_a_plan(call: dict[str, Any], begin: int, end: int) -> None:
    plan = plan_epoch(**call)
    part = plan[begin:end]
    assert isinstance(part, Plan) and len(part) == len(range(len(plan))[begin:end])
    assert as_lists(part) == as_lists(list(plan)[begin:end])
    with pytest.raises(IndexError):
        plan[len(plan)]


@FAST
@given(epochs(), st.booleans())
def test_every_example_exactly_once(call: dict[str, Any], whole: bool) -> None:
    steps = plan_epoch(**call, whole=whole)
    everyone = list(range(len(call["source_lengths"])))
    assert sorted(i for step in steps for i in dealt(step)) == everyone
    assert sorted(int(i) for step in steps for i in step.indices) == everyone
    assert all(sorted(dealt(step)) == sorted(step.indices) for step in steps)


@FAST
@given(epochs())
def test_number_and_size_of_steps(call: dict[str, Any]) -> None:
    n, size = len(call["source_lengths"]), call["global_batch_size"]
    sizes = sorted(len(step.indices) for step in plan_epoch(**call))
    assert len(sizes) == n_steps(n, size)
    assert sizes == sorted([size] * (n // size) + [n % size] * (n % size > 0))


@FAST
@given(epochs())
def test_token_counts_are_of_the_whole_step(call: dict[str, Any]) -> None:
    source, target = call["source_lengths"], call["target_lengths"]
    for step in plan_epoch(**call):
        assert step.n_label_tokens == sum(int(target[i]) for i in dealt(step))
        assert step.n_tokens == sum(int(source[i] + target[i]) for i in dealt(step))


@FAST
@given(epochs())
def test_every_micro_batch_is_shared_evenly(call: dict[str, Any]) -> None:
    for step in plan_epoch(**call):
        assert 1 <= len(step.micro_batches) <= call["grad_accum_steps"]
        per_micro = [sum(len(shard) for shard in shards) for shards in step.micro_batches]
        assert min(per_micro) >= 1 and max(per_micro) - min(per_micro) <= 1
        for shards in step.micro_batches:
            sizes = [len(shard) for shard in shards]
            assert len(sizes) == call["n_ranks"]
            assert max(sizes) - min(sizes) <= 1


@FAST
@given(epochs(), st.integers(1, 4), st.integers(1, 4))
def test_whole_micro_batches_are_the_same_at_any_number_of_ranks(
    call: dict[str, Any], n_ranks: int, rounds: int
) -> None:
    """Rank r has numbers r, r + n_ranks, ... of those that one rank has; empty ones fill up."""
    cut = {**call, "whole": True}
    alone = plan_epoch(**{**cut, "n_ranks": 1, "grad_accum_steps": n_ranks * rounds})
    dealt_out = plan_epoch(**{**cut, "n_ranks": n_ranks, "grad_accum_steps": rounds})
    for one, many in zip(alone, dealt_out, strict=True):
        expected = [shard.tolist() for (shard,) in one.micro_batches]
        found = [shard.tolist() for shards in many.micro_batches for shard in shards]
        assert found[: len(expected)] == expected
        assert found[len(expected) :] == [[]] * (-len(expected) % n_ranks)
        assert all(len(shards) == n_ranks for shards in many.micro_batches)


@FAST
@given(epochs())
def test_the_cut_does_not_change_the_steps(call: dict[str, Any]) -> None:
    whole = plan_epoch(**{**call, "n_ranks": 1, "grad_accum_steps": 1})
    cut = plan_epoch(**call)
    assert [s.indices.tolist() for s in cut] == [s.indices.tolist() for s in whole]
    assert [(s.n_tokens, s.n_label_tokens) for s in cut] == [
        (s.n_tokens, s.n_label_tokens) for s in whole
    ]


def test_one_global_batch_size_has_one_plan() -> None:
    source, target = report_lengths(500)
    plans = [
        plan_epoch(
            source,
            target,
            global_batch_size=ranks * accumulation * micro,
            n_ranks=ranks,
            grad_accum_steps=accumulation,
        )
        for ranks, accumulation, micro in ((1, 1, 16), (2, 1, 8), (4, 2, 2), (8, 2, 1), (1, 4, 4))
    ]
    steps = [[sorted(dealt(step)) for step in plan] for plan in plans]
    assert all(other == steps[0] for other in steps)


def test_a_full_step_gives_every_rank_its_micro_batch_size() -> None:
    source, target = report_lengths(256)
    plan = plan_epoch(source, target, global_batch_size=64, n_ranks=4, grad_accum_steps=2)
    assert {len(s) for step in plan for m in step.micro_batches for s in m} == {8}


def test_a_rank_without_examples_keeps_its_turn() -> None:
    lengths = np.array([3, 2, 4])
    (step,) = plan_epoch(lengths, lengths, global_batch_size=16, n_ranks=8, grad_accum_steps=4)
    counts = [sorted(len(shard) for shard in m) for m in step.micro_batches]
    assert counts == [[0] * 7 + [1]] * 3  # which rank has the example changes


def costs(steps: Sequence[Step], source: np.ndarray, target: np.ndarray) -> list[float]:
    chosen = [step.indices for step in steps]
    return [padded_cost(len(i), source[i].max(), target[i].max()) for i in chosen]


@FAST
@given(epochs())
def test_longest_step_first(call: dict[str, Any]) -> None:
    steps = plan_epoch(**call)
    source, target = call["source_lengths"], call["target_lengths"]
    cost = costs(steps, source, target)
    assert cost[0] == max(cost)


def test_the_rest_is_not_sorted() -> None:
    source, target = report_lengths(2000)
    steps = plan_epoch(source, target, global_batch_size=16)
    cost = costs(steps, source, target)[1:]
    position = np.arange(len(cost))
    assert abs(np.corrcoef(cost, position)[0, 1]) < 0.25


@FAST
@given(epochs())
def test_examples_of_a_step_run_from_long_to_short(call: dict[str, Any]) -> None:
    for step in plan_epoch(**call):
        target = call["target_lengths"][step.indices]
        assert (np.diff(target) <= 0).all()


@FAST
@given(epochs())
def test_deterministic(call: dict[str, Any]) -> None:
    assert as_lists(plan_epoch(**call)) == as_lists(plan_epoch(**call))


def test_epochs_and_seeds_differ_in_order_and_in_company() -> None:
    source, target = report_lengths(4000)
    owners = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        plan = plan_epoch(source, target, global_batch_size=8, seed=seed, epoch=epoch)
        owner = np.empty(4000, dtype=np.int64)
        for number, step in enumerate(plan):
            owner[step.indices] = number
        owners.append(owner)
    for i, one in enumerate(owners):
        for other in owners[:i]:
            assert (one == other).mean() < 0.05
            # Pairs that share a step in both, of the 4000 * 7 / 2 that share one at all.
            together = np.unique(one * 4000 + other, return_counts=True)[1]
            assert (together * (together - 1) / 2).sum() < 0.25 * 14_000


def test_small_data_do_not_meet_in_the_same_steps_every_epoch() -> None:
    """In a single pool over all of them, like lengths would: nine in ten pairs meet again."""
    n, size = 800, 16
    source, target = report_lengths(n)
    owners = np.empty((2, n), dtype=np.int64)
    for epoch in range(2):
        plan = plan_epoch(source, target, global_batch_size=size, epoch=epoch)
        for number, step in enumerate(plan):
            owners[epoch, step.indices] = number
    together = np.unique(owners[0] * n + owners[1], return_counts=True)[1]
    assert (together * (together - 1) / 2).sum() < 0.4 * n * (size - 1) / 2


def padding_share(batches: Sequence[np.ndarray], lengths: np.ndarray) -> float:
    """Of the tokens of dynamically padded batches."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / padded


def test_two_key_buckets_pad_less_than_half_of_a_random_order() -> None:
    source, target = report_lengths(16_000)  # enough for pools of full size
    shuffled = np.random.default_rng(1).permutation(16_000)
    random_batches = list(shuffled.reshape(-1, 32))
    batches = [step.indices for step in plan_epoch(source, target, global_batch_size=32)]
    for lengths in (source, target):
        assert padding_share(batches, lengths) < 0.45 * padding_share(random_batches, lengths)


@pytest.mark.parametrize(
    ("n_ranks", "waiting", "unfairness"), [(2, 1.01, 1.003), (4, 1.02, 1.012), (8, 1.03, 1.03)]
)
def test_ranks_have_nearly_equal_tokens(n_ranks: int, waiting: float, unfairness: float) -> None:
    source, target = report_lengths(16_000)  # pools of full size
    plan = plan_epoch(source, target, global_batch_size=32, n_ranks=n_ranks)

    def per_rank(lengths: IntArray) -> IntArray:
        return np.array([[lengths[s].sum() for s in m] for x in plan for m in x.micro_batches])

    tokens, labels = per_rank(source + target), per_rank(target)
    # A step lasts as long as its fullest rank: over the mean rank, that is the waiting.
    assert tokens.max(1).sum() / tokens.mean(1).sum() < waiting
    # No rank gets the long targets of every step: dealing 0 1 2 0 1 2 would be over this.
    assert labels.sum(0).max() / labels.sum(0).mean() < unfairness


@FAST
@given(epochs(), st.integers(1, 40))
def test_evaluation_covers_once_from_long_to_short(call: dict[str, Any], size: int) -> None:
    source, target = call["source_lengths"], call["target_lengths"]
    batches = plan_evaluation(source, target, batch_size=size)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(source)))
    assert len(batches) == n_steps(len(source), size)
    assert all(len(batch) == size for batch in batches[:-1])
    lengths = [(int(source[i]), int(target[i])) for i in order]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("n", "size", "steps"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (32, 16, 2)]
)
def test_n_steps(n: int, size: int, steps: int) -> None:
    assert n_steps(n, size) == steps


LENGTHS = "source and target lengths must be equally many, at least one"
SIZES = "batch size, ranks and accumulation steps must be at least 1"


@pytest.mark.parametrize(
    ("source", "target", "sizes", "told"),
    [
        ([], [], {}, LENGTHS),
        ([1, 2], [1], {}, LENGTHS),
        ([1], [1], {"global_batch_size": 0}, SIZES),
        ([1], [1], {"n_ranks": 0}, SIZES),
        ([1], [1], {"grad_accum_steps": -1}, SIZES),
    ],
)
def test_refuses_what_cannot_be_planned(
    source: list[int], target: list[int], sizes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        plan_epoch(np.array(source), np.array(target), **{"global_batch_size": 2, **sizes})
