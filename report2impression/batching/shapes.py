"""Few shapes for many packed batches: what CUDA graphs are captured for (training/graphs.py).

Padding to a shape adds tokens that nobody looks at and examples without a label: the loss is the
same sum. Pure functions of lengths, no torch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from report2impression.batching.plan import DECODER_COST

GRID_MULTIPLE = 16  # places: whole vectors on a CPU, aligned fused attention on CUDA
GRID_COST = 0.1  # a place of a grid passes attention alone, a token all matrices, too

Lengths = Sequence[int] | NDArray[np.int64]


class Shape(NamedTuple):
    """Of a packed batch with one grid a side."""

    n_examples: int
    source_tokens: int
    source_width: int
    target_tokens: int
    target_width: int

    def holds(self, source: Lengths, target: Lengths) -> bool:
        """Whether a batch of these lengths can be padded to it."""
        n_added = self.n_examples - len(source)
        sides = (
            (source, self.source_tokens, self.source_width),
            (target, self.target_tokens, self.target_width),
        )
        for lengths, tokens, width in sides:
            needed = int(np.sum(lengths)) + n_added  # one token for each example that is added
            if n_added < 0 or needed > tokens or max(lengths, default=1) > width:
                return False
            if needed < tokens and needed == self.n_examples * width:
                return False  # no place of padding for the tokens that round up
        return True


def side_shape(lengths: Lengths, multiple: int) -> tuple[int, int]:
    """(packed tokens, width of the grid), rounded up."""
    n_extra = -int(np.sum(lengths)) % multiple
    return int(np.sum(lengths)) + n_extra, grid_width(lengths, n_extra)


def grid_width(lengths: Lengths, n_extra: int) -> int:
    """Of GRID_MULTIPLE columns or more; with a place of padding if n_extra tokens round up."""
    width = -(-int(max(lengths)) // GRID_MULTIPLE) * GRID_MULTIPLE
    is_full = width * len(lengths) == int(np.sum(lengths))
    return width + GRID_MULTIPLE * (is_full and n_extra > 0)


def shape_of(source: Lengths, target: Lengths, multiple: int) -> Shape:
    """As collate_packed makes it of these lengths when it is given no shape."""
    return Shape(len(source), *side_shape(source, multiple), *side_shape(target, multiple))


def _cost(shapes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., 5) -> (...), in source tokens."""
    n, source, width, target, target_width = np.moveaxis(shapes, -1, 0)
    grids = n * (width + DECODER_COST * target_width)
    return source + DECODER_COST * target + GRID_COST * grids


def bounded(shapes: Iterable[Shape], most: int) -> list[Shape]:
    """At most `most` shapes, falling by cost, that hold all of these: the two whose union costs
    least are made one, until they are few enough."""
    counted = Counter(shapes)
    kinds = np.array(list(counted), dtype=np.int64).reshape(-1, 5)
    counts = np.array(list(counted.values()), dtype=np.float64)

    def added(i: int) -> NDArray[np.float64]:
        """What it costs to make shape i one with each of the others."""
        union = _cost(np.maximum(kinds, kinds[i]))
        costs = counts * (union - _cost(kinds)) + counts[i] * (union - _cost(kinds[i]))
        return np.where((np.arange(len(kinds)) == i) | (counts == 0), np.inf, costs)

    table = np.array([added(i) for i in range(len(kinds))])
    for _ in range(len(kinds) - most):
        i, j = divmod(int(table.argmin()), len(kinds))
        kinds[i], counts[i] = np.maximum(kinds[i], kinds[j]), counts[i] + counts[j]
        counts[j], table[j], table[:, j] = 0, np.inf, np.inf
        table[i] = table[:, i] = added(i)
    left = kinds[counts > 0]
    return [Shape(*map(int, row)) for row in left[np.argsort(-_cost(left), kind="stable")]]


def smallest(shapes: Sequence[Shape], source: Lengths, target: Lengths) -> Shape | None:
    """The cheapest of them (falling by cost) that a batch of these lengths fits into."""
    return next((shape for shape in reversed(shapes) if shape.holds(source, target)), None)
