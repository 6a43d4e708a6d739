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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
MicroBatches = tuple[tuple[IntArray, ...], ...]

POOL_STEPS = 100  # steps whose examples are sorted together: larger pads less, smaller mixes more
POOLS = 4  # at least so many an epoch, or small data would meet in the same steps every time
GROUP_STEPS = 10  # steps of like source length among which examples are sorted by target length
DECODER_COST = 2.0  # a target token also passes cross-attention and the vocabulary


class Planned(Protocol):
    """What a plan is made from: how long the two sides of each example are, in tokens."""

    @property
    def source_lengths(self) -> IntArray: ...
    @property
    def target_lengths(self) -> IntArray: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Step:
    """One optimizer update: `micro_batches[m][r]` holds the example indices of micro-batch m on
    rank r.

    `indices` are all of them, long to short. The token counts are of the whole step, all
    micro-batches and all ranks: `n_label_tokens` divides its summed loss, `n_tokens` counts source
    tokens too.
    """

    indices: IntArray
    micro_batches: MicroBatches
    n_label_tokens: int
    n_tokens: int


@dataclass(frozen=True, eq=False)
class Plan(Sequence[Step]):
    """The steps of an epoch, each made when it is asked for: 10 million reports are a few arrays,
    not 300,000 objects of many parts."""

    examples: IntArray  # (N,), step after step as the buckets gave them
    size: int  # examples of a step; the last one in `examples` may have fewer
    order: IntArray  # (n_steps,), which of these steps comes when
    target_lengths: IntArray
    tokens: IntArray  # (N,), source and target
    split: Callable[[IntArray, IntArray, int, int], MicroBatches]
    grad_accum_steps: int
    n_ranks: int

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> "Plan": ...
    def __getitem__(self, index: int | slice) -> "Step | Plan":
        if isinstance(index, slice):
            return replace(self, order=self.order[index])
        start = int(self.order[index]) * self.size
        indices = self.examples[start : start + self.size]
        return Step(
            indices=indices,
            micro_batches=self.split(indices, self.tokens, self.grad_accum_steps, self.n_ranks),
            n_label_tokens=int(self.target_lengths[indices].sum()),
            n_tokens=int(self.tokens[indices].sum()),
        )


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
) -> Plan:
    """Every example exactly once, longest step first, the rest in random order.

    `whole` gives micro-batch m * n_ranks + r to rank r undivided: the micro-batches are then the
    same at any number of ranks that divides n_ranks * grad_accum_steps. Lengths are in tokens,
    shape (N,). Raises ValueError on empty data or a non-positive size.
    """
    if len(source_lengths) == 0 or len(source_lengths) != len(target_lengths):
        raise ValueError("source and target lengths must be equally many, at least one")
    if min(global_batch_size, n_ranks, grad_accum_steps) < 1:
        raise ValueError("batch size, ranks and accumulation steps must be at least 1")
    draw = np.random.default_rng([seed, epoch])
    examples = _bucket(source_lengths, target_lengths, global_batch_size, draw)
    return Plan(
        examples=examples,
        size=global_batch_size,
        order=_longest_first(examples, source_lengths, target_lengths, global_batch_size, draw),
        target_lengths=target_lengths,
        tokens=source_lengths + target_lengths,
        split=_split_whole if whole else _split,
        grad_accum_steps=grad_accum_steps,
        n_ranks=n_ranks,
    )


def _bucket(source: IntArray, target: IntArray, size: int, draw: np.random.Generator) -> IntArray:
    """A shuffled epoch (N,), sorted so that every `size` in a row, a step, are of like lengths.

    Inside a step examples run from long to short. Random tie-breaks come from the shuffle (stable
    sorts). All is done in place.
    """
    epoch = draw.permutation(len(source))
    pool_steps = max(1, min(POOL_STEPS, n_steps(len(source), size) // POOLS))
    for pool in _chunks(epoch, pool_steps * size):
        pool[:] = pool[np.argsort(-source[pool], kind="stable")]
        for group in _chunks(pool, GROUP_STEPS * size):
            group[:] = group[np.lexsort((-source[group], -target[group]))]
    return epoch


def _longest_first(
    epoch: IntArray, source: IntArray, target: IntArray, size: int, draw: np.random.Generator
) -> IntArray:
    """Random order of the steps, but the one that needs most memory comes first: out of memory
    shows in seconds."""
    starts = np.arange(0, len(epoch), size)
    longest = (np.maximum.reduceat(lengths[epoch], starts) for lengths in (source, target))
    first = int(np.argmax(padded_cost(np.diff(starts, append=len(epoch)), *longest)))
    rest = draw.permutation(len(starts))
    return np.concatenate([[first], rest[rest != first]])


def padded_cost(n: Any, source: Any, target: Any) -> Any:
    """Of one batch of n examples with these longest lengths, or of many (arrays): tokens, a target
    token weighted as DECODER_COST source tokens."""
    return n * (source + DECODER_COST * target)


def _split(step: IntArray, tokens: IntArray, n_micro: int, n_ranks: int) -> MicroBatches:
    """Cut one step into micro-batches by length, and each micro-batch over the ranks.

    A short last step may leave a rank without examples (an empty shard: the collator makes it a
    batch of no label), never a rank without its turn. Micro-batches that are empty everywhere are
    left out.
    """
    micro_batches = [part for part in np.array_split(step, n_micro) if len(part)]
    return tuple(tuple(_deal(part, tokens[part], n_ranks)) for part in micro_batches)


def _split_whole(step: IntArray, tokens: IntArray, n_micro: int, n_ranks: int) -> MicroBatches:
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
    owner = np.empty_like(indices)
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
