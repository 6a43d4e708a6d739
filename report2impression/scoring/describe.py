"""What outputs look like, whatever their score: length, copying, loops, and into which part of the
test set each report falls. Figures only: no function here returns text.

Words are runs of letters, digits and underscores in lower case.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from report2impression.scoring.duplicates import STATUSES, normalised, statuses
from report2impression.scoring.placeholders import replaced

Strata = dict[str, NDArray[np.int64]]  # name of a part -> indices of its reports
NO_GROUP = "no group"
LOOP_TIMES, LOOP_WORDS = 4, 8  # a loop: up to 8 words that follow themselves so often


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def describe(outputs: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """Length in words, percent of words taken from the source and of pairs of words that are not
    in it (over all outputs, not the mean of reports), empty outputs and those equal to the
    source."""
    lengths, n_copied, n_pairs, n_new = [], 0, 0, 0
    for output, source in zip(outputs, sources, strict=True):
        mine, given = words(output), words(source)
        pairs, known = list(zip(mine, mine[1:], strict=False)), set(given)
        given_pairs = set(zip(given, given[1:], strict=False))
        lengths.append(len(mine))
        n_copied += sum(word in known for word in mine)
        n_pairs += len(pairs)
        n_new += sum(pair not in given_pairs for pair in pairs)
    return {
        "words_mean": float(np.mean(lengths)),
        "words_median": float(np.median(lengths)),
        "copy_rate": 100 * n_copied / max(sum(lengths), 1),
        "novel_bigrams": 100 * n_new / max(n_pairs, 1),
        "empty": sum(not output.strip() for output in outputs),
        "equal_to_source": n_equal(outputs, sources),
    }


def n_equal(outputs: Sequence[str], sources: Sequence[str]) -> int:
    """Outputs that repeat their source, case and punctuation aside; empty ones are counted as
    empty instead."""
    pairs = ((normalised(a), normalised(b)) for a, b in zip(outputs, sources, strict=True))
    return sum(bool(a) and a == b for a, b in pairs)


def loops(text: str) -> bool:
    """Whether some 1 to 8 words follow themselves until they stand there 4 times. Placeholders are
    let pass: reports do have many in a row."""
    mine = words(replaced(text))
    for n in range(1, LOOP_WORDS + 1):
        run = 0
        for word, before in zip(mine[n:], mine, strict=False):
            run = run + 1 if word == before and word.strip("_") else 0
            if run == n * (LOOP_TIMES - 1):
                return True
    return False


def by_group(groups: Sequence[str | None]) -> Strata:
    """Indices per group in the order of their size; nothing where no report names its group."""
    names = [group or NO_GROUP for group in groups]
    if set(names) <= {NO_GROUP}:
        return {}
    return _indices(names, sorted(set(names), key=lambda name: (-names.count(name), name)))


def by_length(sources: Sequence[str]) -> Strata:
    """Quartiles of the sources' words, named by the lengths that they hold; equal lengths stay
    together, so there may be fewer than four."""
    lengths = np.array([len(words(source)) for source in sources])
    quarter = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths)
    parts = [np.flatnonzero(quarter == i) for i in range(4)]
    return {
        f"{lengths[part].min()} to {lengths[part].max()} words": part for part in parts if len(part)
    }


def by_training(
    sources: Sequence[str], references: Sequence[str], train: Sequence[tuple[str, str]]
) -> dict[str, Strata]:
    """ "duplicates": is the findings' text in training, exactly, nearly or not; "reference": does
    some training report have this very impression (case and punctuation aside)?"""
    known = {normalised(impression) for _, impression in train}
    seen = ["seen in training" if normalised(text) in known else "new" for text in references]
    return {
        "duplicates": _indices(statuses(sources, (prompt for prompt, _ in train)), STATUSES),
        "reference": _indices(seen, ("seen in training", "new")),
    }


def _indices(names: Sequence[str], order: Sequence[str]) -> Strata:
    every = np.array(names)
    return {name: found for name in order if len(found := np.flatnonzero(every == name))}
