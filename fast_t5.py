"""engine = "fast": T5 + LoRA on packed tokens, on the parameters of a Hugging Face + PEFT model.

PEFT owns the parameters and the adapter's format; this file owns the arithmetic (its pieces:
fast_ops.py, fast_attention.py). No linear sees a padding token, linears that share an input are one
matrix product, masks and position biases are built once per stack and step, and the vocabulary is
only projected on at label tokens. `model.PaddedEngine` is the reference: equal loss and gradients
in fp32.

Nothing here waits for the device: every index comes with the batch (collation.collate_packed).

B examples; S source and T target places of the padded grids; N source and M target tokens, packed;
D model width, H heads, K head width, V vocabulary, R LoRA rank.
"""

import quiet  # isort: skip  # noqa: F401  (before PEFT)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import T5ForConditionalGeneration

from fast_attention import Grid, attention
from fast_ops import Dropout, Norm, add_norm, grouped_linear, summed_cross_entropy
from frozen import Frozen


def why_not(model: nn.Module) -> str | None:
    """Why the fast engine does not cover this model; none if it does."""
    if not isinstance(model, PeftModel) or not isinstance(
        model.get_base_model(), T5ForConditionalGeneration
    ):
        return "it is not a T5 with an adapter"
    settings = model.active_peft_config
    if settings.peft_type != "LORA" or len(model.base_model.active_adapters) != 1:
        return "it has not exactly one active LoRA adapter"
    if settings.use_dora or settings.bias != "none" or settings.modules_to_save:
        return "its adapter is more than LoRA pairs (DoRA, biases or whole modules)"
    base = model.get_base_model()
    if base.is_gradient_checkpointing:
        return "gradient checkpointing is on"
    if type(base.lm_head) is not nn.Linear or type(base.shared) is not nn.Embedding:
        return "its vocabulary is adapted"
    scales: set[tuple[int, float, float]] = set()
    for layer in linears(base):
        plain = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
        if type(plain) is not nn.Linear or plain.bias is not None:
            return f"one of its linear layers is a {type(plain).__name__}"
        if isinstance(layer, LoraLinear):
            name = layer.active_adapters[0]
            scales.add((layer.r[name], layer.scaling[name], _dropout_of(layer, name)))
    if len(scales) != 1:
        return "rank, scale or dropout differ between its layers"
    others = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    return f"{others[0]} is trainable" if others else None


def linears(base: Any) -> Iterator[nn.Module]:
    """All linear layers inside the blocks."""
    for stack in (base.encoder, base.decoder):
        for block in stack.block:
            for layer in block.layer:
                inner = next(layer.children())  # SelfAttention, EncDecAttention, DenseReluDense
                yield from (m for n, m in inner.named_children() if n in LINEAR_NAMES)


LINEAR_NAMES = {"q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"}


def _dropout_of(layer: LoraLinear, name: str) -> float:
    return float(getattr(layer.lora_dropout[name], "p", 0.0))


class FastEngine(nn.Module):
    """The training forward of a model that `why_not` has no word against.

    Takes the frozen matrices over into `dtype`, once: from then on the model's own layers look at
    the engine's storage (and need autocast to run). The adapter stays fp32. Build it after the
    model is on its device.
    """

    def __init__(self, model: PeftModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model()
        self.config = base.config
        self.start_id: int = base.config.decoder_start_token_id
        self.pad_id: int = base.config.pad_token_id
        self.dtype = dtype
        self.pairs = Pairs()
        encoder = [Block(block, dtype, self.pairs) for block in base.encoder.block]
        decoder = [Block(block, dtype, self.pairs) for block in base.decoder.block]
        self.encoder = Stack(base.encoder, encoder, dtype)
        self.decoder = Stack(base.decoder, decoder, dtype)
        tied = base.lm_head.weight is base.shared.weight
        self.embedding = _freeze(
            dtype, base.shared, base.encoder.embed_tokens, base.decoder.embed_tokens
        )
        self.vocabulary = _freeze(dtype, base.lm_head)
        if tied:
            base.lm_head.weight, self.vocabulary = base.shared.weight, self.embedding

    def forward(
        self, source_ids: Tensor, decoder_ids: Tensor, labels: Tensor, **places: Tensor
    ) -> Tensor:
        """(N,) (M,) (M,), and where the tokens stand in grids for attention -> cross-entropy summed
        over the label tokens, fp32 scalar. `collation.collate_packed` makes these."""
        with torch.autocast(source_ids.device.type, enabled=False):
            step = self._step(source_ids.device)
            heads = self.config.num_heads
            source, target = (grids_of(places, side, heads) for side in ("source", "target"))
            paddings = [self._padding(keys) for keys in numbered(places, "source_keys")]

            # What is added to the scores, (B * H, T or 1, S), once for all blocks of a stack.
            biases = [
                (self.encoder.position_bias(grid.shape[1]) + padding).flatten(0, 1)
                for grid, padding in zip(source, paddings, strict=True)
            ]
            states = self.encoder(step, self.embedding[source_ids], source, biases)
            paddings = [padding.expand(-1, heads, -1, -1).flatten(0, 1) for padding in paddings]
            biases = [
                self.decoder.position_bias(length).expand(n, -1, -1, -1).flatten(0, 1)
                for n, length in (grid.shape for grid in target)
            ]
            memory = Memory(states, source, paddings)
            hidden = self.decoder(step, self.embedding[decoder_ids], target, biases, memory)
            if self.config.scale_decoder_outputs:
                hidden = hidden * self.config.d_model**-0.5
            return summed_cross_entropy(hidden, self.vocabulary, labels)

    def _padding(self, keys: Tensor) -> Tensor:
        """(B, S) -> (B, 1, 1, S), -inf where there is no token."""
        padding = torch.zeros(keys.shape, dtype=self.dtype, device=keys.device)
        return padding.masked_fill_(~keys, float("-inf"))[:, None, None, :]

    def _step(self, device: torch.device) -> "Step":
        p_lora = self.pairs.dropout if self.training else 0.0
        p_model = self.config.dropout_rate if self.training else 0.0
        in_lora = Dropout(p_lora, self.dtype, device)
        scale = self.pairs.scaling * (in_lora.scale if in_lora.on else 1.0)
        return Step(
            Dropout(p_model, self.dtype, device), in_lora, self.pairs.packed(self.dtype, scale)
        )


def _freeze(dtype: torch.dtype, *modules: nn.Module) -> Tensor:
    """The weight that the modules share, in `dtype`; they keep no other copy."""
    weight = modules[0].weight.detach().to(dtype)  # type: ignore[operator]
    for module in modules:
        module.weight = nn.Parameter(weight, requires_grad=False)
    return weight


def numbered(places: dict[str, Tensor], name: str) -> list[Tensor]:
    """The tensors that `collation.collate_packed` calls name, name_1, name_2, ..."""
    found = [name, *(f"{name}_{i}" for i in range(1, len(places)))]
    return [places[key] for key in found if key in places]


def grids_of(places: dict[str, Tensor], side: str, n_heads: int) -> list[Grid]:
    """Of the source or the target."""
    rows, slots = numbered(places, f"{side}_rows"), numbered(places, f"{side}_slots")
    return [Grid(*grid, n_heads) for grid in zip(rows, slots, strict=True)]


@dataclass(frozen=True)
class Step:
    """What one forward shares: its dropouts, and the adapter in the compute dtype by group."""

    drop: Dropout
    drop_lora: Dropout
    pairs: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Memory:
    """What the decoder looks back at: encoder states (N, D), their grids, padding (B * H, 1, S) of
    each."""

    states: Tensor
    grids: Sequence[Grid]
    paddings: Sequence[Tensor]


# --- the adapter ----------------------------------------------------------------------------------


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


# --- the model ------------------------------------------------------------------------------------


class Group:
    """Linear layers that read the same input; some or all of them adapted."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype, pairs: Pairs) -> None:
        plain = [x.get_base_layer() if isinstance(x, LoraLinear) else x for x in layers]
        width = plain[0].weight.shape[0]
        self.weight = torch.cat([layer.weight.detach() for layer in plain]).to(dtype)
        for layer, part in zip(plain, self.weight.split(width), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)  # stored once, here
        self.adapted = [i for i, layer in enumerate(layers) if isinstance(layer, LoraLinear)]
        self.number = pairs.register([layers[i] for i in self.adapted]) if self.adapted else None

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """(N, D) -> (N, outputs of all layers side by side)."""
        if self.number is None:
            return F.linear(x, self.weight)
        mask = step.drop_lora.mask(len(self.adapted), *x.shape)
        return grouped_linear(x, self.weight, *step.pairs[self.number], self.adapted, mask)


class MergedGroup:
    """The same for inference: the adapter is merged (in fp32, then cast) into a copy of the
    weights. Not differentiable."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        self.matrix = Frozen(torch.cat([_merged_weight(layer) for layer in layers]).to(dtype))

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
    values of the source, which fast_decode.py makes for all blocks together."""

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
        is_relu = isinstance(dense.act, nn.ReLU)
        self.activation = torch.relu_ if is_relu else dense.act  # in place where that is possible
        self.gated = hasattr(dense, "wi_0")
        self.wi = group([dense.wi_0, dense.wi_1] if self.gated else [dense.wi])
        self.wo = group([dense.wo])

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
