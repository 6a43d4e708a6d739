"""Load a base, its tokenizer, an adapter: safetensors only, and no code ever comes with a model.

Raises ConfigError in one line wherever transformers would trace back or make something up.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2  # of huggingface_hub: its connection errors have no other base
import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from report2impression.program.errors import ConfigError
from report2impression.weights import adapter_files
from report2impression.weights.base_files import check_base, shown
from report2impression.weights.options import ModelConfig, Quantization

HUB_TIMEOUT_S = 10.0


# What the libraries raise for files that are missing, broken, or of another model, and for hubs
# that cannot be reached. Around their calls only: in a line of ours each of these is a bug.
LOADING_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
)


def load_base(
    config: ModelConfig,
    attention: str = "sdpa",
    *,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> T5ForConditionalGeneration:
    """The base in fp32, in evaluation mode; `attention` is HF's name of an implementation.

    A quantized base is loaded onto `device` at once. Raises ConfigError if the base is missing or
    not a T5 in safetensors.
    """
    path = os.path.expanduser(config.path)
    is_local = _look_at("model", path)
    where: dict[str, Any] = {"revision": config.revision, "local_files_only": is_local}
    with _one_line_errors("model", path):
        settings = AutoConfig.from_pretrained(path, **where)
    if settings.model_type != "t5":
        raise ConfigError(f"model {path} is a {settings.model_type}, not a t5")
    own_dropout = settings.dropout_rate
    if config.dropout is not None:
        settings.dropout_rate = config.dropout
    with _one_line_errors("model", path):
        model, found = T5ForConditionalGeneration.from_pretrained(
            path,
            config=settings,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
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


def _look_at(what: str, path: str) -> bool:
    """Whether it is a folder, whose files were checked: then no hub is asked for anything.

    Else one request without retries: `from_pretrained` would retry for minutes where no hub is.
    """
    if os.path.isdir(path):
        check_base(Path(path))
        return True
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        # An answer of the hub, whatever it is, is judged by `from_pretrained`.
        with _one_line_errors(what, path), suppress(HfHubHTTPError):
            huggingface_hub.HfApi().model_info(path, timeout=HUB_TIMEOUT_S)
    return False


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


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the base. Raises ConfigError if it is missing or unreadable."""
    path = os.path.expanduser(path)
    is_local = _look_at("tokenizer", path)
    with _one_line_errors("tokenizer", path):
        tokenizer = T5Tokenizer.from_pretrained(path, revision=revision, local_files_only=is_local)
    # Without files transformers makes up a vocabulary: special tokens and a space.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise _cannot_load("tokenizer", path, "neither tokenizer.json nor spiece.model")
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer of {path} has no fast form: use a T5 tokenizer")
    return tokenizer


@contextmanager
def _one_line_errors(what: str, path: str) -> Iterator[None]:
    """A foreign loading error becomes one line; its own text may name hosts, so it stays out."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except LOADING_ERRORS as error:
        raise _cannot_load(what, path, type(error).__name__) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cannot_load(what: str, path: str, why: str) -> ConfigError:
    where = "folder" if os.path.isdir(path) else "hub id"
    return ConfigError(
        f"cannot load the {what} from {where} {path} ({why}): check the name (a relative one "
        "starts from the current folder), the revision, the network, and that its weights are "
        "safetensors; offline, give local copies with --model.path DIR and --data.path DIR, "
        "set HF_HUB_OFFLINE=1 to use an earlier download, or run `make demo`"
    )


def _check_targets(
    base: nn.Module, targets: Sequence[str], where: str = "--lora.target_modules"
) -> None:
    """PEFT passes over a name that fits nothing as long as another one fits."""
    layers = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    # Not lm_head: it may be tied to the embedding, which merging would change, too.
    layers = [name for name in layers if name != "lm_head"]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ConfigError(
                f"no linear layer of the base is named {shown(target)}; there are {known}: "
                f"mend {where}"
            )


def with_adapter(
    base: T5ForConditionalGeneration, config: LoraConfig, **options: bool
) -> PeftModel:
    """The base with fresh LoRA pairs. PEFT asks it for a property that transformers deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(base, config, **options)


def load_adapter(base: T5ForConditionalGeneration, folder: str | Path) -> PeftModel:
    """The base with a saved adapter on it, in evaluation mode; no file of it is opened by PEFT.

    Raises ConfigError that names what is wrong: the field, the tensor, the file.
    """
    folder = Path(folder).expanduser()
    config = adapter_files.read_settings(folder)
    where = f"target_modules in {folder / adapter_files.CONFIG}"
    _check_targets(base, sorted(config.target_modules), where)
    with _one_line_errors("adapter", str(folder)):
        # Without memory for the weights, as long as those in the file may have other shapes.
        model = with_adapter(base, config, low_cpu_mem_usage=True).eval()
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        weights = adapter_files.read_weights(folder, wanted)
    except ConfigError:
        model.unload()  # the base as it was
        raise
    with _one_line_errors("adapter", str(folder)):
        set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    return model


def merged(model: PeftModel) -> T5ForConditionalGeneration:
    """The base with the update added into its weights (in fp32: half precision rounds it away).
    Consumes model."""
    return model.merge_and_unload()
