"""Batched decoding of many reports: long ones first, finished ones replaced, the caller's order
restored.

    order (longest source first) -> shares of the ranks -> engine -> outputs as they end

Engines: torch (fast_decode.py + search.py, the default), hf (transformers' `generate`: the
reference, and the way for models that the other does not cover), ctranslate2 (optional extra).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from collation import collate_padded
from errors import ConfigError
from fast_decode import Cache, Decoder, next_hidden, source_width, why_not
from model import T5Model, evaluating
from search import Search, SearchConfig, make_search
from tokens import Tokens

EngineName = Literal["torch", "hf", "ctranslate2"]
DecodingPrecision = Literal["fp32", "bf16", "fp16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECK_EVERY = {"cpu": 1, "cuda": 8}  # steps between two looks at what has finished: each one waits
REPLACED_SHARE = 1 / 8  # of the places must have finished before they are cleared
SPARE_COLUMNS = 32  # steps between two moves of the cache, at least


@dataclass(frozen=True)
class DecodingConfig(SearchConfig):
    """How, and with what, impressions are decoded."""

    engine: EngineName = "torch"
    """torch = own decoder with caches; hf = transformers' generate (the reference); ctranslate2 =
    that library (extra "ct2"; CPU; greedy or beams)."""
    precision: DecodingPrecision = "fp32"
    """fp32 = the exact outputs; bf16, fp16 (and int8 with ctranslate2) are faster and differ in a
    few."""
    batch_size: int = 0
    """Reports decoded together by one process; 0 = what fits into cache_mib, at most 256."""
    cache_mib: int = 2048
    """Memory for the keys and values of the reports in flight, in MiB (engine torch, batch_size 0).
    A token takes 24 KiB in T5-small's fp32, half of that in bf16; give large models more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 0 or self.cache_mib < 1:
            raise ConfigError("batch_size must be 0 or more, cache_mib at least 1")
        if self.precision == "int8" and self.engine != "ctranslate2":
            raise ConfigError("precision = int8 needs engine = ctranslate2")


class Output(NamedTuple):
    """One decoded report."""

    report: int  # its index in the caller's order
    ids: list[int]  # without special tokens
    score: float | None  # beams: log-probability / length ** length_penalty
    cut: bool  # ended by max_new_tokens


def generate(
    model: T5Model,
    source: Tokens,
    config: DecodingConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rank: int = 0,
    n_ranks: int = 1,
    progress: str | None = None,
) -> list[Output]:
    """Outputs for every source, in the given order, the same list on every rank.

    `progress` names the bar that rank 0 shows; none = no bar. `tokenizer`: ctranslate2 only.
    """
    groups = list(alike(source, longest_first(source)).values())[rank::n_ranks]
    order = [report for group in groups for report in group]
    bar = tqdm(
        total=len(source.lengths),
        desc=progress,
        unit="report",
        disable=progress is None or rank > 0,
    )
    done: list[Output] = []
    n_tokens = 0
    with bar:
        for output in stream(model, source, order, config, tokenizer=tokenizer):
            done.append(output)
            n_tokens += len(output.ids) * n_ranks
            bar.update(min(n_ranks, bar.total - bar.n))
            elapsed = bar.format_dict["elapsed"]
            if elapsed and bar.n % 16 == 0:
                bar.set_postfix({"tokens/s": f"{n_tokens / elapsed:,.0f}"}, refresh=False)
    if n_ranks > 1:
        done = gather_object(done)
    done.sort(key=lambda output: output.report)
    if [output.report for output in done] != list(range(len(source.lengths))):
        raise RuntimeError("a report was lost or decoded twice while gathering from the ranks")
    return done


def longest_first(source: Tokens) -> list[int]:
    """Indices by falling length, equal lengths in the caller's order."""
    return np.argsort(-source.lengths, kind="stable").tolist()


def alike(source: Tokens, order: Sequence[int]) -> dict[int, list[int]]:
    """The reports in that order, those with the same tokens together under the first of them."""
    firsts: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for report in order:
        first = firsts.setdefault(source.row(report).tobytes(), report)
        groups.setdefault(first, []).append(report)
    return groups


def stream(
    model: T5Model,
    source: Tokens,
    order: Sequence[int],
    config: DecodingConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Output]:
    """Outputs of the sources named in `order`, each as soon as it has ended. Equal reports (a fifth
    of some test sets) are decoded once; with engine = hf, the reference, every one by itself. The
    first output raises ConfigError if the engine cannot do it."""
    if config.engine != "hf":
        groups = alike(source, order)
        for output in _stream(model, source, list(groups), config, tokenizer):
            for report in groups[output.report]:
                yield output._replace(report=report)
    else:
        yield from decode_hf(model, source, order, config)


def _stream(
    model: T5Model,
    source: Tokens,
    order: Sequence[int],
    config: DecodingConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[Output]:
    """Every source decoded by itself; memory does not grow with their number."""
    if config.engine == "ctranslate2":
        import ct2  # slow to import, and an optional extra behind it

        if tokenizer is None:
            raise ValueError("ctranslate2 needs the tokenizer")
        rows = ct2.decode(model, tokenizer, source, order, config, config.precision)
        limit = config.max_new_tokens
        return (Output(report, ids, score, len(ids) >= limit) for report, ids, score in rows)
    if why_not(model):
        return decode_hf(model, source, order, config)
    return decode(Decoder(model, DTYPES[config.precision]), source, order, config)


# --- engine = "torch" -----------------------------------------------------------------------------


@dataclass
class _Run:
    """Places in flight: which report is where, the cache, and the state of the search."""

    decoder: Decoder
    source: Tokens
    config: DecodingConfig
    waiting: list[int]  # indices, the next one last
    cache: Cache = field(init=False)
    search: Search = field(init=False)
    reports: list[int] = field(init=False)  # (P,) index of the report in each place

    def __post_init__(self) -> None:
        config, decoder, longest = self.config, self.decoder, self._length(self.waiting[-1])
        columns = config.max_new_tokens + max(SPARE_COLUMNS, config.max_new_tokens // 4)
        places = n_places(config, source_width(longest), columns, decoder.token_bytes)
        n_runs = -(-len(self.waiting) // places)
        places = -(-len(self.waiting) // n_runs)  # where all end together, no small batch is left
        lengths = [self._length(index) for index in reversed(self.waiting[-places:])]
        self.cache = Cache(decoder, lengths, config.num_beams, columns)
        settings = decoder.config
        self.search = make_search(
            config, places, columns, settings.eos_token_id, settings.pad_token_id, decoder.device
        )
        self.reports = [-1] * places
        self.ids = torch.empty(0)
        self._fill(list(range(places)))

    def _indices(self, places: list[int]) -> torch.Tensor:
        return torch.tensor(places, dtype=torch.long, device=self.decoder.device)

    def _length(self, index: int) -> int:
        return int(self.source.lengths[index])

    def _fill(self, free: list[int]) -> None:
        """The next reports into free places."""
        for place in free:
            self.reports[place] = self.waiting.pop()
        self.cache.put(free, [self.source.row(self.reports[place]) for place in free])
        places = self._indices(free)
        self.search.begin(places)
        width = self.config.num_beams
        start = self.decoder.config.decoder_start_token_id
        if len(free) == len(self.reports):
            self.ids = torch.full((len(free) * width,), start, device=self.decoder.device)
        self.ids.view(-1, width)[places] = start

    def step(self) -> None:
        """One more token in every place."""
        cache, column = self.cache, self.cache.column
        hidden = next_hidden(cache, self.ids)
        age, vocabulary = column - cache.first, self.decoder.vocabulary
        self.ids, past = self.search.advance(hidden, vocabulary, age, column)
        if past is not None:
            cache.reorder(past)

    def clear(self, finished: list[int]) -> list[Output]:
        """Take the outputs out of finished places, and put waiting reports there, or close them.
        Where all have finished all are closed: a new run fits the next sources better."""
        outputs = self._outputs(finished)
        if len(finished) == len(self.reports):
            self.reports = []
            return outputs
        gone = set(finished[len(self.waiting) :])  # more places than reports that wait
        if gone:
            kept = [place for place in range(len(self.reports)) if place not in gone]
            self._keep(kept)
            finished = [i for i, place in enumerate(kept) if place in set(finished)]
        if self.cache.full:
            if finished:
                self.cache.release(finished)
            self.search.shift(self.cache.forget())
        if finished:
            self._fill(finished)
            self.cache.narrow([self._length(report) for report in self.reports])
        return outputs

    def _outputs(self, finished: list[int]) -> list[Output]:
        places = self._indices(finished)
        limit = self.config.max_new_tokens
        results = self.search.results(places, self.cache.first[places])
        return [
            Output(self.reports[place], ids, score, cut=len(ids) >= limit)
            for place, (ids, score) in zip(finished, results, strict=True)
        ]

    def _keep(self, kept: list[int]) -> None:
        places = self._indices(kept)
        self.reports = [self.reports[place] for place in kept]
        self.cache.keep(kept)
        self.search.keep(places)
        self.ids = self.ids.view(-1, self.config.num_beams)[places].view(-1)


def decode(
    decoder: Decoder, source: Tokens, order: Sequence[int], config: DecodingConfig
) -> Iterator[Output]:
    """Decode the sources named in `order`, the longest first, on one process."""
    waiting = sorted(order, key=lambda index: int(source.lengths[index]))  # the next one last
    every, n_steps = CHECK_EVERY[decoder.device.type], 0
    while waiting:
        run = _Run(decoder, source, config, waiting)
        while run.reports:
            run.step()
            n_steps += 1
            if n_steps % every and not run.cache.full:
                continue
            finished = run.search.finished.nonzero()[:, 0].tolist()  # waits for the device
            enough = len(finished) >= max(1, REPLACED_SHARE * len(run.reports))
            if enough or run.cache.full:
                yield from run.clear(finished)


def n_places(config: DecodingConfig, source: int, columns: int, token_bytes: int) -> int:
    """Reports decoded together: by `batch_size`, or by what their caches hold."""
    if config.batch_size:
        return config.batch_size
    place = (source + columns * config.num_beams) * token_bytes
    return max(1, min(256 // config.num_beams, config.cache_mib * 2**20 // place))


# --- engine = "hf" --------------------------------------------------------------------------------


def decode_hf(
    model: T5Model, source: Tokens, order: Sequence[int], config: DecodingConfig
) -> Iterator[Output]:
    """The same by transformers' `generate`, in batches."""
    size = config.batch_size or 32
    dtype = DTYPES[config.precision]
    device = model.device
    cast = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        with evaluating(model), cast():
            rows = _generate_hf(model, [source.row(i) for i in some], config)
        for index, (ids, score) in zip(some, rows, strict=True):
            yield Output(index, ids, score, cut=len(ids) >= config.max_new_tokens)


def _generate_hf(
    model: Any, sources: Sequence[Any], search: SearchConfig
) -> list[tuple[list[int], float | None]]:
    """One padded batch through HF `generate`: ids up to and without end-of-sequence, scores."""
    settings = model.config
    no_labels = [sources[0][:0]] * len(sources)
    batch = collate_padded(list(zip(sources, no_labels, strict=True)), pad_id=settings.pad_token_id)
    beams = search.num_beams > 1
    found = model.generate(
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
        max_new_tokens=search.max_new_tokens,
        min_new_tokens=search.min_new_tokens or None,
        num_beams=search.num_beams,
        no_repeat_ngram_size=search.no_repeat_ngram or None,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=beams,
        **({"length_penalty": search.length_penalty} if beams else {}),
    )
    # Column 0 is the decoder's start token.
    rows = [
        _until(row, settings.eos_token_id, settings.pad_token_id)
        for row in found.sequences[:, 1:].tolist()
    ]
    scores = found.sequences_scores.tolist() if beams else [None] * len(rows)
    return list(zip(rows, scores, strict=True))


def _until(row: list[int], eos_id: int, pad_id: int) -> list[int]:
    end = row.index(eos_id) if eos_id in row else len(row)
    return [token for token in row[:end] if token != pad_id]


def to_text(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Decoded impressions, special tokens (sentinels too) dropped, outer blanks stripped."""
    texts = tokenizer.batch_decode(list(outputs), skip_special_tokens=True)
    return [text.strip() for text in texts]
