"""Several sources of training pairs as one, each with a weight.

A weight says how often a source's pairs are seen in an epoch: 1 = each once, 2 = each twice, 0.5 =
half of them, 2.5 = each twice and half of them a third time. Which half is drawn once, by the seed.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from corpus.pairs import BadRow, Pair, Split
from errors import ConfigError


def mix(splits: Sequence[Split], weights: Sequence[float], seed: int) -> Split:
    """All sources behind one another; `2:x7` is pair x7 of the second, `2:x7#2` its second copy.

    ConfigError: a weight leaves nothing of its source.
    """
    pairs: list[Pair] = []
    skipped: list[BadRow] = []
    for number, (split, weight) in enumerate(zip(splits, weights, strict=True), start=1):
        chosen = _weighted(split.pairs, weight, random.Random(f"{seed} {number}"))
        if not chosen:
            raise ConfigError(
                f"--data.weights: {weight} of source {number} is none of its {len(split.pairs)} "
                "pairs; raise it, or leave the source out"
            )
        pairs += [replace(pair, id=f"{number}:{pair.id}") for pair in chosen]
        skipped += [replace(bad, where=f"{bad.where} of source {number}") for bad in split.skipped]
    return Split(splits[0].name, pairs, sum(split.n_rows for split in splits), skipped)


def _weighted(pairs: Sequence[Pair], weight: float, draw: random.Random) -> list[Pair]:
    n_whole = int(weight)
    n_drawn = round((weight - n_whole) * len(pairs))
    copies = [replace(p, id=f"{p.id}#{n}") for n in range(2, n_whole + 1) for p in pairs]
    drawn = [pairs[i] for i in sorted(draw.sample(range(len(pairs)), n_drawn))]
    if n_whole:
        drawn = [replace(p, id=f"{p.id}#{n_whole + 1}") for p in drawn]
    return [*(pairs if n_whole else []), *copies, *drawn]
