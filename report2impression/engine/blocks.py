"""T5 blocks on packed tokens, on the parameters of a Hugging Face (+ PEFT) model.

B examples; N packed tokens; S source and T target places of the padded grids; D model width, H
heads, K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from report2impression.engine.adapter import Pairs, Step
from report2impression.engine.attention import Grid, attention
from report2impression.engine.frozen import Frozen, Reordered
from report2impression.engine.int8 import Int8
from report2impression.engine.ops import Norm, add_norm, grouped_linear


@dataclass(frozen=True)
class Memory:
    """What the decoder looks back at: encoder states (N, D), their grids, padding (B * H, 1, S) of
    each."""

    states: Tensor
    grids: Sequence[Grid]
    paddings: Sequence[Tensor]


class Group:
    """Linear layers that read the same input; some or all of them adapted."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype, pairs: Pairs) -> None:
        plain = [x.get_base_layer() if isinstance(x, LoraLinear) else x for x in layers]
        width = plain[0].weight.shape[0]
        self.weight = torch.cat([layer.weight.detach() for layer in plain]).to(dtype)
        for layer, part in zip(plain, self.weight.split(width), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)  # stored once, here
        self.adapted = [i for i, layer in enumerate(layers) if isinstance(layer, LoraLinear)]
        self.copies: Reordered | None = None
        self.number = pairs.register([layers[i] for i in self.adapted]) if self.adapted else None

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """(N, D) -> (N, outputs of all layers side by side)."""
        if self.number is None:
            return F.linear(x, self.weight)
        mask = step.drop_lora.mask(len(self.adapted), *x.shape)
        copies = None if torch.compiler.is_compiling() else self.copies
        pair = step.pairs[self.number]
        return grouped_linear(x, self.weight, *pair, self.adapted, mask, copies)


class MergedGroup:
    """The same for inference: the adapter is merged (in fp32, then cast) into a copy of the
    weights; torch.int8 stands for products in 8 bits. Not differentiable."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        weight = torch.cat([_merged_weight(layer) for layer in layers])
        self.matrix = Int8(weight) if dtype == torch.int8 else Frozen(weight.to(dtype))

    def __call__(self, _: Step, x: Tensor) -> Tensor:
        """(N, D) -> (N, outputs of all layers side by side)."""
        return self.matrix(x)


def _merged_weight(layer: Any) -> Tensor:
    """(outputs, inputs) in fp32, what the layer and its adapter multiply by together."""
    if not isinstance(layer, LoraLinear):
        return layer.weight.detach().float()
    weight = layer.get_base_layer().weight.detach().float()
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return weight


class Block:
    """One T5 block on packed tokens; without `pairs` for inference, and then without keys and
    values of the source, which decoding/cache.py makes for all blocks together."""

    def __init__(self, block: Any, dtype: torch.dtype, pairs: Pairs | None) -> None:
        def group(layers: Sequence[Any]) -> Group | MergedGroup:
            return MergedGroup(layers, dtype) if pairs is None else Group(layers, dtype, pairs)

        own = block.layer[0].SelfAttention
        norms = [layer.layer_norm for layer in block.layer]
        self.norms = [Norm(norm.weight, norm.variance_epsilon) for norm in norms]
        self.qkv, self.o = group([own.q, own.k, own.v]), group([own.o])
        self.is_decoder = len(block.layer) == 3
        if self.is_decoder:
            other = block.layer[1].EncDecAttention
            self.cross_q, self.cross_o = group([other.q]), group([other.o])
            if pairs is not None:
                self.cross_kv = group([other.k, other.v])
        dense = block.layer[-1].DenseReluDense
        self.gated = hasattr(dense, "wi_0")
        # In place where that is possible: autograd forbids it on a gate, half of a chunked tensor.
        in_place = isinstance(dense.act, nn.ReLU) and not self.gated
        self.activation = torch.relu_ if in_place else dense.act
        self.wi = group([dense.wi_0, dense.wi_1] if self.gated else [dense.wi])
        self.wo = group([dense.wo])

    def groups(self) -> list[Group]:
        return [part for part in vars(self).values() if isinstance(part, Group)]

    def __call__(
        self,
        step: Step,
        x: Tensor,
        update: Tensor | None,
        grids: Sequence[Grid],
        biases: Sequence[Tensor],
        memory: Memory | None,
    ) -> tuple[Tensor, Tensor]:
        """(residual, update not yet added to it) -> the same after this block."""
        x, normed = add_norm(x, update, self.norms[0], step.drop)
        qkv = self.qkv(step, normed)
        update = self.o(step, attention(qkv, None, grids, grids, biases, step.drop))
        if memory is not None:
            x, normed = add_norm(x, update, self.norms[1], step.drop)
            q, kv = self.cross_q(step, normed), self.cross_kv(step, memory.states)
            found = attention(q, kv, grids, memory.grids, memory.paddings, step.drop)
            update = self.cross_o(step, found)
        x, normed = add_norm(x, update, self.norms[-1], step.drop)
        return x, self.wo(step, step.drop(self.activated(self.wi(step, normed))))

    def activated(self, h: Tensor) -> Tensor:
        """The feed-forward's first half (N, F or 2 F) -> (N, F)."""
        if not self.gated:
            return self.activation(h)
        gate, linear = h.chunk(2, dim=-1)
        return self.activation(gate) * linear


class Stack:
    """The encoder or the decoder."""

    def __init__(self, stack: Any, blocks: list[Block], dtype: torch.dtype) -> None:
        self.blocks, self.dtype = blocks, dtype
        self.own = stack.block[0].layer[0].SelfAttention
        norm = stack.final_layer_norm
        self.final_norm = Norm(norm.weight, norm.variance_epsilon)
        self._bias = torch.empty(0)

    def position_bias(self, length: int) -> Tensor:
        """(1, H, length, length) in the compute dtype, -inf on later places in the decoder. The
        longest yet is kept: a shorter one is its corner, since T5's bias depends on k - q alone."""
        if self._bias.shape[-1] < length:
            with torch.no_grad():
                bias = self.own.compute_bias(length, length)
                if self.own.is_decoder:
                    later = torch.ones(length, length, dtype=torch.bool, device=bias.device)
                    bias = bias.masked_fill(later.triu(1), float("-inf"))
                self._bias = bias.to(self.dtype)
        return self._bias[..., :length, :length]

    def __call__(
        self,
        step: Step,
        embedded: Tensor,
        grids: Sequence[Grid],
        biases: Sequence[Tensor],
        memory: Memory | None = None,
    ) -> Tensor:
        """Embedded tokens (N, D) -> states after the final norm and dropout (N, D)."""
        x, update = step.drop(embedded).float(), None
        for block in self.blocks:
            x, update = block(step, x, update, grids, biases, memory)
        return step.drop(add_norm(x, update, self.final_norm, step.drop)[1])
