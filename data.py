"""Report pairs -> token ids, once -> batches.

    pairs (sources.py) -> token_store.py -> dataset -> batches in the plan's order

A dataset knows its lengths before anything is drawn (the plan needs nothing else) and hands out
examples by index: findings -> impression (`ExtractDataset`), or a span-corrupted report
(`DenoiseDataset`).

B examples, S source tokens, T target tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from report2impression.batching.collation import Collate, Example
from report2impression.batching.dataset import LengthStatistics, PlannedDataset, batches
from report2impression.batching.denoise import (
    MIN_TOKENS,
    corrupt,
    corrupted_lengths,
    cuts,
    split_at,
)
from report2impression.batching.plan import Step
from report2impression.batching.signs import LOOKED_AT, Signs, Spelling, named, refuse_unknown
from report2impression.batching.token_store import (
    PairStream,
    Side,
    Survey,
    digest,
    survey,
    tokenised,
)
from report2impression.batching.tokens import Tokens
from report2impression.program.errors import ConfigError, DataError
from report2impression.program.terminal import print_table
from report2impression.reading.options import DataConfig
from report2impression.reading.pairs import Pair
from report2impression.reading.sources import stream_pairs, tell_skipped
from report2impression.runs.processes import on_rank_0
from report2impression.runs.recipe import Objective, TrainConfig

IMPRESSION_MARK = " impression "  # between findings and impression in a whole report


@dataclass(frozen=True)
class ExtractDataset(Dataset):
    """Findings -> impression. Example = (source ids (S,), label ids (T,)), both with
    end-of-sequence."""

    split: str
    ids: Sequence[str]
    source: Tokens
    target: Tokens
    impressions: Sequence[str] = ()  # for scores of generated ones, where they are wanted

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        return self.source.lengths

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        return self.target.lengths

    def for_epoch(self, epoch: int) -> "ExtractDataset":
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return self.source.row(index), self.target.row(index)

    def statistics(self) -> list[LengthStatistics]:
        sides = (("source", self.source), ("target", self.target))
        return [_statistics(self.split, side, tokens) for side, tokens in sides]


@dataclass(frozen=True)
class DenoiseDataset(Dataset):
    """Whole reports, span-corrupted or (a share of them) cut in two afresh in every epoch: a pure
    function of (seed, epoch, index). `impressions` (N,) tells at which token each one begins."""

    split: str
    ids: Sequence[str]
    report: Tokens
    impressions: NDArray[np.int64]
    sentinels: NDArray[np.int32]
    eos_id: int
    seed: int
    continued: float = 0.0
    at_impression: float = 0.0
    epoch: int = 0

    @cached_property
    def _cuts(self) -> NDArray[np.int64]:
        draw = np.random.default_rng([self.seed, self.epoch])
        lengths, starts = self.report.lengths, self.impressions
        return cuts(lengths, starts, self.continued, self.at_impression, draw)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        whole = self.report.lengths
        sizes = range(MIN_TOKENS, int(whole.max()) + 1)
        by_size = np.array([corrupted_lengths(n, len(self.sentinels) - 1) for n in sizes])
        in_two = np.stack([self._cuts + 1, whole - self._cuts + 1], axis=1)
        return np.where(self._cuts[:, None] > 0, in_two, by_size[whole - MIN_TOKENS])

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        return self._lengths[:, 0]

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        return self._lengths[:, 1]

    def for_epoch(self, epoch: int) -> "DenoiseDataset":
        return replace(self, epoch=epoch)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        if self._cuts[index]:
            return split_at(self.report.row(index), int(self._cuts[index]), self.eos_id)
        draw = np.random.default_rng([self.seed, self.epoch, index])
        return corrupt(self.report.row(index), self.sentinels, self.eos_id, draw)

    def statistics(self) -> list[LengthStatistics]:
        return [_statistics(self.split, "report", self.report)]


def _statistics(split: str, side: str, tokens: Tokens) -> LengthStatistics:
    lengths = tokens.lengths
    p95 = int(np.percentile(lengths, 95, method="nearest"))
    longest = int(lengths.max())
    return LengthStatistics(
        split,
        side,
        len(lengths),
        float(lengths.mean()),
        p95,
        longest,
        tokens.n_truncated,
        tokens.n_unknown,
    )


def build_dataset(
    found: Survey,
    stream: PairStream,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    objective: Objective = "extract",
    continued: float = 0.0,
    at_impression: float = 0.0,
    seed: int = 0,
    keep_impressions: bool = False,
) -> PlannedDataset:
    """Tokenise the surveyed split, or map it from the cache. Raises DataError if a report is too
    short."""
    extract = objective == "extract"
    stored = tokenised(
        found,
        stream,
        sides_of(objective, config),
        tokenizer,
        folder=config.cache_dir,
        keep_impressions=keep_impressions,
    )
    ids = stored.ids
    if extract:
        sides = stored.sides
        return ExtractDataset(
            found.split, ids, sides["source"], sides["target"], stored.impressions
        )
    report = stored.sides["report"]
    if report.lengths.min() < MIN_TOKENS:
        short = ids[int(report.lengths.argmin())]
        raise DataError(
            f"report {short!r} of split {found.split} is too short to denoise: remove it"
        )
    eos_id = tokenizer.eos_token_id
    if eos_id is None:
        raise ConfigError("the tokenizer has no eos_token_id: use a T5 tokenizer")
    sentinels = sentinel_ids(tokenizer)
    starts = stored.sides["findings"].lengths
    return DenoiseDataset(
        found.split, ids, report, starts, sentinels, eos_id, seed, continued, at_impression
    )


def sides_of(objective: Objective, config: DataConfig) -> list[Side]:
    return extract_sides(config) if objective == "extract" else denoise_sides(config)


def extract_sides(config: DataConfig) -> list[Side]:
    """What becomes tokens to learn findings -> impression."""
    return [
        Side("source", ("prompt",), config.max_source_tokens, before=config.prefix),
        Side("target", ("impression",), config.max_target_tokens, around="label"),
    ]


def denoise_sides(config: DataConfig) -> list[Side]:
    """Whole reports: the base sees findings and impression together. What stands before the
    impression is there for its length only: no piece of a T5 vocabulary crosses a blank."""
    limit, mark = config.max_source_tokens, IMPRESSION_MARK
    return [
        Side("report", ("prompt", "impression"), limit, between=mark, around="nothing"),
        Side("findings", ("prompt",), limit, after=mark.rstrip(), around="nothing"),
    ]


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int32]:
    """Ids of <extra_id_0>, <extra_id_1>, ... in order of use. Raises ConfigError if there are
    none."""
    vocabulary = tokenizer.get_vocab()
    names = (f"<extra_id_{i}>" for i in range(len(vocabulary)))
    ids: list[int] = []
    for name in names:
        if name not in vocabulary:
            break
        ids.append(vocabulary[name])
    if len(ids) < 2:
        raise ConfigError(
            "the tokenizer has no <extra_id_N> sentinels: objective = denoise needs a T5 one"
        )
    return np.array(ids, dtype=np.int32)


def rank_batches(
    dataset: PlannedDataset,
    steps: Iterable[Step],
    rank: int,
    collate: Collate,
    device: torch.device,
) -> DataLoader:
    """This rank's micro-batches of the given steps, collated and (for CUDA) pinned."""
    shards = (micro_batch[rank] for step in steps for micro_batch in step.micro_batches)
    return batches(dataset, shards, collate, pin_memory=device.type == "cuda")


def read_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> tuple[PlannedDataset, PlannedDataset, str]:
    """(training, validation, digest of both). Rank 0 looks through the source; then one process
    tokenises, and all of them map the same files."""
    streams = {n: partial(stream_pairs, config.data, n) for n in ("train", "validation")}
    if config.data.normalise == "ascii":
        spelling = Spelling(tokenizer)
        streams = {name: partial(spelling.pairs, stream) for name, stream in streams.items()}
    found = on_rank_0(accelerator, lambda: [survey(n, stream) for n, stream in streams.items()])
    training, validation = (
        build_dataset(
            split,
            streams[split.split],
            tokenizer,
            config.data,
            objective=config.objective,
            continued=config.continued,
            at_impression=config.at_impression,
            seed=config.seed,
            keep_impressions=split.split == "validation" and config.generate_n > 0,
        )
        for split in found
    )
    rows = training.statistics() + validation.statistics()
    notes = unknown_signs(rows, streams, tokenizer, config.data, config.objective)
    if accelerator.is_main_process:
        print_table("Reports read, lengths in tokens", rows[0]._fields, rows, digits=1)
        print(*notes, sep="\n", end="\n" * bool(notes))
        for split in found:
            tell_skipped(split.split, split.n_rows, split.first_skipped, split.n_skipped)
    return training, validation, digest(text for split in found for text in split[:2])


def unknown_signs(
    rows: Sequence[LengthStatistics],
    streams: Mapping[str, PairStream],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    objective: Objective,
) -> list[str]:
    """A line for each split and side with signs that the tokenizer does not know, named by their
    code points. Raises DataError if they are too many, or none is allowed."""
    notes, sides = [], {side.name: side for side in sides_of(objective, config)}
    for row in (row for row in rows if row.unknown):
        first = (x for x in islice(streams[row.split](), LOOKED_AT) if isinstance(x, Pair))
        signs = named(Signs(tokenizer).unknown(map(sides[row.side].text, first)))
        what, n_tokens = f"{row.split} {row.side}", round(row.mean * row.examples)
        if not config.allow_unknown:
            refuse_unknown(what, row.unknown, n_tokens, signs, stop=config.normalise == "stop")
        notes.append(f"{what}: {row.unknown:,} unknown tokens ({signs}), read and written as ⁇")
    if notes and config.normalise == "keep":
        notes.append("--data.normalise ascii spells what can be spelled, stop refuses such data")
    return notes
