"""From hidden states to tokens: logits of the whole vocabulary, or only the largest.

The projection on 32,128 tokens is a quarter of decoding in fp32. Where the CPU multiplies bf16
natively, `best` lets bf16 propose and fp32 decide: all logits in bf16, the highest few again in
fp32. The result is that of fp32, proven row by row: the logit of a token that was not looked at is
below

    its bf16 logit + |h| |v| 2^-7      (h and v are rounded to 8 bits, so is their product)

and if that could reach the best of the few, the row is computed in full.

R rows, D model width, V vocabulary, k tokens looked at again.
"""

from functools import cached_property

import torch
from torch import Tensor

from report2impression.engine.frozen import Frozen

LOOKED_AT = 8
BLOCKS = (256, 128, 64, 32)
# h, v and the product are rounded to 8 significant bits: 3 x 2^-9, and the sums in between.
ERROR = 2.0**-7


class Vocabulary:
    """The projection (V, D) in its own dtype; `screened`: let bf16 propose."""

    def __init__(self, weight: Tensor, *, screened: bool = False) -> None:
        self.weight = weight
        self.screened = screened and weight.dtype == torch.float32

    @cached_property
    def _rounded(self) -> tuple[Frozen, float]:
        """The weight in bf16, and the length of its longest row."""
        longest = torch.linalg.vector_norm(self.weight, dim=-1).max()
        return Frozen(self.weight.bfloat16()), float(longest)

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
        if not self.screened:
            return self._exact(hidden, forbidden, tokens)
        rounded, longest = self._rounded
        proposed = rounded(hidden.bfloat16())
        forbid(proposed, forbidden, tokens)
        top, found = largest(proposed, LOOKED_AT)
        looked_at, order = found.sort(-1)  # the first of equals wins
        exact = torch.bmm(self.weight[looked_at], hidden[:, :, None])[..., 0]  # (R, k)
        exact.masked_fill_(top.gather(1, order).isinf(), float("-inf"))
        best, place = exact.max(-1)
        others = top[:, -1].float() + ERROR * longest * torch.linalg.vector_norm(hidden, dim=-1)
        found = looked_at.gather(1, place[:, None])[:, 0]
        doubtful = (others >= best).nonzero()[:, 0]
        if len(doubtful):
            left_out = None if forbidden is None else forbidden[doubtful]
            found[doubtful] = self._exact(hidden[doubtful], left_out, tokens)
        return found

    def _exact(self, hidden: Tensor, forbidden: Tensor | None, tokens: Tensor | None) -> Tensor:
        logits = self.logits(hidden)
        forbid(logits, forbidden, tokens)
        return first_largest(logits)


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
