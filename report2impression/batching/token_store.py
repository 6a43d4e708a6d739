"""Report pairs -> token ids on disk, in two passes over the source and in constant memory.

    survey      what is there: a digest of every id and text, counts, bad rows
    tokenised   the ids of that survey, mapped from a folder named by content: they are made there
                in a second pass, unless they are there already

The name of the folder is a hash of the digest, the tokenizer and how texts are cut, so a changed
source never meets old ids. Token ids are report text in another spelling: see mapped.py for who
may read them.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from report2impression.batching.mapped import (
    Arrays,
    Growing,
    GrowingRows,
    Strings,
    arrays_of,
    encode,
)
from report2impression.batching.tokens import (
    CHUNK,
    Around,
    Tokeniser,
    Tokens,
    chunks,
    in_threads,
    tokenizer_digest,
)
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.pairs import BadRow, Pair
from report2impression.reading.sources import SHOWN

FORMAT = "5"  # raise when the meaning of a stored folder changes
NAMES, IMPRESSIONS = "names", "impressions"
COUNTS = ("n_truncated", "n_unknown")  # of each side: fields of its `Tokens`

PairStream = Callable[[], Iterable[Pair | BadRow]]  # from the first row at every call
T = TypeVar("T")


class Survey(NamedTuple):
    """What one pass over a split found."""

    split: str
    digest: str  # SHA-256 over every id and text, in order
    n_pairs: int
    n_skipped: int
    first_skipped: list[BadRow]

    @property
    def n_rows(self) -> int:
        return self.n_pairs + self.n_skipped


@dataclass(frozen=True)
class Side:
    """Which text of a pair becomes a row of ids, and how."""

    name: str
    fields: tuple[str, ...]
    max_tokens: int
    before: str = ""
    between: str = ""
    after: str = ""
    around: Around = "source"

    def text(self, pair: Pair) -> str:
        text = self.between.join(getattr(pair, field) for field in self.fields)
        return f"{self.before}{text}{self.after}"


class Stored(NamedTuple):
    """A split on disk, mapped; impressions are empty unless they were asked for."""

    ids: Strings
    impressions: Strings
    sides: dict[str, Tokens]


class Fingerprint:
    """SHA-256 over every id and text of the pairs that went through."""

    def __init__(self) -> None:
        self.total = hashlib.sha256()

    def passing(self, pairs: Iterable[T]) -> Iterator[T]:
        for pair in pairs:
            if isinstance(pair, Pair):
                for text in (pair.id, pair.prompt, pair.impression):
                    self.total.update(_with_length(text))
            yield pair

    def digest(self) -> str:
        return self.total.hexdigest()


def survey(split: str, stream: PairStream) -> Survey:
    """The first pass. Raises DataError if there is no pair, and what the stream raises."""
    fingerprint = Fingerprint()
    n_pairs, n_skipped, first_skipped = 0, 0, []
    for row in _shown(fingerprint.passing(stream()), f"reading {split}", None):
        if isinstance(row, Pair):
            n_pairs += 1
            continue
        n_skipped += 1
        if n_skipped <= SHOWN:
            first_skipped.append(row)
    if not n_pairs:
        raise DataError(f"split {split} has no rows that can be used")
    return Survey(split, fingerprint.digest(), n_pairs, n_skipped, first_skipped)


def tokenised(
    found: Survey,
    stream: PairStream,
    sides: Sequence[Side],
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str,
    keep_impressions: bool = False,
) -> Stored:
    """The surveyed pairs, each side cut into ids (as `tokens.tokenise`) once per content.

    Raises ConfigError if the folder cannot be used, DataError if the source is not what it was.
    """
    parts = (FORMAT, found.digest, tokenizer_digest(tokenizer), *map(astuple, sides))
    key = hashlib.sha256(repr((*parts, keep_impressions)).encode()).hexdigest()
    cache = Path(folder).expanduser()
    fill = partial(_fill, found, stream, sides, tokenizer, keep_impressions)
    try:
        arrays = arrays_of(cache / key, layout(sides), fill)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ConfigError(
            f"cannot keep tokenised data in {cache}: {reason} (--data.cache_dir)"
        ) from None
    return opened(arrays, sides)


def layout(sides: Sequence[Side]) -> dict[str, DTypeLike]:
    """The arrays of a stored split."""
    rows = _rows(sides)
    values = {f"{name}.values": dtype for name, dtype in rows.items()}
    counts = dict.fromkeys(COUNTS, np.int64)
    return {**counts, **values, **{f"{name}.offsets": np.int64 for name in rows}}


def growing_rows(arrays: Mapping[str, Growing], sides: Sequence[Side]) -> dict[str, GrowingRows]:
    """The same arrays while they are written."""
    return {n: GrowingRows(arrays[f"{n}.values"], arrays[f"{n}.offsets"]) for n in _rows(sides)}


def opened(arrays: Arrays, sides: Sequence[Side]) -> Stored:
    """The same arrays, read."""
    rows = {n: (arrays[f"{n}.values"], arrays[f"{n}.offsets"]) for n in _rows(sides)}
    counts = zip(sides, *(arrays[name].tolist() for name in COUNTS), strict=True)
    cut = {side.name: Tokens(*rows[side.name], *numbers) for side, *numbers in counts}
    return Stored(Strings(*rows[NAMES]), Strings(*rows[IMPRESSIONS]), cut)


def _rows(sides: Sequence[Side]) -> dict[str, DTypeLike]:
    """What has a row for each pair, and of what its rows are made."""
    return {NAMES: np.uint8, IMPRESSIONS: np.uint8, **{side.name: np.int32 for side in sides}}


def _fill(
    found: Survey,
    stream: PairStream,
    sides: Sequence[Side],
    tokenizer: PreTrainedTokenizerBase,
    keep_impressions: bool,
    arrays: Mapping[str, Growing],
) -> None:
    """The second pass."""
    fingerprint, tokeniser = Fingerprint(), Tokeniser(tokenizer)
    rows = growing_rows(arrays, sides)
    counts = {name: np.zeros(len(sides), dtype=np.int64) for name in COUNTS}

    def cut(pairs: list[Pair]) -> tuple[list[Pair], list[Tokens]]:
        return pairs, [
            tokeniser([*map(side.text, pairs)], max_tokens=side.max_tokens, around=side.around)
            for side in sides
        ]

    seen = _shown(fingerprint.passing(stream()), f"tokenising {found.split}", found.n_rows)
    pairs = (row for row in seen if isinstance(row, Pair))
    for read, parts in in_threads(cut, chunks(pairs, CHUNK)):
        rows[NAMES].append(*encode([pair.id for pair in read]))
        if keep_impressions:
            rows[IMPRESSIONS].append(*encode([pair.impression for pair in read]))
        for side, part in zip(sides, parts, strict=True):
            rows[side.name].append(part.ids, part.lengths)
        for name, total in counts.items():
            total += [getattr(part, name) for part in parts]
    for name, total in counts.items():
        arrays[name].append(total)
    if fingerprint.digest() != found.digest:
        raise DataError(
            f"split {found.split} changed while it was being read: run the same command again"
        )


def _shown(rows: Iterable[T], what: str, total: int | None) -> Iterable[T]:
    """Counted on a terminal, where it takes longer than a glance."""
    return tqdm(
        rows, what, total, unit=" rows", unit_scale=True, delay=3, disable=None, leave=False
    )


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of all texts and their limits."""
    total = hashlib.sha256()
    for text in texts:
        total.update(_with_length(text))
    return total.hexdigest()


def _with_length(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "little") + data
