"""T5 + LoRA: load a base, attach or load an adapter, run it, save it, count it.

Weights come from safetensors only, and no code is ever loaded with a model. PEFT owns the adapter's
parameters and its file format. The engines turn a batch into a summed loss; `PaddedEngine` is the
plain HF + PEFT forward.

B examples, S source tokens, T target tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from report2impression.batching.collation import Collate, collator
from report2impression.engine.batch import PaddedBatch
from report2impression.engine.fast import FastEngine
from report2impression.engine.models import T5Model, why_not_train
from report2impression.engine.precision import DTYPES, resolve_precision
from report2impression.program.launcher import is_sharded_launch
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.families import check_lengths, lora_targets
from report2impression.weights.loading import _check_targets, load_base, with_adapter
from report2impression.weights.options import LoraSettings


def attach_lora(base: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Freeze the base and add fresh fp32 LoRA pairs (A random, B zero). Raises ConfigError on
    unknown layers."""
    if list(settings.target_modules) != ["all-linear"]:
        _check_targets(base, settings.target_modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # PEFT only divides by it
        lora_dropout=settings.dropout,
        target_modules=lora_targets(base, settings.target_modules),
        use_rslora=settings.use_rslora,
        bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM,
    )
    return with_adapter(base, config)


class PaddedEngine(nn.Module):
    """engine = "hf": the HF (+ PEFT) forward on padded batches; the reference for every faster
    one."""

    def __init__(self, model: T5Model) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.start_id: int = config.decoder_start_token_id
        self.pad_id: int = config.pad_token_id

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Cross-entropy summed over the label tokens, fp32 scalar."""
        logits = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=shift_right(batch.labels, start_id=self.start_id, pad_id=self.pad_id),
            use_cache=False,
        ).logits
        return F.cross_entropy(
            logits.float().flatten(0, 1), batch.labels.flatten(), reduction="sum"
        )  # labels of -100 count for nothing: torch's default ignore_index


def shift_right(labels: Tensor, *, start_id: int, pad_id: int) -> Tensor:
    """Decoder input (B, T): the start token, then the labels but the last; ignored labels (-100)
    become padding."""
    shifted = torch.cat([torch.full_like(labels[:, :1], start_id), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted < 0, pad_id)


def build_model(config: TrainConfig, device: torch.device) -> T5Model:
    """The base as the recipe tunes it, on the device: with a fresh adapter, or all of it
    trainable."""
    torch.manual_seed(config.seed)  # decides the adapter's start
    # On a CPU fused attention falls back to slower code as soon as dropout is on.
    base = load_base(
        config.model,
        attention="eager" if device.type == "cpu" else None,
        quantization=config.base_quantization,
        device=device,
    )
    n_written = config.max_new_tokens if config.generate_n else 0
    n_target = max(config.data.max_target_tokens, n_written)
    check_lengths(base.config, config.data.max_source_tokens, n_target)
    if config.gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = attach_lora(base, config.lora) if config.tuning == "lora" else base
    if is_sharded_launch():
        return model  # goes to the device in parts (runs/sharding.py)
    return model.to(device)


def build_engine(
    config: TrainConfig, model: T5Model, device: torch.device
) -> tuple[nn.Module, Collate, str]:
    """(the forward, the collation it takes, what it is and why): the fast engine wherever it covers
    the model."""
    reason = "asked for" if config.engine == "hf" else why_not_train(model)
    if reason is None:
        dtype = DTYPES[resolve_precision(config.precision, device)]
        engine: nn.Module = FastEngine(model, dtype)
    else:
        engine = PaddedEngine(model)
    if config.compile:
        engine.compile(dynamic=True)
    collate = collator(
        packed=reason is None,
        start_id=model.config.decoder_start_token_id,
        pad_id=model.config.pad_token_id,
        device=device,
    )
    return engine, collate, "fast" if reason is None else f"hf ({reason})"
