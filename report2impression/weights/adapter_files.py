"""A saved LoRA adapter, checked to the last field and tensor: PEFT never opens these files.

PEFT fills up what a file lacks, ignores what it has too much, and lets NaN, any rank and any scale
pass. Here `adapter_config.json` has a closed list of fields, and the weights must be exactly those
that the adapter has on its base: names, shapes, kind of number, finite.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor

from report2impression.program.errors import ConfigError
from report2impression.weights.base_files import (
    read_header,
    read_json,
    refuse_code,
    refuse_pickles,
    refuse_unlike,
    shown,
)
from report2impression.weights.options import MAX_ALPHA, MAX_RANK

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# A layer's name: PEFT takes the keys of its pattern tables for regular expressions.
LAYER = re.compile(r"\w+(\.\w+)*", re.ASCII)
# Of no use for a saved adapter: neither read nor handed on.
UNUSED = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout"}
UNUSED |= {"peft_version", "revision", "task_type"}


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not _is_flag(value) and 0 < value <= MAX_ALPHA


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(LAYER.fullmatch(value))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_name, value))


def _is_table(value: object, is_right: Callable[[object], bool]) -> bool:
    if not isinstance(value, dict):
        return False
    return all(map(_is_name, value)) and all(map(is_right, value.values()))


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


# What may differ from PEFT's defaults, and how.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "peft_type": ("LORA", lambda value: value == "LORA"),
    "r": (f"a whole number from 1 to {MAX_RANK}", _is_rank),
    "lora_alpha": (f"a number above 0, at most {MAX_ALPHA:g}", _is_alpha),
    "target_modules": ("a list of layer names (no pattern)", _are_names),
    "exclude_modules": ("null or a list of layer names", lambda v: v is None or _are_names(v)),
    "rank_pattern": ("a table: layer name -> rank", lambda value: _is_table(value, _is_rank)),
    "alpha_pattern": ("a table: layer name -> alpha", lambda value: _is_table(value, _is_alpha)),
    "use_rslora": ("true or false", _is_flag),
    "use_dora": ("true or false", _is_flag),
    "lora_bias": ("true or false", _is_flag),
    "init_lora_weights": (
        "true, false, gaussian or orthogonal (others change the base)",
        lambda value: _is_flag(value) or value in ("gaussian", "orthogonal"),
    ),
}


def _check_field(file: Path, name: str, value: object, defaults: Mapping[str, object]) -> None:
    if name not in defaults:
        raise ConfigError(f"{file}: unknown field {shown(name)}: it is none of a LoRA adapter")
    wanted, is_right = FIELDS.get(name, ("left out", None))
    if not (is_right(value) if is_right else ascii(value) == ascii(defaults[name])):
        raise ConfigError(f"{file}: {name} must be {wanted}, not {shown(value)}")


def read_settings(folder: Path) -> LoraConfig:
    """The checked adapter_config.json of a folder, and nothing in the folder that could run.

    Raises ConfigError that names the field or the file.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} holds no {name}: give the adapter folder of a run (RUN/adapter)"
            )
    refuse_code(folder)
    refuse_pickles(folder)
    file = folder / CONFIG
    given, defaults = read_json(file), LoraConfig().to_dict()
    given = {name: value for name, value in given.items() if name not in UNUSED}
    for name, value in given.items():
        _check_field(file, name, value, defaults)
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in given:
            raise ConfigError(f"{file} lacks {name}: copy the adapter folder whole")
    kept = {name: value for name, value in given.items() if name in FIELDS}
    own = {"task_type": "SEQ_2_SEQ_LM", "inference_mode": True, "init_lora_weights": True}
    return LoraConfig(**{**kept, **own})


def read_weights(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored weights in fp32: exactly those wanted, by name and shape, all finite.

    Header first: nothing large is read before it fits. Raises ConfigError that names the tensor.
    """
    file = folder / WEIGHTS
    try:
        with file.open("rb") as stream:
            header = read_header(stream, file, 2**20 + 2**10 * len(wanted))
        refuse_unlike(file, list(header), list(wanted))
        with safe_open(file, framework="pt") as stored:
            for name, weight in wanted.items():
                _check_form(file, name, stored.get_slice(name), weight)
            return {name: _finite(file, name, stored.get_tensor(name)) for name in wanted}
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except SafetensorError:  # its text may hold anything that the file says
        raise ConfigError(f"{file} is no whole safetensors file: copy the adapter again") from None


def _check_form(file: Path, name: str, stored: Any, wanted: Tensor) -> None:
    shape, kind = tuple(stored.get_shape()), stored.get_dtype()
    if shape != tuple(wanted.shape):
        raise ConfigError(
            f"{file} is of another base: {name} has the shape {shown(shape)}, on this base "
            f"{tuple(wanted.shape)}: give the base it was trained on"
        )
    if kind not in FLOATS:
        raise ConfigError(f"{file}: {name} is stored as {kind}, not as {', '.join(FLOATS)}")


def _finite(file: Path, name: str, weight: Tensor) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise ConfigError(f"the adapter {file} is broken: {name} is not finite; train again")
    return weight.float()
