"""Which test reports the training split already holds, word for word or nearly.

A score on such reports tells of memory, not of skill, so it is shown apart. "exact": the same words
in the same order (case, punctuation and blanks aside); "near": the sets of 3-word shingles overlap
by at least 0.8 (Jaccard). MinHash-LSH (datasketch; Broder 1997) finds the candidates at a lower
threshold, so that few are missed, and the true overlap decides: no false alarm by hashing.

`near` looks at all texts at once, with the sketches and bands of MinHash-LSH made as numpy arrays:
minutes become seconds. B texts, N shingles of all of them, P = 128 permutations.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATUSES = ("exact", "near", "new")
NEAR = 0.8
CANDIDATE = 0.65  # LSH threshold: at an overlap of 0.8 the miss rate is below 1 %
N_WORDS = 3
N_PERMUTATIONS = 128
MOST_TRIES = 200  # a text is compared with so many others of its bucket; larger buckets are sampled
CHUNK = 200  # texts sketched at once: (20,000, P) of uint32 stay in the cache
PAIRS = 20_000  # pairs whose overlap is counted at once
FACTOR, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def normalised(text: str) -> str:
    """Lower-case words with one blank between; punctuation is left out, placeholders are kept."""
    return " ".join(re.findall(r"\w+", text.lower()))


def statuses(texts: Sequence[str], train: Iterable[str]) -> list[str]:
    """One of STATUSES for each text, against the training split's texts."""
    mine = [normalised(text) for text in texts]
    known = set(map(normalised, train))
    doubtful = [text for text in dict.fromkeys(mine) if text and text not in known]
    both = [*doubtful, *sorted(known - {""})]
    in_training = np.arange(len(both)) >= len(doubtful)
    is_near = near(both, in_training.astype(np.int64), 2)[: len(doubtful), 1]
    found = {text for text, flag in zip(doubtful, is_near, strict=True) if flag}
    return ["exact" if t in known else "near" if t in found else "new" for t in mine]


class _Hashes(dict[str, int]):
    """word -> its CRC-32, computed once; 0 is kept for "no word"."""

    def __missing__(self, word: str) -> int:
        self[word] = value = zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1
        return value


def shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], Ints]:
    """Hashes (N,) of the runs of 3 words of each normalised text, repeats included, and where each
    text starts (B + 1,). A shorter text is one shingle."""
    hashes, lengths, flat = _Hashes(), np.zeros(len(texts), np.int64), []
    for index, text in enumerate(texts):
        words = [hashes[word] for word in text.split()]
        words += [0] * (N_WORDS - len(words))
        lengths[index] = len(words)
        flat.append(np.array(words, np.uint64))
    words_of_all = np.concatenate([*flat, np.zeros(0, np.uint64)])
    runs = np.zeros(max(0, len(words_of_all) - N_WORDS + 1), np.uint64)
    for place in range(N_WORDS):
        runs = runs * FACTOR + words_of_all[place : place + len(runs)]
    runs ^= runs >> np.uint64(31)
    runs *= MIXER
    runs ^= runs >> np.uint64(29)
    ends = np.cumsum(lengths)
    inside = np.ones(len(words_of_all), bool)  # runs over the end of a text are none
    for place in range(1, N_WORDS):
        inside[ends - place] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - N_WORDS + 1)])
    return runs[inside[: len(runs)]], offsets


def sketches(hashes: NDArray[np.uint64], offsets: Ints) -> NDArray[np.uint32]:
    """MinHash of each text, (B, P)."""
    from datasketch import MinHash

    first = MinHash(num_perm=N_PERMUTATIONS, scheme="affine32")
    factors, summands = (np.asarray(part, np.uint32) for part in first.permutations)
    low = (hashes >> np.uint64(32)).astype(np.uint32)
    made = np.empty((len(offsets) - 1, N_PERMUTATIONS), np.uint32)
    for start in range(0, len(made), CHUNK):
        bounds = offsets[start : start + CHUNK + 1]
        part = low[bounds[0] : bounds[-1], None] * factors + summands
        made[start : start + len(bounds) - 1] = np.minimum.reduceat(part, bounds[:-1] - bounds[0])
    return made


def near(texts: Sequence[str], splits: Ints, n_splits: int) -> Bools:
    """Whether each of B different normalised texts is near another text of each split, (B,
    n_splits); `splits` (B,) is the split of each text."""
    found = np.zeros((len(texts), n_splits), bool)
    if len(texts) < 2:
        return found
    hashes, offsets = shingle_hashes(texts)
    sets = _membership(hashes, offsets)
    sizes = np.asarray(sets.sum(axis=1)).ravel()
    for one, other in _candidates(sketches(hashes, offsets)):
        for start in range(0, len(one), PAIRS):  # a pair that can tell nothing new is let go
            a, b = one[start : start + PAIRS], other[start : start + PAIRS]
            open_pairs = ~(found[a, splits[b]] & found[b, splits[a]])
            a, b = a[open_pairs], b[open_pairs]
            shared = np.asarray(sets[a].multiply(sets[b]).sum(axis=1)).ravel()
            is_near = shared >= NEAR * (sizes[a] + sizes[b] - shared)
            found[a[is_near], splits[b[is_near]]] = True
            found[b[is_near], splits[a[is_near]]] = True
    return found


def _membership(hashes: NDArray[np.uint64], offsets: Ints) -> Any:
    """Which shingles each text has, (B, different shingles), of ones."""
    from scipy import sparse  # a second to load

    names, columns = np.unique(hashes, return_inverse=True)
    shape = len(offsets) - 1, len(names)
    parts = np.ones(len(hashes), np.int32), columns, offsets.copy()
    sets = sparse.csr_array(parts, shape=shape)
    sets.sum_duplicates()  # in place, the offsets too
    sets.data[:] = 1
    return sets


def _candidates(signs: NDArray[np.uint32]) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of texts that share a band of their sketches: first the nearest in each bucket, then
    those two places apart, and so on."""
    from datasketch import MinHashLSH

    layout = MinHashLSH(threshold=CANDIDATE, num_perm=N_PERMUTATIONS)
    bands = []
    for band in range(layout.b):
        part = signs[:, band * layout.r : (band + 1) * layout.r].astype(np.uint64)
        key = np.zeros(len(part), np.uint64)
        for column in part.T:
            key = (key ^ column) * FACTOR
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        bands.append((order, key[order]))
    for shift in range(1, MOST_TRIES + 1):
        met = [
            (order[:-shift][same], order[shift:][same])
            for order, keys in bands
            if (same := keys[:-shift] == keys[shift:]).any()
        ]
        if not met:
            return
        yield np.concatenate([a for a, _ in met]), np.concatenate([b for _, b in met])
