"""Where report pairs are read from: the settings, and what they name.

    read_pairs(config, "train")      # all training pairs, of several sources if there are more
    stream_pairs(config, "train")    # the same one by one, for sets larger than memory
    open_source(config, "test")      # found, not read: columns, and a stream of its rows

Training pairs may come from several sources; validation and test pairs are those of `path`, so that
figures stay comparable whatever is added to the training. A weight says how often a source's pairs
are seen in an epoch: 1 = each once, 2 = each twice, 0.5 = half of them, 2.5 = each twice and half
of them a third time. Which half is drawn once, by the seed.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from report2impression.program.errors import ConfigError
from report2impression.program.privacy import for_terminal
from report2impression.reading.options import SourceConfig
from report2impression.reading.pairs import BadRow, Pair, PairTable, Split, open_pairs, split_of


def open_source(config: SourceConfig, split: str) -> PairTable:
    """One split of `config.path`, found but not read (errors as `reading.pairs.open_pairs`)."""
    return open_pairs(config, split, on_bad_row=config.on_bad_row)


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


def tell_skipped(split: str, n_rows: int, skipped: Sequence[BadRow], n_skipped: int) -> None:
    """Name the first bad rows left out (places and reasons, never text)."""
    if n_skipped:
        first = for_terminal("; ".join(f"{bad.where}: {bad.reason}" for bad in skipped[:SHOWN]))
        more = ", ..." if n_skipped > SHOWN else ""
        print(f"{split}: {n_skipped:,} of {n_rows:,} rows skipped ({first}{more})")


def mix(splits: Sequence[Split], weights: Sequence[float], seed: int) -> Split:
    """As `stream_mix`, of splits in memory."""
    rows: list[list[Pair | BadRow]] = [[*split.pairs, *split.skipped] for split in splits]
    streams = [partial(iter, own) for own in rows]
    n_rows = sum(split.n_rows for split in splits)
    return replace(split_of(splits[0].name, stream_mix(streams, weights, seed)), n_rows=n_rows)


def _nothing_left(weight: float, number: int, n_pairs: int) -> ConfigError:
    return ConfigError(
        f"--data.weights: {weight} of source {number} is none of its {n_pairs} pairs; raise it, or "
        "leave the source out"
    )


def stream_mix(
    streams: Sequence[Callable[[], Iterable[Pair | BadRow]]], weights: Sequence[float], seed: int
) -> Iterator[Pair | BadRow]:
    """All sources behind one another; `2:x7` is pair x7 of the second, `2:x7#2` its second copy.
    Each is read once per copy, and only the numbers of drawn pairs are held in memory.

    ConfigError: a weight leaves nothing of its source.
    """
    for number, (stream, weight) in enumerate(zip(streams, weights, strict=True), start=1):
        for row in _stream_weighted(stream, weight, random.Random(f"{seed} {number}"), number):
            if isinstance(row, Pair):
                yield replace(row, id=f"{number}:{row.id}")
            else:
                yield replace(row, where=f"{row.where} of source {number}")


def _stream_weighted(
    stream: Callable[[], Iterable[Pair | BadRow]], weight: float, draw: random.Random, number: int
) -> Iterator[Pair | BadRow]:
    n_whole, n_pairs = int(weight), 0
    for row in stream():
        n_pairs += isinstance(row, Pair)
        if n_whole or isinstance(row, BadRow):
            yield row
    for copy in range(2, n_whole + 1):
        yield from (replace(p, id=f"{p.id}#{copy}") for p in stream() if isinstance(p, Pair))
    n_drawn = round((weight - n_whole) * n_pairs)
    if not n_whole * n_pairs + n_drawn:
        raise _nothing_left(weight, number, n_pairs)
    if n_drawn:
        drawn = set(draw.sample(range(n_pairs), n_drawn))
        mark = f"#{n_whole + 1}" if n_whole else ""
        again = (row for row in stream() if isinstance(row, Pair))
        yield from (replace(p, id=p.id + mark) for i, p in enumerate(again) if i in drawn)


SHOWN = 5  # bad rows of which the place is told


def sample_indices(n_reports: int, n: int, seed: int) -> list[int]:
    """Indices of n reports drawn without replacement, in ascending order; all of them if n is 0
    or too large."""
    if not 0 < n < n_reports:
        return list(range(n_reports))
    return sorted(random.Random(seed).sample(range(n_reports), n))
