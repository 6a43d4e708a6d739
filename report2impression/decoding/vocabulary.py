"""From hidden states to tokens: logits of the whole vocabulary, or only the largest.

The projection on 32,128 tokens is a quarter of decoding in fp32. On a CPU `best` lets 8 bits
propose and fp32 decide: all logits in 8 bits (engine/int8.py), those that could be the largest
again in fp32. The result is that of fp32, proven row by row: with h' and v' for h and v in 8 bits,

    |h v - h' v'|  <=  |h - h'| |v| + |h'| |v - v'|

so a token whose proposed logit is further than that below another's cannot be the best. Tokens
come in blocks of one bound, so that some long v do not widen it for all. Rows with too many such
tokens are multiplied by all of V in its own dtype.

R rows, D model width, V vocabulary, B blocks.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from report2impression.engine.frozen import Frozen
from report2impression.engine.int8 import Int8, peaks, rounded

BLOCKS = (256, 128, 64, 32)
MOST_BLOCKS = 16  # of a row that are looked at again; else fp32 decides alone
SLACK = 1 + 2.0**-6  # for ties in the rounding of h
ROUNDING = 2.0**-20  # of |h'| |v'|: whole numbers become fp32


class Vocabulary:
    """The projection (V, D) in its own dtype; `screened`: let 8 bits propose."""

    def __init__(self, weight: Tensor, *, screened: bool = False) -> None:
        self.weight = weight
        block = _block(len(weight), more_than=1)
        self._screen = Screen.of(weight, block) if screened and block and Int8.works() else None

    @cached_property
    def _frozen(self) -> Frozen:
        return Frozen(self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (R, V)."""
        return self._frozen(hidden)

    def best(
        self, hidden: Tensor, forbidden: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """The token of the largest logit of each row (R,), the first one if there are several;
        rows where `forbidden` (R,) bool may not take any of `tokens` (E,)."""
        if self._screen is None:
            return self._exact(hidden, forbidden, tokens)
        rows, near = self._screen(hidden, forbidden, tokens)
        exact = (self.weight[near].float() * hidden[rows].float()).sum(-1)
        highest = exact.new_full((len(hidden),), float("-inf"))
        highest.scatter_reduce_(0, rows, exact, "amax")
        none = len(self.weight)
        found = near.new_full((len(hidden),), none)
        found.scatter_reduce_(0, rows, near.masked_fill(exact < highest[rows], none), "amin")
        doubtful = (found == none).nonzero()[:, 0]
        if len(doubtful):
            left_out = None if forbidden is None else forbidden[doubtful]
            found[doubtful] = self._exact(hidden[doubtful], left_out, tokens)
        return found

    def _exact(self, hidden: Tensor, forbidden: Tensor | None, tokens: Tensor | None) -> Tensor:
        logits = self.logits(hidden)
        forbid(logits, forbidden, tokens)
        return first_largest(logits)


@dataclass(frozen=True)
class Screen:
    """The projection in 8 bits, and how far off it may be."""

    matrix: Int8
    block: int
    longest: Tensor  # (B,) |v|
    error: Tensor  # (B,) |v - v'|

    @classmethod
    def of(cls, weight: Tensor, block: int) -> "Screen":
        matrix = Int8(weight)
        lengths = torch.linalg.vector_norm(weight.float(), dim=-1)
        longest, error = (x.view(-1, block).amax(-1) for x in (lengths, matrix.error))
        return cls(matrix, block, longest, error + ROUNDING * longest)

    def __call__(
        self, hidden: Tensor, forbidden: Tensor | None, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Pairs of a row and a token that could be its best: (n,), (n,). A row may have none: it
        has too many, or is no number."""
        hidden = hidden.float()
        unit = hidden / peaks(hidden)  # the order of a row's tokens stays
        proposed = self.matrix.of_unit(unit)
        forbid(proposed, forbidden, tokens)
        blocks = proposed.unflatten(1, (-1, self.block))
        highest, bound = blocks.amax(-1), self._bound(unit)  # (R, B)
        least = (highest - bound).amax(-1, keepdim=True)  # the best is not below
        near = highest + bound >= least
        near &= near.sum(-1, keepdim=True) <= MOST_BLOCKS
        rows, where = near.nonzero(as_tuple=True)
        at, inside = (blocks[rows, where] >= (least - bound)[rows, where, None]).nonzero(
            as_tuple=True
        )
        return rows[at], where[at] * self.block + inside

    def _bound(self, unit: Tensor) -> Tensor:
        kept = rounded(unit)
        lost = torch.linalg.vector_norm(unit - kept, dim=-1, keepdim=True)
        left = torch.linalg.vector_norm(kept, dim=-1, keepdim=True)
        return SLACK * (lost * self.longest + left * self.error)


def forbid(logits: Tensor, rows: Tensor | None, tokens: Tensor | None) -> None:
    """-inf in `tokens` (E,) of the rows (R,) bool, in place; none: nowhere."""
    if rows is not None and tokens is not None:
        logits[:, tokens] = logits[:, tokens].masked_fill(rows[:, None], float("-inf"))


def first_largest(values: Tensor) -> Tensor:
    """(R, n) -> where the largest of each row stands, the first of several (R,).

    torch's argmax is slow on a CPU, above all in half precision: this asks for the largest of each
    block, and looks for the place in one block only.
    """
    block = _block(values.shape[1])
    if not block:
        return values.float().argmax(-1)
    blocks = values.unflatten(1, (-1, block))
    where = blocks.amax(-1).float().argmax(-1)
    some = blocks.gather(1, where[:, None, None].expand(-1, -1, block))[:, 0]
    return where * block + some.float().argmax(-1)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(P, n) -> the k largest of each row in order, and where they stand.

    torch sorts whole rows on a CPU; only blocks with one of the k largest maxima can hold any.
    """
    block = _block(values.shape[1], more_than=k)
    if not block:
        return values.topk(k)
    blocks = values.unflatten(1, (-1, block))
    where = blocks.amax(-1).topk(k)[1].sort(-1)[0]  # in order, so that ties stay in order
    some = blocks.gather(1, where[..., None].expand(-1, -1, block)).flatten(1)
    top, place = some.topk(k)
    return top, where.gather(1, place // block) * block + place % block


def _block(n: int, more_than: int = 0) -> int:
    """Size of the blocks, more than so many, that n values fall into; 0 if there is none."""
    return next((size for size in BLOCKS if n % size == 0 and n // size > more_than), 0)
