"""What a training step will need in memory, from config.json and the safetensors' headers alone:
no weight is read, no torch is loaded.

    base = read_shapes(ModelConfig(path="BASE"))
    estimate(base, Step(half=True), sources=[512] * 16, targets=[256] * 16).total

Counted are tensors: what a GPU's allocator hands out. The process itself, its libraries, the CUDA
context and what an allocator wastes come on top.

Activations are what the backward needs (Korthikanti et al. 2022 count them so for GPT: 34 S B D +
5 A S^2 B bytes per layer with fp16 and dropout), here term by term for T5's blocks as the two
engines run them, with PEFT's LoRA beside each linear layer, attention as a CPU runs it: CUDA's
fused one never forms the B H S^2 terms, so that there the estimate is an upper bound. So it is for
the local attention of LongT5 and LED.

B examples; N tokens (padded for engine hf); S source and T target places; D model width, F
feed-forward width, H heads, K head width, V vocabulary, R LoRA rank; O outputs and I inputs of a
linear layer.
"""

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from report2impression.program.errors import ConfigError
from report2impression.weights.base_files import Json, check_base, headers, read_json
from report2impression.weights.families import LEFT_OUT, check_family
from report2impression.weights.options import LoraSettings, ModelConfig, Quantization

FULL = 4  # bytes of fp32
QUANTIZED = {"8bit": 1.0, "4bit": 0.5 + FULL / 64}  # bytes a weight; nf4: a scale for every 64
NOT_QUANTIZED = {"wo"}  # transformers keeps these of T5 in fp32
COPIED = 2**31  # engine/fast.py: REORDERED_BYTES
STATES = {"adamw": 8.0, "adamw8bit": 2.0, "adafactor": 0.0}  # bytes a trainable value
LOGIT_ROWS, POOL = 128, 2**20  # engine/ops.py: CROSS_ENTROPY_ROWS, POOL_ELEMENTS
LAYER = re.compile(r"\.(?:block|layers)\.(\d+)\.")
INNER = {"o", "wo", "fc2", "out_proj", "o_proj", "down_proj", "output"}  # read no block's input
GATES = {"wi_1", "up_proj"}
CROSS = {"EncDecAttention", "encoder_attn", "cross_attn"}
NO_LINEAR = LEFT_OUT | {"relative_attention_bias", "global_relative_attention_bias"}
DROPOUTS = ("dropout_rate", "dropout")
OWN_DROPOUTS = ("attention_dropout", "activation_dropout")  # of BART's kind, often 0
HEADS = ("num_heads", "num_attention_heads", "encoder_attention_heads")


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block (O, I)."""

    name: str
    parent: str
    n_out: int
    n_in: int
    in_decoder: bool

    @property
    def is_inner(self) -> bool:
        """Its input is made inside its part of the block, and nobody else reads it."""
        return self.name in INNER

    @property
    def input(self) -> tuple[str, bool, str]:
        """The same for linears that read the same tokens."""
        return self.parent, self.of_source, self.name if self.is_inner else ""

    @property
    def of_attention(self) -> bool:
        return "att" in self.parent.rpartition(".")[2].lower()

    @property
    def of_source(self) -> bool:
        """Its inputs are the encoder's states."""
        return self.parent.rpartition(".")[2] in CROSS and self.name[0] in "kv"


@dataclass(frozen=True)
class Shapes:
    """A base as its files show it."""

    model_type: str
    shapes: Mapping[str, tuple[int, ...]]
    n_heads: int
    dropout: float
    attention_dropout: float | None = None  # None: as the others; likewise of the activation
    activation_dropout: float | None = None
    is_gelu: bool = False  # and not gated

    @property
    def n_parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @cached_property
    def linears(self) -> list[Linear]:
        """Those inside the blocks, which an adapter may change."""
        return list(self._linears())

    def _linears(self) -> Iterator[Linear]:
        for name, shape in self.shapes.items():
            *path, last, kind = name.split(".")
            is_one = len(shape) == 2 and kind == "weight" and LAYER.search(name)
            if is_one and NO_LINEAR.isdisjoint([*path, last]):
                yield Linear(last, ".".join(path), shape[0], shape[1], "decoder" in path)

    def n_layers(self, in_decoder: bool) -> int:
        own = (x.parent for x in self.linears if x.in_decoder is in_decoder)
        return len({match[1] for name in own if (match := LAYER.search(f"{name}."))})

    @property
    def width(self) -> int:
        return next(x.n_in for x in self.linears if not x.is_inner)

    @property
    def is_gated(self) -> bool:
        return any(x.name in GATES for x in self.linears)

    @property
    def vocabulary(self) -> int:
        """Rows of the largest table as wide as the model."""
        return max(shape[0] for shape in self.shapes.values() if shape[1:] == (self.width,))


@dataclass(frozen=True)
class Step:
    """What of a recipe decides how much memory a step takes; half = bf16 or fp16."""

    half: bool = False
    engine: Literal["fast", "hf"] = "fast"
    tuning: Literal["lora", "full"] = "lora"
    quantization: Quantization = "none"
    optimizer: str = "adamw"
    checkpointing: bool = False
    dropout: float | None = None
    lora: LoraSettings = field(default_factory=LoraSettings)
    cpu: bool = False

    def is_fast(self, base: Shapes) -> bool:
        """As engine/models.py decides once the model is there."""
        plain = self.quantization == "none" and self.tuning == "lora" and not self.checkpointing
        return self.engine == "fast" and plain and base.model_type in ("t5", "mt5")

    def adapts(self, linear: Linear) -> bool:
        name, targets = f".{linear.parent}.{linear.name}", self.lora.target_modules
        is_named = "all-linear" in targets or any(name.endswith(f".{end}") for end in targets)
        return self.tuning == "lora" and is_named


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process."""

    n_parameters: int
    n_trainable: int
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """An upper bound where all weights are tuned: their last gradients come when most
        activations are gone."""
        return self.weights + self.gradients + self.optimizer + self.activations


def read_shapes(config: ModelConfig) -> Shapes:
    """Of a folder, or of a hub id whose weights are not fetched. Raises ConfigError."""
    path = os.path.expanduser(config.path)
    if os.path.isdir(path):
        check_base(Path(path))
        settings = read_json(Path(path) / "config.json")
        found = {name: entry["shape"] for name, entry in headers(Path(path)).items()}
    else:
        settings, found = _of_hub(path, config.revision)
    check_family("model", path, settings.get("model_type"))
    if not found:
        raise ConfigError(f"{path} has no weights in safetensors: docs/bases.md names the ways")
    if settings.get("tie_word_embeddings", True) and "shared.weight" in found:
        # Some T5s store the one table three times.
        found = {name: s for name, s in found.items() if not name.endswith("embed_tokens.weight")}
    parts = list(_parts(settings))
    n_heads = next((part[name] for part in parts for name in HEADS if name in part), 1)
    dropout = next((part[name] for part in parts for name in DROPOUTS if name in part), 0.1)
    # A name without a dot is BART's final_logits_bias: no parameter.
    shapes = {name: tuple(shape) for name, shape in found.items() if "." in name}
    # T5Gemma has one of these, too, but its scores are kept in more forms than are counted.
    is_bart = OWN_DROPOUTS[1] in settings
    scores, inner = (settings.get(name) if is_bart else None for name in OWN_DROPOUTS)
    is_gelu = settings.get("activation_function") == "gelu"
    return Shapes(settings["model_type"], shapes, n_heads, dropout, scores, inner, is_gelu)


def _of_hub(path: str, revision: str | None) -> tuple[Json, dict[str, list[int]]]:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    from report2impression.weights.opening import look_at, one_line_errors

    look_at("model", path)
    with one_line_errors("model", path):
        settings = read_json(Path(hf_hub_download(path, "config.json", revision=revision)))
        files = get_safetensors_metadata(path, revision=revision).files_metadata.values()
    return settings, {name: t.shape for file in files for name, t in file.tensors.items()}


def _parts(settings: Json) -> Iterator[Json]:
    yield settings
    for part in ("decoder", "encoder", "text_config"):
        if isinstance(settings.get(part), dict):
            yield from _parts(settings[part])


def estimate(
    base: Shapes, step: Step, sources: Collection[int], targets: Collection[int]
) -> Estimate:
    """Of a step whose micro-batches have these lengths (tokens of each example)."""
    n_base, is_lora = base.n_parameters, step.tuning == "lora"
    n_lora = sum(step.lora.r * (x.n_out + x.n_in) for x in base.linears if step.adapts(x))
    n_trainable = n_lora if is_lora else n_base
    weights: float = FULL * (n_base + n_lora)
    if step.quantization != "none":
        weights -= (FULL - QUANTIZED[step.quantization]) * _n_quantized(base)
    elif step.half and step.is_fast(base):
        weights -= 2 * _n_in_matrices(base)
    if step.cpu and step.is_fast(base):
        weights += _copies(base, step)
    lengths = Lengths.of(sources, targets, packed=step.is_fast(base))
    activations = _activations(base, step, lengths, n_trainable)
    optimizer = STATES[step.optimizer] * n_trainable
    n_all = n_base + n_lora
    return Estimate(n_all, n_trainable, weights, FULL * n_trainable, optimizer, activations)


def _n_quantized(base: Shapes) -> int:
    return sum(x.n_out * x.n_in for x in base.linears if x.name not in NOT_QUANTIZED)


def _copies(base: Shapes, step: Step) -> int:
    """Bytes of the frozen matrices in oneDNN's order, both ways, where a CPU has room for them."""
    value = 2 if step.half else FULL
    vocabulary = base.vocabulary * base.width
    if 2 * value * (vocabulary + sum(x.n_out * x.n_in for x in base.linears)) > COPIED:
        return 0
    adapted = {x.input for x in base.linears if step.adapts(x)}
    copied = sum(x.n_out * x.n_in for x in base.linears if x.input in adapted)
    return 2 * value * (vocabulary + copied)


def _n_in_matrices(base: Shapes) -> int:
    return sum(math.prod(shape) for shape in base.shapes.values() if len(shape) == 2)


# --- activations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Of a micro-batch, (source, target): B examples in S and T places; tokens to compute."""

    n: int
    places: tuple[int, int]
    tokens: tuple[int, int]

    @classmethod
    def of(cls, sources: Collection[int], targets: Collection[int], *, packed: bool) -> "Lengths":
        n, places = len(sources), (max(sources), max(targets))
        tokens = (sum(sources), sum(targets)) if packed else (n * places[0], n * places[1])
        return cls(n, places, tokens)


@dataclass(frozen=True)
class Sizes:
    """Bytes of an element of what the backward needs."""

    value: int  # the compute dtype
    noise: int  # mask of a dropout on hidden states; 0 without dropout
    inner_noise: int  # on the activation of a block
    own: int  # an adapted linear's own copies of its input
    shared: int  # an input that several linears read, once
    scores: int  # of attention: probabilities, and what dropout makes of them
    logits: int  # and of the probabilities and gradients that are alive with them


def _sizes(base: Shapes, step: Step, *, fast: bool) -> Sizes:
    p = base.dropout if step.dropout is None else step.dropout
    value, drops = (2 if step.half else FULL), p > 0
    inner = value * ((p if base.activation_dropout is None else base.activation_dropout) > 0)
    p_lora = step.lora.dropout if step.tuning == "lora" else 0.0
    if fast:  # masks are as wide as values; probabilities are kept with the dropped ones and a mask
        own, shared = (2 * value, 0) if p_lora else (0, value)
        return Sizes(value, value * drops, inner, own, shared, value * (1 + 2 * drops), 2 * FULL)
    # Softmax is fp32, and what a product takes is cast. PEFT's dropout is fp32, its mask with it;
    # under autocast every linear casts its input for itself.
    own = value * step.half + FULL * (1 + (not step.half)) if p_lora else value * step.half
    shared = 0 if p_lora or step.half else FULL
    in_attention = (p if base.attention_dropout is None else base.attention_dropout) > 0
    scores = FULL + (2 * value if in_attention else value * step.half)
    return Sizes(value, value * drops, inner, own, shared, scores, 3 * FULL)


def _activations(base: Shapes, step: Step, lengths: Lengths, n_trainable: int) -> float:
    """When most is kept: at the loss, of which logits are alive, too."""
    fast, (_, n_target) = step.is_fast(base), lengths.tokens
    sizes = _sizes(base, step, fast=fast)
    stacks = [_of_stack(base, step, sizes, lengths, decoder) for decoder in (False, True)]
    rows = min(n_target, LOGIT_ROWS) if fast else n_target
    loss = rows * base.vocabulary * sizes.logits
    total = loss + sum(stack for stack, _ in stacks)
    if step.checkpointing:  # a block's input is kept, and then one block is made again
        wide = 2 * FULL * max(x.n_in for x in base.linears)  # its widest gradients
        moments, total = [float(loss)], 0.0
        for (kept, n_layers), tokens in zip(stacks, lengths.tokens, strict=True):
            total += n_layers * FULL * tokens * base.width
            moments.append(kept / n_layers + wide * tokens)
        total += max(moments)
    if fast:  # the adapter in the compute dtype, and the biases of both stacks
        squares = sum(places**2 for places in lengths.places)
        return total + sizes.value * (n_trainable + lengths.n * base.n_heads * squares)
    if step.quantization == "4bit":  # one matrix at a time, whole again
        total += FULL * max(x.n_out * x.n_in for x in base.linears)
    if step.half:  # matrices are cast in the forward, and needed so in the backward
        cast = _n_in_matrices(base) - (step.quantization != "none") * _n_quantized(base)
        total += sizes.value * (cast + n_trainable * (step.tuning == "lora"))
    return total


def _of_stack(
    base: Shapes, step: Step, sizes: Sizes, lengths: Lengths, in_decoder: bool
) -> tuple[float, int]:
    """(bytes, blocks) of an encoder or a decoder."""
    own, width = lengths.tokens[in_decoder], base.width
    n_layers, n_parts = base.n_layers(in_decoder), 3 if in_decoder else 2
    blocks: float = 0
    inputs: dict[tuple[str, bool, str], int] = {}
    for linear in (x for x in base.linears if x.in_decoder is in_decoder):
        tokens = lengths.tokens[0] if linear.of_source else own
        if step.adapts(linear) or step.tuning == "full":
            blocks += tokens * linear.n_in * sizes.own
            blocks += tokens * step.lora.r * sizes.value * (step.tuning == "lora")
            inputs[linear.input] = tokens * linear.n_in * sizes.shared
        blocks += tokens * _made(base, step, sizes, linear)
    blocks += sum(inputs.values())
    # Each part's residual, fp32, and the dropout of what is added to it.
    norms = (FULL + FULL * (step.tuning == "full") + sizes.noise) * own * width
    blocks += n_layers * n_parts * norms
    keys = lengths.places[in_decoder] + lengths.places[0] * in_decoder
    grid = lengths.n * base.n_heads * lengths.places[in_decoder] * keys
    # A small mask lies in one piece with others, and stays as long as they do.
    alone = sizes.noise * (grid >= POOL and step.is_fast(base))
    blocks += n_layers * grid * (sizes.scores - alone)
    return blocks + norms + sizes.noise * own * width, n_layers


def _made(base: Shapes, step: Step, sizes: Sizes, linear: Linear) -> float:
    """Bytes a token kept of what is made between this linear and the next: queries, keys and values
    of attention, what it mixes; the activation, which is six tensors where it is gated (tanh's
    GELU)."""
    if linear.of_attention:
        mixed = linear.n_in * sizes.value * step.is_fast(base)
        return mixed if linear.is_inner else linear.n_out * sizes.value
    if not linear.is_inner:
        return 0
    if base.is_gated:
        return linear.n_in * (6 * sizes.value + sizes.inner_noise)
    # What is the next linear's input is counted there; GELU's backward wants its own, too.
    is_input = sizes.shared and not sizes.inner_noise and not base.is_gelu
    return linear.n_in * (sizes.inner_noise + (0 if is_input else sizes.value))
