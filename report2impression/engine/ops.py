"""The fused pieces of the fast T5 (blocks.py) but attention: each is one autograd function on
packed tokens.

    Dropout         keep-masks, cheap on every device
    grouped_linear  frozen linears that share an input, in one GEMM, with their LoRA pairs
    add_norm        residual + dropout(update), and its RMS norm
    summed_cross_entropy   vocabulary projection and loss at the label tokens, in chunks

N packed tokens, D input width, O output width, M adapted linears of a group, R LoRA rank, V
vocabulary.

"Compute dtype" is that of the frozen weights (fp16, bf16 or fp32). The residual stream is fp32.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from report2impression.engine.frozen import Reordered, times, times_back

CROSS_ENTROPY_ROWS = 128  # label tokens whose logits are alive together: 16 MB in fp32 for T5
POOL_ELEMENTS = 1 << 18, 1 << 20  # dropout elements drawn together: first and largest draw


class Dropout:
    """One dropout probability within one forward. Masks hold 1 (kept) or 0; the caller multiplies
    by `scale`, which makes the mean one.

    torch draws CPU masks one element at a time, at the cost of a matrix product. Here a random byte
    decides each element, so p is rounded to 1/256 (0.1 is 26/256 = 0.1016) and `scale` matches the
    rounded p exactly. The bytes are SFC64's, seeded from torch's generator. Other devices draw p
    itself with torch's generator.
    """

    def __init__(self, p: float, dtype: torch.dtype, device: torch.device) -> None:
        self.on = p > 0
        self.p, self.dtype, self.device = p, dtype, device
        self.threshold = min(round(256 * p), 255)
        # A traced graph cannot hold numpy's generator, and below 1/512 a byte is too coarse.
        traced = torch.compiler.is_compiling()
        self.bytewise = device.type == "cpu" and self.threshold > 0 and not traced
        self.scale = 256 / (256 - self.threshold) if self.bytewise else 1 / (1 - p)
        self.pool, self.used = torch.empty(0), 0
        self.draw = POOL_ELEMENTS[0]
        if self.on and self.bytewise:
            seed = torch.empty(2, dtype=torch.int64).random_().numpy().astype(np.uint64)
            self.words = np.random.SFC64(seed)

    def mask(self, *shape: int) -> Tensor | None:
        """A fresh mask in the compute dtype; none if dropout is off."""
        if not self.on:
            return None
        if not self.bytewise:
            return torch.empty(shape, dtype=self.dtype, device=self.device).bernoulli_(1 - self.p)
        n = prod(shape)
        if self.used + n > len(self.pool):
            self._refill(n)
        self.used += n
        return self.pool[self.used - n : self.used].view(shape)

    def _refill(self, n: int) -> None:
        n_words = -(-max(n, self.draw) // 8)
        self.draw = min(2 * self.draw, POOL_ELEMENTS[1])
        # numpy compares bytes at memory speed; torch would compare and then copy.
        kept = self.words.random_raw(n_words).view(np.uint8) >= self.threshold
        self.pool, self.used = torch.from_numpy(kept.view(np.uint8)).to(self.dtype), 0

    def __call__(self, x: Tensor) -> Tensor:
        """Dropout of x (any shape), differentiable."""
        mask = self.mask(*x.shape)
        return x if mask is None else _Drop.apply(x, mask, self.scale)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _product(x, mask, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _product(g, mask, ctx.scale), None, None


def _product(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """x * mask * scale in the mask's dtype, in one pass."""
    return torch.addcmul(_zero(x.device), x, mask, value=scale, out=torch.empty_like(mask))


@cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), device=device)


# --- linears --------------------------------------------------------------------------------------


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    adapted: Sequence[int],
    mask: Tensor | None,
    copies: Reordered | None = None,
) -> Tensor:
    """x W^T + for each adapted member m, in its columns: (x * mask_m) a_m^T b_m^T.

    x (N, D); weight (members * P, D), frozen; a (M, R, D); b (M, P, R), scaled by the caller; mask
    (M, N, D) or none; adapted: which member each of the M pairs belongs to; copies: of the weight,
    as `frozen.reordered` makes them -> (N, members * P).
    """
    if not adapted:
        return F.linear(x, weight)
    return _GroupedLinear.apply(x, weight, a, b, adapted, mask, copies)


class _GroupedLinear(torch.autograd.Function):
    """4 + 10 operations instead of PEFT's 11 + 12 for every linear under AMP; the gradient of the
    frozen weight is never formed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        b: Tensor,
        adapted: Sequence[int],
        mask: Tensor | None,
        copies: Reordered | None,
    ) -> Tensor:
        n_pairs, width, _ = b.shape
        dropped = x.expand(n_pairs, *x.shape) if mask is None else x * mask
        hidden = torch.bmm(dropped, a.transpose(1, 2))  # (M, N, R)
        y = times(x, weight, copies)
        if _all_adapted(weight, b) and not torch.compiler.is_compiling():  # it cannot trace this
            _members(y, width).baddbmm_(hidden, b.transpose(1, 2))
        else:
            for pair, member in enumerate(adapted):
                _member(y, width, member).addmm_(hidden[pair], b[pair].t())
        ctx.save_for_backward(dropped, weight, a, b, hidden, mask)
        ctx.adapted, ctx.copies = adapted, copies
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dropped, weight, a, b, hidden, mask = ctx.saved_tensors
        width = b.shape[1]
        parts = [_member(g, width, member) for member in ctx.adapted]
        grad_b = torch.empty_like(b)
        for pair, part in enumerate(parts):  # a strided bmm is 5 times slower than these on a CPU
            torch.mm(part.t(), hidden[pair], out=grad_b[pair])
        if _all_adapted(weight, b):
            grad_hidden = torch.bmm(_members(g, width), b)  # (M, N, R)
        else:
            grad_hidden = torch.stack([part @ b[pair] for pair, part in enumerate(parts)])
        grad_a = torch.bmm(grad_hidden.transpose(1, 2), dropped)
        grad_x = None
        if ctx.needs_input_grad[0]:
            through_a = torch.bmm(grad_hidden, a)  # (M, N, D)
            grad_x = times_back(g, weight, ctx.copies, _masked_sum(through_a, mask))
        return grad_x, None, grad_a, grad_b, None, None, None


def _all_adapted(weight: Tensor, b: Tensor) -> bool:
    return len(weight) == b.shape[0] * b.shape[1]


def _members(y: Tensor, width: int) -> Tensor:
    """(N, members * P) -> (members, N, P), a view."""
    return y.view(len(y), -1, width).transpose(0, 1)


def _member(y: Tensor, width: int, member: int) -> Tensor:
    return y[:, member * width : (member + 1) * width]


def _masked_sum(terms: Tensor, mask: Tensor | None) -> Tensor:
    """(M, N, D) -> sum of terms * mask over M; `terms` is used up."""
    if mask is None:
        return terms[0] if len(terms) == 1 else terms.sum(0)
    total = terms[0].mul_(mask[0])
    for term, kept in zip(terms[1:], mask[1:], strict=True):
        total.addcmul_(term, kept)
    return total


# --- residual and norm ----------------------------------------------------------------------------


class Norm:
    """A frozen RMS norm (Zhang & Sennrich 2019), written for few operations:
    x / sqrt(mean(x^2) + eps) * weight = x / root * gain with root = hypot(|x|, sqrt(D eps))."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = len(weight)
        self.gain = weight.detach() * width**0.5  # (D,)
        self.floor = weight.new_full((), (width * eps) ** 0.5)


def add_norm(
    residual: Tensor, update: Tensor | None, norm: Norm, drop: Dropout
) -> tuple[Tensor, Tensor]:
    """(residual + dropout(update), its norm).

    residual (N, D) fp32; update (N, D) in the compute dtype or none -> sum (N, D) fp32, norm (N, D)
    in the compute dtype.
    """
    mask = None if update is None else drop.mask(*update.shape)
    return _AddNorm.apply(residual, update, norm.gain, norm.floor, mask, drop.scale, drop.dtype)


class _AddNorm(torch.autograd.Function):
    """Saves x / root, from which everything else follows."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        update: Tensor | None,
        gain: Tensor,
        floor: Tensor,
        mask: Tensor | None,
        scale: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x = residual
        if update is not None and mask is not None:
            x = torch.addcmul(residual, update, mask, value=scale)
        elif update is not None:
            x = residual + update
        root = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)
        unit = x / root
        y = torch.mul(unit, gain, out=torch.empty_like(unit, dtype=dtype))
        ctx.save_for_backward(unit, root, gain, mask)
        ctx.scale, ctx.dtype, ctx.has_update = scale, dtype, update is not None
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if update is None else x), y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        unit, root, gain, mask = ctx.saved_tensors
        scaled = grad_y * gain  # fp32
        along = (scaled * unit).sum(-1, keepdim=True)
        across = torch.addcmul(scaled, unit, along, value=-1)
        grad = across.div_(root) if grad_x is None else torch.addcdiv(grad_x, across, root)
        grad_update = None
        if ctx.has_update and mask is None:
            grad_update = grad.to(ctx.dtype)
        elif ctx.has_update:
            grad_update = _product(grad, mask, ctx.scale)
        return grad, grad_update, None, None, None, None, None


# --- loss -----------------------------------------------------------------------------------------


def summed_cross_entropy(
    hidden: Tensor, vocabulary: Tensor, labels: Tensor, copies: Reordered | None = None
) -> Tensor:
    """Cross-entropy of hidden (N, D) against the frozen vocabulary (V, D), summed over the tokens
    whose label (N,) is not negative: fp32 scalar."""
    return _SummedCrossEntropy.apply(hidden, vocabulary, labels, copies)


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward, so that no (N, V) tensor outlives its chunk. It is
    kept as that of the sum: divided by a token count, fp16 would lose its small entries."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, vocabulary: Tensor, labels: Tensor, copies: Reordered | None
    ) -> Tensor:
        grad = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), CROSS_ENTROPY_ROWS):
            rows = slice(start, start + CROSS_ENTROPY_ROWS)
            counted = (labels[rows] >= 0).float()[:, None]
            target = labels[rows].clamp(min=0)[:, None]
            logits = times(hidden[rows], vocabulary, copies).float()
            p = logits.softmax(-1)
            # The largest probability gives log-sum-exp without another pass of exponentials.
            log_sum_exp = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
            total += ((log_sum_exp - logits.gather(1, target)) * counted).sum()
            del logits
            p.scatter_add_(1, target, counted.neg())
            back = times_back(p.to(vocabulary.dtype), vocabulary, copies)
            torch.mul(back, counted, out=grad[rows])
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * g, None, None, None
