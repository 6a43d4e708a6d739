"""Settings of base and adapter; loads nothing heavy."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from report2impression.program.errors import ConfigError

MAX_RANK = 4096  # wider than any layer of the largest T5 needs
MAX_ALPHA = 1e6


Quantization: TypeAlias = Literal["none", "8bit", "4bit"]


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
