"""Which bases the own engines cover, and where their linear layers are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import MT5ForConditionalGeneration, PreTrainedModel, T5ForConditionalGeneration


def why_not(model: nn.Module) -> str | None:
    """Why our own arithmetic does not cover a base, with an adapter or without; none if it does."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, T5ForConditionalGeneration | MT5ForConditionalGeneration):
        return f"it is a {base.config.model_type}"
    if type(base.lm_head) is not nn.Linear or type(base.shared) is not nn.Embedding:
        return "its vocabulary is adapted"
    for layer in linears(base):
        plain = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
        if type(plain) is not nn.Linear or plain.bias is not None:
            return f"one of its linear layers is a {type(plain).__name__}"
        if isinstance(layer, LoraLinear) and any(layer.use_dora.values()):
            return "its adapter is more than LoRA pairs (DoRA)"
    return None


def why_not_train(model: nn.Module) -> str | None:
    """The same for training, which needs more: one LoRA adapter that is alike everywhere, and
    nothing else to train."""
    if not isinstance(model, PeftModel):
        return "it has no adapter"
    settings, base = model.active_peft_config, model.get_base_model()
    if settings.peft_type != "LORA" or len(model.base_model.active_adapters) != 1:
        return "it has not exactly one active LoRA adapter"
    if settings.bias != "none" or settings.modules_to_save:
        return "its adapter is more than LoRA pairs (biases or whole modules)"
    if reason := why_not(model):
        return reason
    if base.is_activation_checkpointing:
        return "gradient checkpointing is on"
    adapted: list[Any] = [layer for layer in linears(base) if isinstance(layer, LoraLinear)]
    (name,) = model.base_model.active_adapters
    scales = {(layer.r[name], layer.scaling[name], _dropout_of(layer, name)) for layer in adapted}
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


T5Model: TypeAlias = PreTrainedModel | PeftModel


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones counted once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def output_scale(settings: Any) -> float:
    """What hidden states are multiplied by before the vocabulary is projected on; mT5 has no such
    setting, and never does it."""
    return settings.d_model**-0.5 if getattr(settings, "scale_decoder_outputs", False) else 1.0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode found is restored on every way out."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
