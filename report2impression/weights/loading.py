"""Load a base and an adapter: safetensors only, and no code ever comes with a model.

Raises ConfigError in one line wherever transformers would trace back or make something up.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from report2impression.program.errors import ConfigError
from report2impression.weights import adapter_files, families
from report2impression.weights.base_files import refuse_only_pickled, shown
from report2impression.weights.opening import look_at, one_line_errors
from report2impression.weights.options import ModelConfig, Quantization


def load_base(
    config: ModelConfig,
    attention: str | None = None,
    *,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The base in fp32, in evaluation mode; `attention` is HF's name of an implementation, none =
    the one that HF takes for this kind of base.

    A quantized base is loaded onto `device` at once. Raises ConfigError if the base is missing, not
    in safetensors, or none of families.SUPPORTED.
    """
    path = os.path.expanduser(config.path)
    is_local = look_at("model", path)
    if is_local:
        refuse_only_pickled(Path(path))
    where: dict[str, Any] = {"revision": config.revision, "local_files_only": is_local}
    with one_line_errors("model", path):
        settings = AutoConfig.from_pretrained(path, **where)
    families.check_family("model", path, settings.model_type)
    settings.decoder_start_token_id = families.start_id(settings)
    if settings.decoder_start_token_id is None:
        raise ConfigError(
            f"{path}: config.json has no decoder_start_token_id: add the id that impressions "
            "begin with (of mbart, their language's)"
        )
    own_dropout = families.dropout_of(settings)
    if config.dropout is not None:
        families.set_dropout(settings, config.dropout)
    with one_line_errors("model", path):
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            path,
            config=settings,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
            **where,
            **_quantized(quantization, device),
        )
    _check_weights(model, found, path)
    # Read at generation time only; the maximum is always given by the caller.
    model.generation_config.max_length = None
    model.own_dropout = own_dropout  # what `save_model` stores: an override is of one run only
    model.name_or_path = config.path  # what an adapter names as its base: a "~" as it was given
    return model


def _check_weights(model: PreTrainedModel, found: dict[str, Any], path: str) -> None:
    """transformers makes up weights that the files lack, passes over those too many, and takes
    any number for one."""
    sides = {"missing_keys": "the weights lack", "unexpected_keys": "the config has no place for"}
    for key, told in sides.items():
        if found[key]:
            raise ConfigError(
                f"config and weights of {path} do not fit: {told} {shown(min(found[key]))} (and "
                f"{len(found[key]) - 1:,} more): fetch the model again"
            )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise ConfigError(f"the model {path} is broken: {name} is not finite: fetch it again")


def _quantized(quantization: Quantization, device: torch.device | None) -> dict[str, Any]:
    """What `from_pretrained` is told: 8-bit (LLM.int8) or 4-bit (nf4) linears of bitsandbytes."""
    if quantization == "none":
        return {}
    bits = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,  # autocast makes it the run's precision
    )
    return {"quantization_config": bits, "device_map": {"": device or torch.device("cpu")}}


def _check_targets(
    base: nn.Module, targets: Sequence[str], where: str = "--lora.target_modules"
) -> None:
    """PEFT passes over a name that fits nothing as long as another one fits."""
    layers = families.adaptable(base)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ConfigError(
                f"no linear layer of the base is named {shown(target)}; there are {known}: "
                f"mend {where}"
            )


def with_adapter(base: PreTrainedModel, config: LoraConfig, **options: bool) -> PeftModel:
    """The base with fresh LoRA pairs. PEFT asks it for a property that transformers deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(base, config, **options)


def load_adapter(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The base with a saved adapter on it, in evaluation mode; no file of it is opened by PEFT.

    Raises ConfigError that names what is wrong: the field, the tensor, the file.
    """
    folder = Path(folder).expanduser()
    config = adapter_files.read_settings(folder)
    where = f"target_modules in {folder / adapter_files.CONFIG}"
    _check_targets(base, sorted(config.target_modules), where)
    with one_line_errors("adapter", str(folder)):
        # Without memory for the weights, as long as those in the file may have other shapes.
        model = with_adapter(base, config, low_cpu_mem_usage=True).eval()
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        weights = adapter_files.read_weights(folder, wanted)
    except ConfigError:
        model.unload()  # the base as it was
        raise
    with one_line_errors("adapter", str(folder)):
        set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    return model


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the update added into its weights (in fp32: half precision rounds it away).
    Consumes model."""
    settings = model.get_base_model().config
    tied = settings.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        whole = model.merge_and_unload()
    if settings.model_type in families.LIKE_GEMMA:
        # PEFT looks at the encoder's embedding, but this head is tied to the decoder's: the head
        # would not be stored, and a loader would miss it.
        settings.tie_word_embeddings = tied
    return whole
