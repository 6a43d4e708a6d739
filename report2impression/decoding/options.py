"""Settings of decoding, and what it gives back; loads neither torch nor transformers.

They are all there is. A base may bring a generation_config.json, and old ones keep such settings in
config.json: of these every engine takes the ids that end an output (one or a list), and no other
wish. Forced, suppressed or bad tokens, penalties, least lengths, sampling, another number of beams:
what differs from the settings of the run is named in one line before decoding, and ignored.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from report2impression.program.errors import ConfigError, check_least


@dataclass(frozen=True)
class SearchConfig:
    """How impressions are decoded."""

    num_beams: int = 1
    """Beams of the search; 1 = greedy."""
    max_new_tokens: int = 128
    """Longest generated impression, in tokens."""
    min_new_tokens: int = 0
    """End-of-sequence is not allowed before so many tokens."""
    length_penalty: float = 1.0
    """Beams only: log-probabilities are divided by length ** length_penalty; above 0 favours long
    outputs."""
    no_repeat_ngram: int = 0
    """No n-gram of this many tokens twice in an output; 0 = allowed."""

    def __post_init__(self) -> None:
        check_least(1, self, "num_beams", "max_new_tokens")
        check_least(0, self, "no_repeat_ngram")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError("min_new_tokens must be between 0 and max_new_tokens")
        if not -10 <= self.length_penalty <= 10:
            raise ConfigError(f"length_penalty must be -10 to 10, not {self.length_penalty}")


EngineName = Literal["torch", "hf", "ctranslate2"]


DecodingPrecision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class DecodingConfig(SearchConfig):
    """How, and with what, impressions are decoded."""

    engine: EngineName = "torch"
    """torch = own decoder with caches; hf = transformers' generate (the reference); ctranslate2 =
    that library (extra "ct2"; CPU; greedy or beams)."""
    precision: DecodingPrecision = "fp32"
    """fp32 = the exact outputs; bf16, fp16 and int8 (on a CPU; not with hf) are faster and differ
    in a few."""
    batch_size: int = 0
    """Reports decoded together by one process; 0 = what fits into cache_mib, at most 256."""
    cache_mib: int = 2048
    """Memory for the keys and values of the reports in flight, in MiB (engine torch, batch_size 0).
    A token takes 24 KiB in T5-small's fp32, half of that in bf16; give large models more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(0, self, "batch_size")
        check_least(1, self, "cache_mib")
        if self.precision == "int8" and self.engine == "hf":
            raise ConfigError("precision = int8 needs engine = torch or ctranslate2, not hf")


class Output(NamedTuple):
    """One decoded report."""

    report: int  # its index in the caller's order
    ids: list[int]  # without special tokens
    score: float | None  # beams: log-probability / length ** length_penalty
    cut: bool  # ended by max_new_tokens
    confidence: float | None = None  # exp(mean log-probability of its tokens), where asked for
