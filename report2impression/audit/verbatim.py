"""The longest runs of words that texts share, exactly and in bounded memory.

All positions grow together, one word at a time: a run of n + 1 words is (the class of its first n
words, the next word), and the classes are numbered anew at every n among the texts asked about.
Positions of the known texts that match nobody fall out at once, so the arrays shrink fast; there
is no hash, hence nothing to verify. Compared by test with a search through all runs.

Q words of the texts asked about, K words of the known ones.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
END = -1  # after the last word of each text


class Words(NamedTuple):
    """Texts as one array of word numbers, END after each, and the number of each word's text."""

    ids: Ids
    text: Ids


def numbered(texts: Iterable[Sequence[str]], numbers: dict[str, int]) -> Words:
    """Texts (as words) by number; new words are added to `numbers`."""
    ids: list[int] = []
    lengths: list[int] = []
    for words in texts:
        ids += [numbers.setdefault(word, len(numbers)) for word in words]
        ids.append(END)
        lengths.append(len(words) + 1)
    return Words(np.array(ids, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths))


def longest_runs(asked: Words, known: Words, *, own: bool = False) -> Ids:
    """For each place in `asked` (Q,): words of the longest run from there that `known` holds, too.

    own: text i is compared with known text i only.
    """
    size = 1 + max(int(words.ids.max(initial=0)) for words in (asked, known))
    longest = np.zeros(len(asked.ids), dtype=np.int64)
    mine, theirs = (np.flatnonzero(words.ids != END) for words in (asked, known))
    classes = [
        w.text[at] if own else np.zeros_like(at)
        for w, at in zip((asked, known), (mine, theirs), strict=True)
    ]
    n = 0
    while len(mine) and len(theirs):
        keys = [
            own_class * size + words.ids[at + n]
            for own_class, words, at in zip(classes, (asked, known), (mine, theirs), strict=True)
        ]
        names, my_class = np.unique(keys[0], return_inverse=True)
        places = np.minimum(np.searchsorted(names, keys[1]), len(names) - 1)
        hit = names[places] == keys[1]
        theirs, their_class = theirs[hit], places[hit]
        found = np.zeros(len(names), dtype=bool)
        found[their_class] = True
        still = found[my_class]
        mine, my_class = mine[still], my_class[still]
        n += 1
        longest[mine] = n
        goes_on = [
            w.ids[at + n] != END for w, at in zip((asked, known), (mine, theirs), strict=True)
        ]
        mine, theirs = mine[goes_on[0]], theirs[goes_on[1]]
        classes = [my_class[goes_on[0]], their_class[goes_on[1]]]
    return longest


def longest_memorised(
    outputs: Sequence[Sequence[str]],
    sources: Sequence[Sequence[str]],
    known: Sequence[Sequence[str]],
) -> list[tuple[int, int]]:
    """(start, words) in each output of its longest run that a known text holds and its own source
    does not; (0, 0) if there is none. What stands in the input is copied, not remembered."""
    numbers: dict[str, int] = {}
    asked = numbered(outputs, numbers)
    from_source = longest_runs(asked, numbered(sources, numbers), own=True)
    runs = longest_runs(asked, numbered(known, numbers))
    runs[runs <= from_source] = 0
    best: list[tuple[int, int]] = []
    start = 0
    for words in outputs:
        part = runs[start : start + len(words)]
        place = int(part.argmax()) if len(part) else 0
        best.append((place, int(part[place])) if len(part) and part[place] else (0, 0))
        start += len(words) + 1
    return best
