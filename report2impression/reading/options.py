"""Where pairs are read from and how they are cut, as settings; loads nothing heavy."""

import math
import os
from dataclasses import dataclass, replace
from typing import Literal

from report2impression.program.errors import ConfigError
from report2impression.reading.licence import Credentialed, Mark, mark_of


@dataclass(frozen=True)
class PairSource:
    """Report pairs: where they lie, and their columns."""

    path: str | None = None
    """Folder of train, validation and test in any format of training, or a hub data set id."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = its main branch."""
    source_column: str | None = None
    """Column of the findings, where it is not prompt, findings or text."""
    target_column: str | None = None
    """Column of the impression, where it is not impressions, impression or summary."""
    id_column: str | None = None
    """Column of the id, where it is not id."""
    group_column: str | None = None
    """Column of the group (such as CT_head), where it is not group."""
    patient_column: str | None = None
    """Column of the patient, where it is not patient."""


@dataclass(frozen=True)
class SourceConfig(PairSource):
    """Where report pairs are read from."""

    path: str = "hejazizo/mimic-iii"
    """Folder with train|validation|test as .jsonl, .json, .csv, .tsv (also .gz, .zst), .parquet,
    shards of these, .tok pairs or a folder of .txt reports; or a hub data set id."""
    mix: tuple[str, ...] = ()
    """Further folders or hub ids (owner/name or owner/name@revision) that only training pairs are
    read from."""
    weights: tuple[float, ...] = ()
    """How often the pairs of path and of each source in mix are seen per epoch (0.5 = half of
    them, 2 = twice); none = each once."""
    mix_seed: int = 0
    """Seed that draws the pairs of a fractional weight."""
    on_bad_row: Literal["auto", "error", "skip"] = "auto"
    """Empty, null or broken rows: stop, or skip and count; auto stops on local files, skips on
    hub sets."""
    cache_dir: str = "~/.cache/report2impression"
    """Folder of the tokenised data, readable by its owner only."""
    normalise: Literal["keep", "ascii", "stop"] = "keep"
    """Signs that the tokenizer does not know (such as ×, −, <): keep = they become ⁇; ascii = they
    are spelled (x, -, less than), in training, evaluation and use alike; stop = refuse them."""
    allow_unknown: bool = False
    """Go on even if more than 5 % of a side's tokens are unknown."""
    credentialed: Credentialed = "auto"
    """Whether an agreement restricts who may see it: auto = as its LICENCE.json says, else yes for
    what is named after MIMIC."""

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != 1 + len(self.mix):
            raise ConfigError(
                f"data.weights has {len(self.weights)} numbers for {1 + len(self.mix)} sources: "
                "give one for data.path and one for each of data.mix"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError("each of data.weights must be more than 0")

    def mark(self) -> Mark:
        """The mark of all sources together: credentialed if one of them is. Raises DataError."""
        marks = [mark_of(source.path, self.credentialed) for source in self.sources()]
        return next((mark for mark in marks if mark.credentialed), marks[0])

    def sources(self) -> list["SourceConfig"]:
        """Each source of training pairs as settings of its own, `path` first."""
        added = [_with_revision(entry) for entry in self.mix]
        alone = replace(self, mix=(), weights=())
        return [alone, *(replace(alone, path=path, revision=r) for path, r in added)]


def _with_revision(entry: str) -> tuple[str, str | None]:
    if os.path.isdir(os.path.expanduser(entry)):
        return entry, None
    path, _, revision = entry.partition("@")
    return path, revision or None


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """What is read and how it is cut into tokens."""

    prefix: str = "extract: "
    """Text put before every report, the task's name for T5."""
    max_source_tokens: int = 512
    """Longest source in tokens, end-of-sequence included; longer ones are cut and counted."""
    max_target_tokens: int = 256
    """Longest target in tokens, end-of-sequence included; longer ones are cut and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_source_tokens < 4 or self.max_target_tokens < 2:
            raise ConfigError(
                "data.max_source_tokens must be at least 4, data.max_target_tokens at least 2"
            )
