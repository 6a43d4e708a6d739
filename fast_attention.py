"""T5 attention on packed tokens: padding inside, nowhere else (fast_t5.py).

B examples, N packed tokens, H heads, K head width, T queries and S keys of the padded grids.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fast_ops import Dropout


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


@lru_cache(maxsize=1024)
def _offsets(parts: int, heads: int, step: int, head_step: int, device: torch.device) -> Tensor:
    """part * step + head * head_step, (parts, heads)."""
    part = torch.arange(parts, device=device)[:, None] * step
    return part + torch.arange(heads, device=device) * head_step


def attention(
    q: Tensor, kv: Tensor | None, queries: Grid, keys: Grid, bias: Tensor, drop: Dropout
) -> Tensor:
    """T5 attention (no 1/sqrt(K)) of packed tokens, dropout on the probabilities.

    Self-attention: q = (N, 3 H K) holds queries, keys and values, kv is none. Cross-attention: q =
    (N, H K), kv = (N_source, 2 H K). bias (B * H, T or 1, S) is added to the scores -> (N, H K).
    """
    if q.is_cuda or torch.compiler.is_compiling():
        return _sdpa(q, kv, queries, keys, bias, drop.p if drop.on else 0.0)
    mask = drop.mask(len(bias), queries.shape[1], keys.shape[1])
    scale = 1.0 if mask is None else drop.scale
    return _Attention.apply(q, kv, queries, keys, bias, mask, scale)


def pad(packed: Tensor, grid: Grid, parts: int) -> Tensor:
    """(N, parts * H * K) -> (parts, B * H, S, K); padding holds copies of some token."""
    width = packed.shape[1] // (parts * grid.n_heads)
    n, length = grid.shape
    rows = packed.view(-1, width).index_select(0, grid.gather(parts))
    return rows.view(parts, n * grid.n_heads, length, width)


def _unpad(padded: Tensor, grid: Grid, parts: int) -> Tensor:
    """(parts, B * H, S, K) -> (N, parts * H * K)."""
    rows = padded.view(-1, padded.shape[-1]).index_select(0, grid.scatter(parts))
    return rows.view(len(grid.rows), -1)


class _Attention(torch.autograd.Function):
    """For a CPU: torch's fused attention falls back to slower code there once dropout is on."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        kv: Tensor | None,
        queries: Grid,
        keys: Grid,
        bias: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        if kv is None:
            padded_q, k, v = pad(q, queries, 3)
        else:
            (padded_q,), (k, v) = pad(q, queries, 1), pad(kv, keys, 2)
        probabilities = torch.baddbmm(bias, padded_q, k.transpose(1, 2)).softmax(-1)
        dropped = probabilities if mask is None else probabilities * mask
        mixed = torch.baddbmm(padded_q, dropped, v, beta=0, alpha=scale)  # beta 0: scale * product
        ctx.save_for_backward(padded_q, k, v, probabilities, mask)
        ctx.queries, ctx.keys, ctx.is_self, ctx.scale = queries, keys, kv is None, scale
        return _unpad(mixed, queries, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, mask = ctx.saved_tensors
        queries, keys = ctx.queries, ctx.keys
        grad_out = torch.zeros_like(q)  # padding has no gradient
        width = q.shape[-1]
        grad_out.view(-1, width).index_copy_(0, queries.scatter(1), g.reshape(-1, width))
        dropped = probabilities if mask is None else probabilities * mask
        grad_p = torch.bmm(grad_out, v.transpose(1, 2))
        if mask is not None:
            grad_p.mul_(mask)
        grad_scores = torch._softmax_backward_data(grad_p, probabilities, -1, g.dtype)
        grad_q = q.new_empty(3 if ctx.is_self else 1, *q.shape)
        grad_kv = grad_q[1:] if ctx.is_self else k.new_empty(2, *k.shape)
        for out, left, right in (
            (grad_q[0], grad_scores, k),
            (grad_kv[0], grad_scores.transpose(1, 2), q),
            (grad_kv[1], dropped.transpose(1, 2), grad_out),
        ):
            torch.baddbmm(out, left, right, beta=0, alpha=ctx.scale, out=out)
        packed_q = _unpad(grad_q, queries, len(grad_q))
        packed_kv = None if ctx.is_self else _unpad(grad_kv, keys, 2)
        return packed_q, packed_kv, None, None, None, None, None


def _sdpa(
    q: Tensor, kv: Tensor | None, queries: Grid, keys: Grid, bias: Tensor, p: float
) -> Tensor:
    """The same by torch's fused attention (memory-efficient kernel on CUDA)."""
    if kv is None:
        padded_q, k, v = pad(q, queries, 3)
    else:
        (padded_q,), (k, v) = pad(q, queries, 1), pad(kv, keys, 2)
    split = (-1, queries.n_heads)
    padded_q, k, v, bias = (part.unflatten(0, split) for part in (padded_q, k, v, bias))
    bias = bias.expand(-1, -1, padded_q.shape[2], -1)
    out = F.scaled_dot_product_attention(padded_q, k, v, bias, dropout_p=p, scale=1.0)
    return _unpad(out.flatten(0, 1).contiguous()[None], queries, 1)
