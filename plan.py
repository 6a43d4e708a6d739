"""The epoch as data: lengths -> optimizer steps -> micro-batches -> ranks. Pure functions, no
torch.

Which examples share an optimizer step depends on (lengths, global batch size, seed, epoch) alone;
how that step is cut into micro-batches and ranks is a second, independent function. So 1 x 16, 2 x
8 and 4 x 4, on one process or two, see the same steps; and every example stands in exactly one step
at any number of ranks. (Sharding a bucketed batch sampler from outside, as launchers do, silently
drops ragged batches.)

Steps are drawn from two-key length buckets: a shuffled pool of steps is sorted by source length,
cut into groups, and each group is sorted by target length. Both sides of a batch then pad little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

POOL_STEPS = 100  # steps whose examples are sorted together: larger pads less, smaller mixes more
POOLS = 4  # at least so many an epoch, or small data would meet in the same steps every time
GROUP_STEPS = 10  # steps of like source length among which examples are sorted by target length
DECODER_COST = 2.0  # a target token also passes cross-attention and the vocabulary


@dataclass(frozen=True)
class Step:
    """One optimizer update: `micro_batches[m][r]` holds the example indices of micro-batch m on
    rank r.

    `indices` are all of them, long to short. The token counts are of the whole step, all
    micro-batches and all ranks: `n_label_tokens` divides its summed loss, `n_tokens` counts source
    tokens too.
    """

    indices: IntArray
    micro_batches: tuple[tuple[IntArray, ...], ...]
    n_label_tokens: int
    n_tokens: int


def plan_epoch(
    source_lengths: IntArray,
    target_lengths: IntArray,
    *,
    global_batch_size: int,
    n_ranks: int = 1,
    grad_accum_steps: int = 1,
    seed: int = 0,
    epoch: int = 0,
    whole: bool = False,
) -> list[Step]:
    """Every example exactly once, longest step first, the rest in random order.

    `whole` gives micro-batch m * n_ranks + r to rank r undivided: the micro-batches are then the
    same at any number of ranks that divides n_ranks * grad_accum_steps. Lengths are in tokens,
    shape (N,). Raises ValueError on empty data or a non-positive size.
    """
    if len(source_lengths) == 0 or len(source_lengths) != len(target_lengths):
        raise ValueError("source and target lengths must be equally many, at least one")
    if min(global_batch_size, n_ranks, grad_accum_steps) < 1:
        raise ValueError("batch size, ranks and accumulation steps must be at least 1")
    order = np.random.default_rng([seed, epoch])
    steps = _bucket(source_lengths, target_lengths, global_batch_size, order)
    steps = _longest_first(steps, source_lengths, target_lengths, order)
    tokens = source_lengths + target_lengths
    split = _split_whole if whole else _split
    return [
        Step(
            indices=step,
            micro_batches=split(step, tokens, grad_accum_steps, n_ranks),
            n_label_tokens=int(target_lengths[step].sum()),
            n_tokens=int(tokens[step].sum()),
        )
        for step in steps
    ]


def _bucket(
    source: IntArray, target: IntArray, size: int, order: np.random.Generator
) -> list[IntArray]:
    """Cut a shuffled epoch into steps of `size` (the last one may be shorter), each of like
    lengths.

    Inside a step examples run from long to short. Random tie-breaks come from the shuffle (stable
    sorts).
    """
    steps: list[IntArray] = []
    shuffled = order.permutation(len(source))
    pool_steps = max(1, min(POOL_STEPS, n_steps(len(source), size) // POOLS))
    for pool in _chunks(shuffled, pool_steps * size):
        by_source = pool[np.argsort(-source[pool], kind="stable")]
        for group in _chunks(by_source, GROUP_STEPS * size):
            by_target = group[np.lexsort((-source[group], -target[group]))]
            steps.extend(_chunks(by_target, size))
    return steps


def _longest_first(
    steps: list[IntArray], source: IntArray, target: IntArray, order: np.random.Generator
) -> list[IntArray]:
    """Random order, but the step that needs most memory comes first: out of memory shows in
    seconds."""
    cost = [padded_cost(source[step], target[step]) for step in steps]
    longest = int(np.argmax(cost))
    rest = [i for i in order.permutation(len(steps)) if i != longest]
    return [steps[i] for i in [longest, *rest]]


def padded_cost(source: IntArray, target: IntArray) -> float:
    """Tokens of a padded batch, a target token weighted as DECODER_COST source tokens."""
    return len(source) * (float(source.max()) + DECODER_COST * float(target.max()))


def _split(
    step: IntArray, tokens: IntArray, n_micro: int, n_ranks: int
) -> tuple[tuple[IntArray, ...], ...]:
    """Cut one step into micro-batches by length, and each micro-batch over the ranks.

    A short last step may leave a rank without examples (an empty shard: the collator makes it a
    batch of no label), never a rank without its turn. Micro-batches that are empty everywhere are
    left out.
    """
    micro_batches = [part for part in np.array_split(step, n_micro) if len(part)]
    return tuple(tuple(_deal(part, tokens[part], n_ranks)) for part in micro_batches)


def _split_whole(
    step: IntArray, tokens: IntArray, n_micro: int, n_ranks: int
) -> tuple[tuple[IntArray, ...], ...]:
    """Cut one step into micro-batches that the ranks take in turn; nobody's turn is left out."""
    parts = [part for part in np.array_split(step, n_micro * n_ranks) if len(part)]
    parts += [step[:0]] * (-len(parts) % n_ranks)
    return tuple(tuple(parts[i : i + n_ranks]) for i in range(0, len(parts), n_ranks))


def _deal(indices: IntArray, tokens: IntArray, n_ranks: int) -> list[IntArray]:
    """Equal counts (+-1), nearly equal tokens: each example, longest first, goes to the rank with
    fewest tokens that has room (Graham 1969). Which rank begins changes from step to step."""
    if n_ranks == 1:
        return [indices]
    least, n_larger = divmod(len(indices), n_ranks)
    owner = np.zeros(len(indices), dtype=np.int64)
    first = int(indices[0])
    waiting = [(0, turn, (first + turn) % n_ranks, 0) for turn in range(n_ranks)]
    for position in np.argsort(-tokens, kind="stable").tolist():
        load, turn, rank, count = heappop(waiting)
        while count == least and not n_larger:
            load, turn, rank, count = heappop(waiting)  # the one before is full
        n_larger -= count == least
        owner[position] = rank
        if count < least:
            heappush(waiting, (load + int(tokens[position]), turn, rank, count + 1))
    return [indices[owner == rank] for rank in range(n_ranks)]


def plan_evaluation(
    source_lengths: IntArray, target_lengths: IntArray, *, batch_size: int
) -> list[IntArray]:
    """Batches of like length, long to short, the same at any number of ranks: rank r takes
    [r::n_ranks]."""
    by_length = np.lexsort((-target_lengths, -source_lengths))
    return list(_chunks(by_length, batch_size))


def _chunks(indices: IntArray, size: int) -> Iterable[IntArray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))


def n_steps(n_examples: int, global_batch_size: int) -> int:
    """Optimizer updates in an epoch; the last one may hold fewer examples."""
    return -(-n_examples // global_batch_size)


def padding_share(batches: Sequence[IntArray], lengths: IntArray) -> float:
    """Share of padding among the tokens of dynamically padded batches, in [0, 1)."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1.0 - sum(int(lengths[batch].sum()) for batch in batches) / padded
