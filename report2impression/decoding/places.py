"""engine = "torch": places in flight, cleared and refilled as reports end.

P places, each with W beams; the caches are cache.py's, the search is search.py's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from report2impression.batching.tokens import Tokens
from report2impression.decoding.cache import Cache, Decoder, next_hidden, source_width
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.decoding.search import Search, make_search

CHECK_EVERY = {"cpu": 1, "cuda": 8}  # steps between two looks at what has finished: each one waits
REPLACED_SHARE = 1 / 8  # of the places must have finished before they are cleared
SPARE_COLUMNS = 32  # steps between two moves of the cache, at least


@dataclass
class _Run:
    """Places in flight: which report is where, the cache, and the state of the search."""

    decoder: Decoder
    source: Tokens
    config: DecodingConfig
    waiting: list[int]  # indices, the next one last
    scored: bool
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
        self.search = make_search(
            config, places, columns, decoder.special, decoder.device, scored=self.scored
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
        start = self.decoder.special.start
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
            Output(self.reports[place], ids, score, len(ids) >= limit, confidence)
            for place, (ids, score, confidence) in zip(finished, results, strict=True)
        ]

    def _keep(self, kept: list[int]) -> None:
        places = self._indices(kept)
        self.reports = [self.reports[place] for place in kept]
        self.cache.keep(kept)
        self.search.keep(places)
        self.ids = self.ids.view(-1, self.config.num_beams)[places].view(-1)


def decode(
    decoder: Decoder,
    source: Tokens,
    order: Sequence[int],
    config: DecodingConfig,
    *,
    scored: bool = False,
) -> Iterator[Output]:
    """Decode the sources named in `order`, the longest first, on one process; `scored`: with the
    confidence of each."""
    waiting = sorted(order, key=lambda index: int(source.lengths[index]))  # the next one last
    every, n_steps = CHECK_EVERY[decoder.device.type], 0
    while waiting:
        run = _Run(decoder, source, config, waiting, scored)
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
