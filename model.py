"""T5 + LoRA: load a base, attach or load an adapter, run it, save it, count it.

Weights come from safetensors only, and no code is ever loaded with a model. PEFT owns the adapter's
parameters and its file format. The engines turn a batch into a summed loss; `PaddedEngine` is the
plain HF + PEFT forward.

B examples, S source tokens, T target tokens, V vocabulary.
"""

import quiet  # isort: skip  # noqa: F401  (before PEFT)

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx2  # of huggingface_hub: its connection errors have no other base
import huggingface_hub
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

import adapter_files
from adapter_files import MAX_ALPHA, MAX_RANK
from errors import ConfigError
from model_files import check_base, shown

HUB_TIMEOUT_S = 10.0
# What the libraries raise for files that are missing, broken, or of another model.
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
)

Quantization: TypeAlias = Literal["none", "8bit", "4bit"]
T5Model: TypeAlias = T5ForConditionalGeneration | PeftModel


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    path: str = "google-t5/t5-small"
    """Folder or hub id of a T5 base with its tokenizer, weights in safetensors."""
    revision: str | None = None
    """Hub commit or tag of the base; none = its main branch."""
    dropout: float | None = None
    """Dropout probability inside T5 (0 to 1); none = as the base's config says (0.1 for T5)."""

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter; read only when tuning = lora."""

    r: int = 16
    """Rank of the low-rank update."""
    alpha: float = 64.0
    """Scale: the update counts alpha / r times (alpha / sqrt(r) with use_rslora)."""
    dropout: float = 0.1
    """Dropout probability on the adapter's input (0 to 1)."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the adapted linear layers, such as ["q","v"]; all-linear = all but lm_head."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""

    def __post_init__(self) -> None:
        if not 1 <= self.r <= MAX_RANK or not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.r must be 1 to {MAX_RANK} and lora.dropout in [0, 1)")
        if not 0 < self.alpha <= MAX_ALPHA:
            raise ConfigError(
                f"lora.alpha must be above 0 and at most {MAX_ALPHA:g}, not {self.alpha}"
            )
        if not self.target_modules:
            raise ConfigError('lora.target_modules names no layer: give some, such as ["q","v"]')


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
    is_local = _look_at(path)
    with _one_line_errors("model", path):
        _reach_hub(path)
        settings = AutoConfig.from_pretrained(
            path, revision=config.revision, local_files_only=is_local
        )
        if settings.model_type != "t5":
            raise ConfigError(f"model {path} is a {settings.model_type}, not a t5")
        own_dropout = settings.dropout_rate
        if config.dropout is not None:
            settings.dropout_rate = config.dropout
        model, found = T5ForConditionalGeneration.from_pretrained(
            path,
            config=settings,
            revision=config.revision,
            local_files_only=is_local,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation=attention,
            **_quantized(quantization, device),
        )
    _check_weights(model, found, path)
    # Read at generation time only; the maximum is always given by the caller.
    model.generation_config.max_length = None
    model.own_dropout = own_dropout  # what `save_model` stores: an override is of one run only
    model.name_or_path = config.path  # what an adapter names as its base: a "~" as it was given
    return model


def _look_at(path: str) -> bool:
    """Whether it is a folder, whose files were checked: then no hub is asked for anything."""
    if os.path.isdir(path):
        check_base(Path(path))
        return True
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
    is_local = _look_at(path)
    with _one_line_errors("tokenizer", path):
        _reach_hub(path)
        tokenizer = T5Tokenizer.from_pretrained(path, revision=revision, local_files_only=is_local)
        # Without files transformers makes up a vocabulary: special tokens and a space.
        if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
            raise FileNotFoundError("neither tokenizer.json nor spiece.model")
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
        kind = type(error).__name__
        where = "folder" if os.path.isdir(path) else "hub id"
        raise ConfigError(
            f"cannot load the {what} from {where} {path} ({kind}): check the name (a relative one "
            "starts from the current folder), the revision, the network, and that its weights are "
            "safetensors; offline, give local copies with --model.path DIR and --data.path DIR, "
            "set HF_HUB_OFFLINE=1 to use an earlier download, or run `make demo`"
        ) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reach_hub(path: str) -> None:
    """One request without retries: `from_pretrained` would retry for minutes where no hub is."""
    if os.path.isdir(path) or huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().model_info(path, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        pass  # an answer: `from_pretrained` judges it
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConnectionError(f"no hub ({type(error).__name__})") from None


def attach_lora(base: T5ForConditionalGeneration, settings: LoraSettings) -> PeftModel:
    """Freeze the base and add fresh fp32 LoRA pairs (A random, B zero). Raises ConfigError on
    unknown layers."""
    targets: str | list[str] = list(settings.target_modules)
    if targets == ["all-linear"]:
        targets = "all-linear"
    else:
        _check_targets(base, settings.target_modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # PEFT only divides by it
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        bias="none",
        task_type=TaskType.SEQ_2_SEQ_LM,
    )
    return get_peft_model(base, config)


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
                f"no linear layer of the base is named {target!r}; there are {known}: mend {where}"
            )


def load_adapter(base: T5ForConditionalGeneration, folder: str | Path) -> PeftModel:
    """The base with a saved adapter on it, in evaluation mode; no file of it is opened by PEFT.

    Raises ConfigError that names what is wrong: the field, the tensor, the file.
    """
    folder = Path(folder).expanduser()
    config = adapter_files.read_settings(folder)
    _check_targets(base, sorted(config.target_modules), str(folder / adapter_files.CONFIG))
    with _one_line_errors("adapter", str(folder)):
        model = get_peft_model(base, config).eval()
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        weights = adapter_files.read_weights(folder, wanted)
    except ConfigError:
        model.unload()  # the base as it was
        raise
    with _one_line_errors("adapter", str(folder)):
        set_peft_model_state_dict(model, weights)
    return model


def merged(model: PeftModel) -> T5ForConditionalGeneration:
    """The base with the update added into its weights (in fp32: half precision rounds it away).
    Consumes model."""
    return model.merge_and_unload()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones counted once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


class PaddedEngine(nn.Module):
    """engine = "hf": the HF (+ PEFT) forward on padded batches; the reference for every faster
    one."""

    def __init__(self, model: T5Model) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.start_id: int = config.decoder_start_token_id
        self.pad_id: int = config.pad_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """(B, S), (B, S), (B, T) -> cross-entropy summed over the label tokens, fp32 scalar."""
        logits = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=shift_right(labels, start_id=self.start_id, pad_id=self.pad_id),
            use_cache=False,
        ).logits
        return F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="sum"
        )  # labels of -100 count for nothing: torch's default ignore_index


def shift_right(labels: Tensor, *, start_id: int, pad_id: int) -> Tensor:
    """Decoder input (B, T): the start token, then the labels but the last; ignored labels (-100)
    become padding."""
    shifted = torch.cat([torch.full_like(labels[:, :1], start_id), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted < 0, pad_id)


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


def save_model(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    write_extras: Callable[[Path], None],
    half: bool = False,
) -> None:
    """Write an adapter (PEFT) or a whole model to `folder`, replacing it only by a complete one.

    `write_extras` adds what belongs beside the weights; `half` stores a whole model in fp16.
    """
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(temporary), save_embedding_layers=False)
    else:
        stored = copy.deepcopy(model).half() if half else model
        stored.save_pretrained(str(temporary))
        settings = copy.deepcopy(stored.config)
        settings.dropout_rate = getattr(model, "own_dropout", settings.dropout_rate)
        settings.save_pretrained(str(temporary))
    write_extras(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
