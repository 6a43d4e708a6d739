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
        self._first_head = rows + rows // length * (length * (n_heads - 1))  # b * H * S + s
        self._gather: dict[int, Tensor] = {}
        self._scatter: dict[int, Tensor] = {}

    def gather(self, parts: int) -> Tensor:
        """Rows of packed.view(-1, K), packed (N, parts * H * K), in the order (parts, B, H, S)."""
        if parts not in self._gather:
            offset = _offsets(parts, self.n_heads, self.n_heads, 1, self.rows.device)
            token = self.slots * (parts * self.n_heads)
            self._gather[parts] = (token[None, :, None] + offset[:, None, :, None]).view(-1)
        return self._gather[parts]

    def scatter(self, parts: int) -> Tensor:
        """Rows of padded.view(-1, K), padded (parts, B, H, S, K), in the order (N, parts, H)."""
        if parts not in self._scatter:
            (n, length), heads = self.shape, self.n_heads
            offset = _offsets(parts, heads, n * heads * length, length, self.rows.device)
            self._scatter[parts] = (self._first_head[:, None, None] + offset).view(-1)
        return self._scatter[parts]


@lru_cache(maxsize=1 << 14)  # more than training has: CUDA graphs must not lose theirs
def _offsets(parts: int, heads: int, step: int, head_step: int, device: torch.device) -> Tensor:
    """part * step + head * head_step, (parts, heads)."""
    part = torch.arange(parts, device=device)[:, None] * step
    return part + torch.arange(heads, device=device) * head_step


def attention(
    q: Tensor,
    kv: Tensor | None,
    queries: Sequence[Grid],
    keys: Sequence[Grid],
    biases: Sequence[Tensor],
    drop: Dropout,
) -> Tensor:
    """T5 attention (no 1/sqrt(K)) of packed tokens, dropout on the probabilities.

    Self-attention: q = (N, 3 H K) holds queries, keys and values, kv is none. Cross-attention: q =
    (N, H K), kv = (N_source, 2 H K). The grids hold the tokens one after the other; bias (B * H, T
    or 1, S) of each is added to its scores -> (N, H K).
    """
    if q.is_cuda or torch.compiler.is_compiling():
        return _sdpa(q, kv, queries, keys, biases, drop.p if drop.on else 0.0)
    masks = [
        drop.mask(len(bias), of.shape[1], to.shape[1])
        for bias, of, to in zip(biases, queries, keys, strict=True)
    ]
    return _Attention.apply(q, kv, queries, keys, biases, masks, drop.scale if drop.on else 1.0)


def _cut(packed: Tensor | None, grids: Sequence[Grid]) -> Sequence[Any]:
    """The tokens of each grid, views; none of each if there are none."""
    if packed is None or len(grids) == 1:
        return [packed] * len(grids)
    return packed.split([len(grid.rows) for grid in grids])


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


class _Attention(torch.autograd.Function):
    """For a CPU: torch's fused attention falls back to slower code there once dropout is on."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        kv: Tensor | None,
        queries: Sequence[Grid],
        keys: Sequence[Grid],
        biases: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        scale: float,
    ) -> Tensor:
        is_self = kv is None
        out = q.new_empty(len(q), q.shape[1] // 3 if is_self else q.shape[1])
        grids = list(zip(queries, keys, strict=True))
        parts = zip(_cut(q, queries), _cut(kv, keys), _cut(out, queries), strict=True)
        saved: list[Tensor | None] = []
        for (to, of), part, bias, mask in zip(grids, parts, biases, masks, strict=True):
            saved += _one_forward(*part, to, of, bias, mask, scale)
        ctx.save_for_backward(*saved)
        ctx.grids, ctx.is_self, ctx.scale = grids, is_self, scale
        ctx.n_keys = len(q if kv is None else kv)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys = zip(*ctx.grids, strict=True)
        g = g.contiguous()
        n, width = g.shape
        grad_q = g.new_empty(n, 3 * width if ctx.is_self else width)
        grad_kv = None if ctx.is_self else g.new_empty(ctx.n_keys, 2 * width)
        parts = zip(_cut(g, queries), _cut(grad_q, queries), _cut(grad_kv, keys), strict=True)
        for i, ((to, of), part) in enumerate(zip(ctx.grids, parts, strict=True)):
            _one_backward(ctx.saved_tensors[6 * i : 6 * i + 6], *part, to, of, ctx.scale)
        return grad_q, grad_kv, None, None, None, None, None


def _one_forward(
    q: Tensor,
    kv: Tensor | None,
    out: Tensor,
    queries: Grid,
    keys: Grid,
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
) -> list[Tensor | None]:
    """Fills `out` for the tokens of one grid -> what its backward needs."""
    if kv is None:
        padded_q, k, v = pad(q, queries, 3)
    else:
        (padded_q,), (k, v) = pad(q, queries, 1), pad(kv, keys, 2)
    probabilities = torch.baddbmm(bias, padded_q, k.transpose(1, 2)).softmax(-1)
    dropped = probabilities if mask is None else probabilities * mask
    mixed = torch.baddbmm(padded_q, dropped, v, beta=0, alpha=scale)  # beta 0: scale * product
    _unpad(mixed, queries, 1, out)
    return [padded_q, k, v, probabilities, None if mask is None else dropped, mixed]


def _one_backward(
    saved: Sequence[Tensor | None],
    g: Tensor,
    grad_q: Tensor,
    grad_kv: Tensor | None,
    queries: Grid,
    keys: Grid,
    scale: float,
) -> None:
    """Fills the gradients for the tokens of one grid.

    With P = softmax, D = P * mask, O = scale D V: dScores = D * (dO V^T) - P * rowsum(dO * O) /
    scale, times scale: the rowsum (Dao et al. 2022) spares a pass over masked gradients.
    """
    q, k, v, probabilities, masked, mixed = saved
    assert q is not None and k is not None and v is not None and mixed is not None
    assert probabilities is not None
    dropped = probabilities if masked is None else masked
    is_self, width = grad_kv is None, q.shape[-1]
    grad_out = torch.zeros_like(q)  # padding has no gradient
    grad_out.view(-1, width).index_copy_(0, queries.scatter(1), g.view(-1, width))
    along = (grad_out * mixed).sum(-1, keepdim=True)
    grad_scores = torch.bmm(grad_out, v.transpose(1, 2)).mul_(dropped)
    grad_scores.addcmul_(probabilities, along, value=-1 / scale)
    padded_q = q.new_empty(3 if is_self else 1, *q.shape)
    padded_kv = padded_q[1:] if is_self else k.new_empty(2, *k.shape)
    for out, left, right in (
        (padded_q[0], grad_scores, k),
        (padded_kv[0], grad_scores.transpose(1, 2), q),
        (padded_kv[1], dropped.transpose(1, 2), grad_out),
    ):
        torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
    _unpad(padded_q, queries, len(padded_q), grad_q)
    if grad_kv is not None:
        _unpad(padded_kv, keys, 2, grad_kv)


def _sdpa(
    q: Tensor,
    kv: Tensor | None,
    queries: Sequence[Grid],
    keys: Sequence[Grid],
    biases: Sequence[Tensor],
    p: float,
) -> Tensor:
    """The same by torch's fused attention (memory-efficient kernel on CUDA)."""
    parts = zip(_cut(q, queries), _cut(kv, keys), queries, keys, biases, strict=True)
    outs = [_one_sdpa(*part, p) for part in parts]
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def _one_sdpa(
    q: Tensor, kv: Tensor | None, queries: Grid, keys: Grid, bias: Tensor, p: float
) -> Tensor:
    if kv is None:
        padded_q, k, v = pad(q, queries, 3)
    else:
        (padded_q,), (k, v) = pad(q, queries, 1), pad(kv, keys, 2)
    split = (-1, queries.n_heads)
    padded_q, k, v, bias = (part.unflatten(0, split) for part in (padded_q, k, v, bias))
    bias = bias.expand(-1, -1, padded_q.shape[2], -1)
    out = F.scaled_dot_product_attention(padded_q, k, v, bias, dropout_p=p, scale=1.0)
    return _unpad(out.flatten(0, 1).contiguous()[None], queries, 1)
