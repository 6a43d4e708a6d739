"""Settings of base and adapter; loads nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, check_least, exits_cleanly
from report2impression.reading.options import SourceConfig

MAX_RANK = 4096  # wider than any layer of the largest T5 needs
MAX_ALPHA = 1e6


Quantization: TypeAlias = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    path: str = "google-t5/t5-small"
    """Folder or hub id of a base with its tokenizer, weights in safetensors: a T5, or another
    encoder-decoder that docs/bases.md lists."""
    revision: str | None = None
    """Hub commit or tag of the base; none = its main branch."""
    dropout: float | None = None
    """Dropout probability inside the base (0 to 1); none = as its config says (0.1 for T5)."""

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


@dataclass(frozen=True)
class NewBaseConfig:
    """An untrained T5. The defaults suit a few thousand short reports and two CPU cores."""

    output_dir: str
    """Folder of the new base; must not exist, or be empty."""
    d_model: int = 256
    """Width of the residual stream."""
    d_ff: int = 1024
    """Width of the feed-forward layers."""
    d_kv: int = 64
    """Width of one attention head."""
    n_heads: int = 4
    """Attention heads per layer."""
    n_layers: int = 4
    """Layers of the encoder, and of the decoder."""
    dropout: float = 0.1
    """Dropout probability stored in the config (0 to 1)."""
    vocab_size: int = 2000
    """Largest number of SentencePiece pieces; small corpora give fewer."""
    tokenizer: str | None = None
    """Folder of a T5 tokenizer to use as it is; none = train one on the reports."""
    seed: int = 0
    """Seed of the random weights."""
    data: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        check_least(1, self, "d_model", "d_ff", "d_kv", "n_heads", "n_layers", "vocab_size")
        check_least(0, self, "seed")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.seed >= 2**63:  # torch's own limit
            raise ConfigError(f"seed must be below 2**63, not {self.seed}")


@dataclass(frozen=True)
class ConvertConfig:
    """A base's weights in another format."""

    from_: str
    """Folder of the base: config.json, the tokenizer, pytorch_model.bin."""
    to: str
    """Folder of the same base in safetensors; must not exist, or be empty."""


@exits_cleanly
def convert_settings(argv: list[str] | None = None) -> ConvertConfig:
    """Of weights/convert.py. SystemExit as below."""
    return parse(ConvertConfig, argv, description="A base of pytorch_model.bin -> safetensors")


@exits_cleanly
def new_base_settings(argv: list[str] | None = None) -> NewBaseConfig:
    """Of weights/new_base.py. SystemExit where they are wrong (2), or after --help (0)."""
    return parse(NewBaseConfig, argv, description="An untrained small T5 for any reports")
