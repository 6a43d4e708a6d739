"""Texts -> token ids in one flat array.

N tokens of B texts. `tokenise` is for texts in memory; token_store.py does the same for streams of
any length and keeps the result on disk.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from os import sched_getaffinity
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from report2impression.batching.signs import kept_apart, merges_digits
from report2impression.program.process import in_order

CHUNK = 500  # texts: enough work for one call of the tokenizer, little to hold in memory
MAX_THREADS = 8  # the tokenizer works outside Python's lock; what goes on inside it feeds no more

# What stands around the ids of a text: as a source, the tokenizer's own special tokens (those that
# transformers alone would add); as a label, end-of-sequence behind it, whatever the tokenizer does.
Around = Literal["source", "label", "nothing"]

T = TypeVar("T")
U = TypeVar("U")


class Tokens(NamedTuple):
    """Texts as one array: ids int32 (N,), offsets int64 (B + 1,), how many texts were cut, and how
    many of the ids are the unknown token's.

    The arrays may be maps of files: they are read only.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_truncated: int
    n_unknown: int = 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Sequence[int]) -> "Tokens":
        """The texts at the given indices, in that order (what was cut or unknown among them is not
        known)."""
        rows = [self.row(i) for i in indices]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return Tokens(np.concatenate(rows), offsets, 0)


class Tokeniser:
    """Texts -> Tokens by a tokenizer's own batch call, which needs a third of the time of the
    wrapper around it. May be called from several threads.

    No text can hold a special token: a literal "</s>" in a report is four signs like others. Words
    that a user added to the vocabulary are used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()  # a stored tokenizer may come with either
        self.backend.no_padding()
        self.eos_id, self.unknown_id = tokenizer.eos_token_id, tokenizer.unk_token_id
        self.spelled = _special_tokens_spelled(tokenizer)
        self.merges_digits = merges_digits(self.backend)
        end = [self.eos_id]
        self.around: dict[Around, tuple[list[int], list[int]]] = {
            "source": _template(self.backend) or ([], end),
            "label": ([], end),
            "nothing": ([], []),
        }

    def __call__(
        self, texts: Sequence[str], *, max_tokens: int, around: Around = "source"
    ) -> Tokens:
        """Ids of every text, cut to max_tokens (what stands around it included and always kept)."""
        rows: list[list[int]] = []
        before, after = self.around[around]
        room, n_truncated = max(max_tokens - len(before) - len(after), 0), 0
        texts = [*map(kept_apart, texts)] if self.merges_digits else list(texts)
        for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False):
            ids = encoding.ids
            if not self.spelled.keys().isdisjoint(ids):
                ids = [part for i in ids for part in self.spelled.get(i, [i])]
            n_truncated += len(ids) > room
            rows.append(before + ids[:room] + after)
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return Tokens(ids, offsets, n_truncated, int((ids == self.unknown_id).sum()))


def tokenise(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Tokens:
    """As `Tokeniser`, of any number of texts."""
    call = partial(Tokeniser(tokenizer), max_tokens=max_tokens)
    parts = in_threads(call, chunks(texts, CHUNK))
    done = [Tokens(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64), 0), *parts]
    lengths = np.concatenate([part.lengths for part in done])
    return Tokens(
        ids=np.concatenate([part.ids for part in done]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        n_truncated=sum(part.n_truncated for part in done),
        n_unknown=sum(part.n_unknown for part in done),
    )


def _template(backend: Any) -> tuple[list[int], list[int]] | None:
    """Ids of the special tokens that the tokenizer puts before and behind a text, if any."""
    encoding = backend.encode("x")
    own = [not special for special in encoding.special_tokens_mask]
    if not any(own):
        return None
    first, end = own.index(True), len(own) - own[::-1].index(True)
    return (encoding.ids[:first], encoding.ids[end:]) if first or end < len(own) else None


def _special_tokens_spelled(tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """Id of each special token but <unk> -> ids of its letters as text. (`added_tokens_decoder`
    also holds words that a user added: they are not special.)

    The tokenizer's own `split_special_tokens` does not help: the pieces of a T5 vocabulary hold the
    special tokens, too. A blank after the first letter keeps them from being found.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = {*tokenizer.all_special_tokens, *special} - {tokenizer.unk_token}
    ordered = sorted(names)
    texts = [f"{name[0]} {name[1:]}" for name in ordered]
    spelled = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(ordered)
    return {i: encoding.ids for i, encoding in zip(ids, spelled, strict=True)}


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    left = iter(items)
    return iter(lambda: list(islice(left, size)), [])


def in_threads(call: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """call(item) of each, in order, on all cores."""
    n_threads = min(MAX_THREADS, len(sched_getaffinity(0)))
    with ThreadPoolExecutor(n_threads) as pool:
        yield from in_order(pool, call, items, ahead=n_threads)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that decides how a text becomes ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
