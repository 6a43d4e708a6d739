"""Which test reports the training split already holds, word for word or nearly.

A score on such reports tells of memory, not of skill, so it is shown apart. "exact": the same words
in the same order (case, punctuation and blanks aside); "near": the sets of 3-word shingles overlap
by at least 0.8 (Jaccard). MinHash-LSH (datasketch; Broder 1997) finds the candidates at a lower
threshold, so that few are missed, and the true overlap decides: no false alarm by hashing.
"""

import re
import zlib
from collections.abc import Iterable, Sequence

from datasketch import MinHash, MinHashLSH

STATUSES = ("exact", "near", "new")
NEAR = 0.8
CANDIDATE = 0.65  # LSH threshold: at an overlap of 0.8 the miss rate is below 1 %
N_WORDS = 3
N_PERMUTATIONS = 128


def normalised(text: str) -> str:
    """Lower-case words with one blank between; punctuation is left out, placeholders are kept."""
    return " ".join(re.findall(r"\w+", text.lower()))


def shingles(text: str) -> set[str]:
    """All runs of 3 words of a normalised text; a shorter text is one shingle."""
    words = text.split()
    n = min(N_WORDS, max(len(words), 1))
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlap(a: set[str], b: set[str]) -> float:
    """Jaccard: shared elements over all elements; 1 where both are empty."""
    return len(a & b) / len(a | b) if a or b else 1.0


def statuses(texts: Sequence[str], train: Iterable[str]) -> list[str]:
    """One of STATUSES for each text, against the training split's texts."""
    mine = [normalised(text) for text in texts]
    known = set(map(normalised, train))
    doubtful = {text: shingles(text) for text in mine if text and text not in known}
    near = _near(doubtful, sorted(known - {""}))
    return ["exact" if t in known else "near" if t in near else "new" for t in mine]


def _near(doubtful: dict[str, set[str]], known: Sequence[str]) -> set[str]:
    """Those texts that overlap with a known one. The (fewer) test texts are the ones indexed; one
    that has been found is not looked for again."""
    index = MinHashLSH(threshold=CANDIDATE, num_perm=N_PERMUTATIONS)
    for text, sketch in zip(doubtful, _sketches(doubtful.values()), strict=True):
        index.insert(text, sketch)
    found: set[str] = set()
    for text, sketch in zip(known, _sketches(map(shingles, known)), strict=True):
        candidates = [name for name in index.query(sketch) if name not in found]
        mine = shingles(text) if candidates else set()
        found.update(name for name in candidates if overlap(doubtful[name], mine) >= NEAR)
    return found


def _sketches(sets: Iterable[set[str]]) -> Iterable[MinHash]:
    encoded = ([shingle.encode() for shingle in one] for one in sets)
    return MinHash.generator(encoded, num_perm=N_PERMUTATIONS, hashfunc=zlib.crc32)
