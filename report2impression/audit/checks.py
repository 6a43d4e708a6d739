"""What may be wrong with report pairs, as flags: one row of flags per check and split.

    flags = run_checks(prepare(splits))  # {"same_text": {"train": (B,) bool, ...}, ...}

Texts are compared in lower case, without punctuation (`scoring.duplicates.normalised`). A check
that looks at other splits flags the pair on both sides. No figure here holds report text.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from report2impression.reading.pairs import Pair, Split
from report2impression.scoring import placeholders
from report2impression.scoring.duplicates import near, normalised

Bools = NDArray[np.bool_]
Flags = dict[str, dict[str, Bools]]  # check -> split -> which pairs, (B,)

SHORTEST_COPY = 3  # words; "no change" stands in many inputs by chance
BOILERPLATE_WORDS = 10
BOILERPLATE = re.compile(
    r"(?:(?:chest|there is|the|1) )*(?:"
    r"no (?:radiographic |ct |definite )*(?:evidence |sign |signs )?(?:of |for )?(?:an |any )?"
    r"(?:acute|active|significant|focal)\b"
    r"|(?:essentially |within )?normal\b|unremarkable\b|negative\b|(?:the )?clear lungs?\b"
    r"|lungs? (?:are |is )?clear\b)"
)


@dataclass(frozen=True)
class Texts:
    """A split and its texts in normal form."""

    split: Split
    inputs: list[str]
    targets: list[str]

    @property
    def pairs(self) -> list[Pair]:
        return self.split.pairs


def prepare(splits: Sequence[Split]) -> list[Texts]:
    return [
        Texts(
            split,
            [normalised(pair.prompt) for pair in split.pairs],
            [normalised(pair.impression) for pair in split.pairs],
        )
        for split in splits
    ]


def run_checks(splits: Sequence[Texts]) -> Flags:
    """All checks that need no tokenizer."""
    flags: Flags = {}
    for name, test in ONE_PAIR.items():
        flags[name] = {
            x.split.name: _array(
                test(p, i, t) for p, i, t in zip(x.pairs, x.inputs, x.targets, strict=True)
            )
            for x in splits
        }
    flags["shared_input"] = _shared(splits, [x.inputs for x in splits])
    flags["shared_patient"] = _shared(splits, [[p.patient for p in x.pairs] for x in splits])
    flags["repeated_pair"] = {
        x.split.name: _repeats(list(zip(x.inputs, x.targets, strict=True))) for x in splits
    }
    flags["repeated_id"] = _not_unique(splits)
    flags["other_target"] = _other_target(splits)
    flags["new_group"] = _new_group(splits)
    flags |= _near(splits, flags)
    return flags


def is_boilerplate(target: str) -> bool:
    """Whether a normalised target is short and says no more than that nothing is wrong."""
    return target.count(" ") < BOILERPLATE_WORDS and bool(BOILERPLATE.match(target))


def _contained(_: Pair, source: str, target: str) -> bool:
    long_enough = target.count(" ") + 1 >= SHORTEST_COPY
    return long_enough and source != target and f" {target} " in f" {source} "


ONE_PAIR: dict[str, Callable[[Pair, str, str], bool]] = {
    "same_text": lambda _, source, target: bool(source) and source == target,
    "contained": _contained,
    "short_input": lambda _, source, target: source.count(" ") < target.count(" "),
    "boilerplate": lambda _, source, target: is_boilerplate(target),
    "placeholder_input": lambda pair, *_: placeholders.has(pair.prompt),
    "placeholder_target": lambda pair, *_: placeholders.has(pair.impression),
}


def _array(values: Iterable[bool]) -> Bools:
    return np.fromiter(values, bool)


def _shared(splits: Sequence[Texts], keys: Sequence[Sequence[str]]) -> dict[str, Bools]:
    """Whether the key of a pair is one of another split; "" is no key."""
    sets = [set(own) for own in keys]
    n_splits = Counter(key for own in sets for key in own if key)
    return {
        x.split.name: _array(n_splits[key] > 1 for key in own)
        for x, own in zip(splits, keys, strict=True)
    }


def _repeats(keys: Sequence[object]) -> Bools:
    """Whether a key was there before."""
    first: dict[object, int] = {}
    return _array(first.setdefault(key, place) != place for place, key in enumerate(keys))


def _not_unique(splits: Sequence[Texts]) -> dict[str, Bools]:
    counts = Counter(pair.id for x in splits for pair in x.pairs)
    return {x.split.name: _array(counts[pair.id] > 1 for pair in x.pairs) for x in splits}


def _other_target(splits: Sequence[Texts]) -> dict[str, Bools]:
    targets: defaultdict[str, set[str]] = defaultdict(set)
    for x in splits:
        for source, target in zip(x.inputs, x.targets, strict=True):
            targets[source].add(target)
    return {x.split.name: _array(len(targets[source]) > 1 for source in x.inputs) for x in splits}


def _new_group(splits: Sequence[Texts]) -> dict[str, Bools]:
    trained = {pair.group for x in splits if x.split.name == "train" for pair in x.pairs}
    trained.add("")
    known = len(trained) > 1  # else no training pair names its group
    return {
        x.split.name: _array(known and pair.group not in trained for pair in x.pairs)
        for x in splits
    }


def _near(splits: Sequence[Texts], flags: Flags) -> Flags:
    """Each different input of each split once; one that is shared word for word is not also near
    shared."""
    texts: list[str] = []
    places: list[int] = []
    for place, x in enumerate(splits):
        own = list(dict.fromkeys(text for text in x.inputs if text))
        texts += own
        places += [place] * len(own)
    # An input of two splits stands here twice, and so would be near itself: the exact check knows.
    found = near(texts, np.array(places, np.int64), len(splits))
    row = {key: index for index, key in enumerate(zip(texts, places, strict=True))}
    within, across = {}, {}
    for place, x in enumerate(splits):
        others = [i for i in range(len(splits)) if i != place]
        none = np.zeros(len(splits), bool)
        of_pair = [found[row[text, place]] if text else none for text in x.inputs]
        table = np.array(of_pair, bool).reshape(-1, len(splits))
        within[x.split.name] = table[:, place]
        across[x.split.name] = table[:, others].any(axis=1) & ~flags["shared_input"][x.split.name]
    return {"near_repeated": within, "near_shared": across}
