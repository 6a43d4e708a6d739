"""The adapter's LoRA pairs, cast together once a forward, their gradients together once a backward.

M matrices that share an input, D inputs, P outputs, R LoRA rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from report2impression.engine.models import _dropout_of
from report2impression.engine.ops import Dropout


@dataclass(frozen=True)
class Step:
    """What one forward shares: its dropouts, and the adapter in the compute dtype by group."""

    drop: Dropout
    drop_lora: Dropout
    pairs: list[tuple[Tensor, Tensor]]


class Pairs:
    """All LoRA pairs of the model, registered group by group and cast together, once a forward."""

    def __init__(self) -> None:
        self.groups: list[tuple[list[nn.Parameter], list[nn.Parameter]]] = []
        self.scaling, self.dropout = 1.0, 0.0

    def register(self, layers: Sequence[LoraLinear]) -> int:
        """The number under which `packed` returns the pairs of these layers."""
        name = layers[0].active_adapters[0]
        self.scaling, self.dropout = layers[0].scaling[name], _dropout_of(layers[0], name)
        a = [layer.lora_A[name].weight for layer in layers]
        b = [layer.lora_B[name].weight for layer in layers]
        self.groups.append((a, b))
        return len(self.groups) - 1

    def packed(self, dtype: torch.dtype, scale: float) -> list[tuple[Tensor, Tensor]]:
        """For each group a (M, R, D) and scale * b (M, P, R) in `dtype`, differentiable."""
        a = [weight for group_a, _ in self.groups for weight in group_a]
        b = [weight for _, group_b in self.groups for weight in group_b]
        sizes = [len(group_a) for group_a, _ in self.groups]
        out = _Pack.apply(dtype, scale, sizes, len(a), *a, *b)
        return list(zip(out[: len(sizes)], out[len(sizes) :], strict=True))


class _Pack(torch.autograd.Function):
    """One copy for all matrices, and one for all their gradients."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, scale: float, sizes: list[int], n: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.n, ctx.shapes = scale, n, [weight.shape for weight in weights]
        flat_a = torch.cat([weight.view(-1) for weight in weights[:n]]).to(dtype)
        flat_b = torch.cat([weight.view(-1) for weight in weights[n:]]).mul_(scale).to(dtype)
        return *_stacks(flat_a, weights[:n], sizes), *_stacks(flat_b, weights[n:], sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        half = len(grads) // 2
        flat_a = torch.cat([grad.reshape(-1) for grad in grads[:half]]).float()
        flat_b = torch.cat([grad.reshape(-1) for grad in grads[half:]]).float().mul_(ctx.scale)
        shapes_a, shapes_b = ctx.shapes[: ctx.n], ctx.shapes[ctx.n :]
        return None, None, None, None, *_cut(flat_a, shapes_a), *_cut(flat_b, shapes_b)


def _cut(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _stacks(flat: Tensor, weights: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    shapes = [torch.Size((n, *weights[i].shape)) for n, i in zip(sizes, firsts, strict=True)]
    return _cut(flat, shapes)
