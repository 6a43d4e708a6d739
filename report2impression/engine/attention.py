"""T5 attention on packed tokens: padding inside, nowhere else (engine/blocks.py).

B examples, N packed tokens, H heads, K head width, T queries and S keys of the padded grids.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from report2impression.engine.ops import Dropout


class Grid:
    """Where packed tokens stand in a padded grid: rows (N,) = b * S + s of each token, slots (B, S)
    = the token in each place (any token where there is padding)."""

    def __init__(self, rows: Tensor, slots: Tensor, n_heads: int) -> None:
        self.rows, self.slots, self.n_heads = rows, slots, n_heads
        self.shape = slots.shape
        length = slots.shape[1]
        in_others = length * (n_heads - 1)
        self._first_head = torch.add(rows, rows // length, alpha=in_others)  # b * H * S + s
        self._gather: dict[int, Tensor] = {}
        self._scatter: dict[int, Tensor] = {}
        self._spread: Tensor | None = None

    def gather(self, parts: int) -> Tensor:
        """Rows of packed.view(-1, K), packed (N, parts * H * K), in the order (parts, B, H, S)."""
        if parts not in self._gather:
            offset = _offsets(parts, self.n_heads, self.n_heads, self.rows.device)
            token, offset = self.slots[None, :, None], offset[:, None, :, None]
            rows = torch.add(offset, token, alpha=parts * self.n_heads)
            self._gather[parts] = rows.view(-1)
        return self._gather[parts]

    def scatter(self, parts: int) -> Tensor:
        """Rows of padded.view(-1, K), padded (parts, B, H, S, K), in the order (N, parts, H)."""
        if parts not in self._scatter:
            (n, length), heads = self.shape, self.n_heads
            offset = _offsets(parts, heads, n * heads, self.rows.device)
            rows = torch.add(self._first_head[:, None, None], offset, alpha=length)
            self._scatter[parts] = rows.view(-1)
        return self._scatter[parts]

    def spread(self, packed: Tensor) -> Tensor:
        """(N, H * K) -> (B * H, S, K), zero in padding; the next call fills the same memory."""
        width = packed.shape[1] // self.n_heads
        if self._spread is None:
            n, length = self.shape
            self._spread = packed.new_zeros(n * self.n_heads, length, width)
        self._spread.view(-1, width).index_copy_(0, self.scatter(1), packed.view(-1, width))
        return self._spread


@lru_cache(maxsize=1024)
def _offsets(parts: int, heads: int, step: int, device: torch.device) -> Tensor:
    """part * step + head, (parts, heads)."""
    part = torch.arange(parts, device=device)[:, None] * step
    return part + torch.arange(heads, device=device)


def attention(
    q: Tensor,
    kv: Sequence[Tensor],
    queries: Sequence[Grid],
    biases: Sequence[Tensor],
    drop: Dropout,
) -> Tensor:
    """T5 attention (no 1/sqrt(K)) of packed tokens, dropout on the probabilities.

    Self-attention: q = (N, 3 H K) holds queries, keys and values, kv is empty. Cross-attention: q =
    (N, H K), kv = (2, B * H, S, K) of each grid (`padded_memory`). The grids hold the tokens one
    after the other; bias (B * H, T or 1, S) of each is added to its scores -> (N, H K).
    """
    if q.is_cuda or torch.compiler.is_compiling():
        return _sdpa(q, kv, queries, biases, drop.p if drop.on else 0.0)
    masks = [
        drop.mask(len(bias), of.shape[1], bias.shape[2])
        for bias, of in zip(biases, queries, strict=True)
    ]
    return _Attention.apply(q, queries, biases, masks, drop.scale if drop.on else 1.0, *kv)


def padded_memory(kv: Tensor, grids: Sequence[Grid], n_layers: int) -> list[Sequence[Tensor]]:
    """Keys and values of the source for all L layers, (N, 2 L H K) -> for each layer (2, B * H, S,
    K) of each grid."""
    if torch.compiler.is_compiling():  # it cannot trace the other
        parts = zip(_cut(kv, grids), grids, strict=True)
        padded = [x for part, grid in parts for x in pad(part, grid, 2 * n_layers).split(2)]
    else:
        padded = _PaddedMemory.apply(kv, grids, n_layers)
    return [padded[layer::n_layers] for layer in range(n_layers)]


def _cut(packed: Tensor, grids: Sequence[Grid]) -> Sequence[Tensor]:
    """The tokens of each grid, views."""
    return packed.split([len(grid.rows) for grid in grids]) if len(grids) > 1 else [packed]


def pad(packed: Tensor, grid: Grid, parts: int) -> Tensor:
    """(N, parts * H * K) -> (parts, B * H, S, K); padding holds copies of some token."""
    width = packed.shape[1] // (parts * grid.n_heads)
    n, length = grid.shape
    rows = packed.view(-1, width).index_select(0, grid.gather(parts))
    return rows.view(parts, n * grid.n_heads, length, width)


def _unpad(padded: Tensor, grid: Grid, parts: int, out: Tensor | None = None) -> Tensor:
    """(parts, B * H, S, K) -> (N, parts * H * K), in `out` if given."""
    width = padded.shape[-1]
    rows = padded.view(-1, width)
    if out is None:
        return rows.index_select(0, grid.scatter(parts)).view(len(grid.rows), -1)
    return torch.index_select(rows, 0, grid.scatter(parts), out=out.view(-1, width))


class _PaddedMemory(torch.autograd.Function):
    """Each way one gather for all layers together; padding has no gradient, and none is looked
    at."""

    @staticmethod
    def forward(ctx: Any, kv: Tensor, grids: Sequence[Grid], n_layers: int) -> tuple[Tensor, ...]:
        ctx.grids, ctx.n_layers, ctx.shape = grids, n_layers, kv.shape
        parts = zip(_cut(kv, grids), grids, strict=True)
        return tuple(x for part, grid in parts for x in pad(part, grid, 2 * n_layers).split(2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_kv, n = grads[0].new_empty(ctx.shape), ctx.n_layers
        for i, (part, grid) in enumerate(zip(_cut(grad_kv, ctx.grids), ctx.grids, strict=True)):
            _unpad(torch.cat(grads[i * n : (i + 1) * n]), grid, 2 * n, part)
        return grad_kv, None, None


class _Attention(torch.autograd.Function):
    """For a CPU: torch's fused attention falls back to slower code there once dropout is on."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        queries: Sequence[Grid],
        biases: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        scale: float,
        *kv: Tensor,
    ) -> Tensor:
        out = q.new_empty(len(q), q.shape[1] if kv else q.shape[1] // 3)
        parts = zip(_cut(q, queries), kv or [None] * len(queries), _cut(out, queries), strict=True)
        saved: list[Tensor] = []
        for grid, part, bias, mask in zip(queries, parts, biases, masks, strict=True):
            saved += _one_forward(*part, grid, bias, mask, scale)
        ctx.save_for_backward(*saved)
        ctx.queries, ctx.is_self, ctx.scale = queries, not kv, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        g = g.contiguous()
        grad_q = g.new_empty(len(g), g.shape[1] * (3 if ctx.is_self else 1))
        grad_kv: list[Tensor | None] = []
        parts = zip(_cut(g, ctx.queries), _cut(grad_q, ctx.queries), strict=True)
        for i, (grid, part) in enumerate(zip(ctx.queries, parts, strict=True)):
            saved = ctx.saved_tensors[5 * i : 5 * i + 5]
            grad_kv.append(_one_backward(saved, *part, grid, ctx.scale, is_self=ctx.is_self))
        return grad_q, None, None, None, None, *([] if ctx.is_self else grad_kv)


def _one_forward(
    q: Tensor,
    kv: Tensor | None,
    out: Tensor,
    queries: Grid,
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Fills `out` for the tokens of one grid -> what its backward needs."""
    padded_q, k, v = _padded(q, kv, queries)
    probabilities = torch.baddbmm(bias, padded_q, k.transpose(1, 2)).softmax(-1)
    dropped = probabilities if mask is None else probabilities * mask
    mixed = torch.baddbmm(padded_q, dropped, v, beta=0, alpha=scale)  # beta 0: scale * product
    _unpad(mixed, queries, 1, out)
    return [padded_q, k, v, probabilities, dropped]


def _padded(q: Tensor, kv: Tensor | None, queries: Grid) -> Sequence[Tensor]:
    """Queries (B * H, T, K), keys and values (B * H, S, K) of one grid."""
    return pad(q, queries, 3).unbind() if kv is None else (pad(q, queries, 1)[0], *kv.unbind())


def _one_backward(
    saved: Sequence[Tensor],
    g: Tensor,
    grad_q: Tensor,
    queries: Grid,
    scale: float,
    *,
    is_self: bool,
) -> Tensor | None:
    """Fills grad_q for the tokens of one grid -> the gradient of its kv, if q does not hold it.

    With P = softmax, D = P * mask, O = scale D V: dScores = D * (dO V^T) - P * rowsum of the same,
    times scale: so no masked gradient of P is ever formed.
    """
    q, k, v, probabilities, dropped = saved
    grad_out = queries.spread(g)
    grad_scores = torch.bmm(grad_out, v.transpose(1, 2)).mul_(dropped)
    grad_scores.addcmul_(probabilities, grad_scores.sum(-1, keepdim=True), value=-1)
    padded_q = q.new_empty(3 if is_self else 1, *q.shape)
    padded_kv = padded_q[1:] if is_self else k.new_empty(2, *k.shape)
    for out, left, right in (
        (padded_q[0], grad_scores, k),
        (padded_kv[0], grad_scores.transpose(1, 2), q),
        (padded_kv[1], dropped.transpose(1, 2), grad_out),
    ):
        torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
    _unpad(padded_q, queries, len(padded_q), grad_q)
    return None if is_self else padded_kv


def _sdpa(
    q: Tensor, kv: Sequence[Tensor], queries: Sequence[Grid], biases: Sequence[Tensor], p: float
) -> Tensor:
    """The same by torch's fused attention (memory-efficient kernel on CUDA)."""
    keys: Sequence[Tensor | None] = kv or [None] * len(queries)
    parts = zip(_cut(q, queries), keys, queries, biases, strict=True)
    outs = [_one_sdpa(*part, p) for part in parts]
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def _one_sdpa(q: Tensor, kv: Tensor | None, queries: Grid, bias: Tensor, p: float) -> Tensor:
    split = (-1, queries.n_heads)
    padded_q, k, v, bias = (x.unflatten(0, split) for x in (*_padded(q, kv, queries), bias))
    bias = bias.expand(-1, -1, padded_q.shape[2], -1)
    out = F.scaled_dot_product_attention(padded_q, k, v, bias, dropout_p=p, scale=1.0)
    return _unpad(out.flatten(0, 1).contiguous()[None], queries, 1)
