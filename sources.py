"""Where report pairs are read from: the settings, and what they name.

    read_pairs(config, "train")      # all training pairs, of several sources if there are more
    stream_pairs(config, "train")    # the same one by one, for sets larger than memory
    open_source(config, "test")      # found, not read: columns, and a stream of its rows

Training pairs may come from several sources; validation and test pairs are those of `path`, so that
figures stay comparable whatever is added to the training.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from corpus.licence import Credentialed, Mark, mark_of
from corpus.mixing import mix, stream_mix
from corpus.pairs import BadRow, Pair, PairTable, Split, open_pairs
from errors import ConfigError


@dataclass(frozen=True)
class SourceConfig:
    """Where report pairs are read from."""

    path: str = "hejazizo/mimic-iii"
    """Folder with train|validation|test as .jsonl, .csv, .tsv (also .gz, .zst), .parquet, .tok
    pairs or a folder of .txt reports; or a hub data set id."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = its main branch."""
    mix: tuple[str, ...] = ()
    """Further folders or hub ids (owner/name or owner/name@revision) that only training pairs are
    read from."""
    weights: tuple[float, ...] = ()
    """How often the pairs of path and of each source in mix are seen per epoch (0.5 = half of
    them, 2 = twice); none = each once."""
    mix_seed: int = 0
    """Seed that draws the pairs of a fractional weight."""
    source_column: str | None = None
    """Column of the findings; none = prompt, findings or text, whichever is there."""
    target_column: str | None = None
    """Column of the impression; none = impressions, impression or summary."""
    id_column: str | None = None
    """Column of the id; none = id, if it is there."""
    group_column: str | None = None
    """Column of the group (such as CT_head); none = group, if it is there."""
    patient_column: str | None = None
    """Column of the patient; none = patient, if it is there."""
    on_bad_row: Literal["auto", "error", "skip"] = "auto"
    """Empty, null or broken rows: stop, or skip and count; auto stops on local files, skips on
    hub sets."""
    cache_dir: str = "~/.cache/report2impression"
    """Folder of the tokenised data, readable by its owner only."""
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


def open_source(config: SourceConfig, split: str) -> PairTable:
    """One split of `config.path`, found but not read (errors as `corpus.pairs.open_pairs`)."""
    return open_pairs(
        config.path,
        split,
        revision=config.revision,
        source_column=config.source_column,
        target_column=config.target_column,
        id_column=config.id_column,
        group_column=config.group_column,
        patient_column=config.patient_column,
        on_bad_row=config.on_bad_row,
    )


def read_pairs(config: SourceConfig, split: str) -> Split:
    """One split of the configured source, its training pairs of all sources. ConfigError,
    DataError."""
    if split != "train" or not (config.mix or config.weights):
        return open_source(config, split).read()
    splits = [open_source(source, split).read() for source in config.sources()]
    return mix(splits, config.weights or (1.0,) * len(splits), config.mix_seed)


def stream_pairs(config: SourceConfig, split: str) -> Iterator[Pair | BadRow]:
    """The pairs and bad rows of `read_pairs` one by one, in constant memory."""
    if split != "train" or not (config.mix or config.weights):
        return open_source(config, split).stream()
    streams = [partial(stream_pairs, source, split) for source in config.sources()]
    return stream_mix(streams, config.weights or (1.0,) * len(streams), config.mix_seed)
