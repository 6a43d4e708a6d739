"""Synthetic radiology reports: CT, MR, ultrasound and X-ray findings with their impression.

Synthetic, not clinical, no patient's data: every sentence comes from our grammar, so the reports
may be published, but nothing learnt from them may be used for care. They stand in for
`hejazizo/mimic-iii` (lower case, no punctuation, `____` for removed words) in tests and demos.

The idea: a report is a `Study` plus a few `Finding` rows of the grammar (synthetic_grammar.txt)
with random slots. The findings tell each row in one of several ways, in any order, among normal
statements and trivia. The impression is a function of the findings: major rows in the order of the
table, the first negative that the findings state, then minor rows; each as one fixed phrase with
the same side, size and change.

    python -m report2impression synthetic --output_dir data/synthetic --n_train 4000 --seed 0
"""

import functools
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from jsonargparse import auto_cli

from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.files import write_file
from report2impression.reading.pairs import Pair, json_line

T = TypeVar("T")

SLOTS: dict[str, tuple[str, ...]] = {
    "side": ("left", "right"),
    "amount": ("small", "moderate", "large"),
    "grade": ("mild", "moderate", "severe"),
    "region": ("frontal", "parietal", "temporal", "occipital"),
    "lobe": ("upper lobe", "lower lobe"),
    "pole": ("upper", "mid", "lower"),
    "compartment": ("medial", "lateral"),
    "cervical": ("c3", "c4", "c5", "c6", "c7"),
    "cdisc": ("c3-c4", "c4-c5", "c5-c6", "c6-c7"),
    "lumbar": ("l1", "l2", "l3", "l4", "l5"),
    "disc": ("l2-l3", "l3-l4", "l4-l5", "l5-s1"),
}
# The change leads the impression phrase; the findings tell it at the end of the sentence.
CHANGES: dict[str, tuple[str, ...]] = {
    "": ("",),
    "unchanged": ("unchanged compared to ____", "stable since ____", "not changed from {old}"),
    "new": ("new since the prior study", "which was not seen on ____"),
    "increased": ("increased compared to ____", "which has progressed", "increased from {old}"),
    "decreased": ("decreased compared to ____", "which has improved", "decreased from {old}"),
}
COURSES: dict[str, tuple[str, ...]] = {
    "acute": ("", "", "new"),
    "any": ("", "", "unchanged", "new", "increased", "decreased"),
    "old": ("", "", "unchanged"),
}
COMPARISONS = ("", "", "comparison is made to ____", "the prior study of ____ was reviewed")
ROWS_PER_REPORT = (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4)  # 17 % normal studies
TRIVIA_PER_REPORT = (0, 1, 1, 2)
GRAMMAR = Path(__file__).with_name("synthetic_grammar.txt")
N_TRAIN, N_VALIDATION, N_TEST = 4000, 500, 1000
N_DEFAULT = N_TRAIN + N_VALIDATION + N_TEST
STATED = 0.9  # share of the normal statements that the findings tell


@dataclass(frozen=True)
class Finding:
    """One row: how the findings tell it, and how the impression names it ("" where it does not)."""

    kind: str
    changes: tuple[str, ...]
    topics: tuple[str, ...]
    mm: tuple[int, int] | None
    texts: tuple[str, ...]
    phrase: str


@dataclass(frozen=True)
class Study:
    """The grammar of one group, e.g. `ct head`; rows in order of kind and clinical importance."""

    group: str
    normal: str
    openings: list[str] = field(default_factory=list)
    statements: dict[str, tuple[str, ...]] = field(default_factory=dict)
    negatives: dict[str, str] = field(default_factory=dict)
    rows: list[Finding] = field(default_factory=list)


def _finding(head: Sequence[str], texts: tuple[str, ...], phrase: str) -> Finding:
    kind, course, topics, *sizes = head
    mm = None
    if sizes:
        low, high = sizes[0].split("-")
        mm = int(low), int(high)
    return Finding(kind, COURSES[course], tuple(topics.split("+")), mm, texts, phrase)


@functools.cache
def studies() -> tuple[Study, ...]:
    """The grammar, parsed; every line belongs to the study line above it."""
    parsed: list[Study] = []
    lines = re.sub(r"\n +", " ", GRAMMAR.read_text()).split("\n")
    for line in (line for line in lines if not line.startswith("#")):
        head, _, body = line.partition(": ")
        said, _, phrase = body.partition(" => ")
        texts = tuple(said.split(" | "))
        match head.split():
            case ["study", *group]:
                parsed.append(Study(" ".join(group), body))
            case ["by"]:
                parsed[-1].openings.extend(texts)
            case ["normal", topic]:
                parsed[-1].statements[topic] = texts
                if phrase:
                    parsed[-1].negatives[topic] = phrase
            case [_, *_] as row:
                parsed[-1].rows.append(_finding(row, texts, phrase))
    return tuple(parsed)


# Only `random()` itself is promised to give the same numbers in every version of Python.
def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    return sorted(items, key=lambda _: rng.random())


def _length(mm: int) -> str:
    return f"{mm} mm" if mm < 40 else f"{mm // 10} cm"


def _sizes(rng: random.Random, mm: tuple[int, int], change: str) -> dict[str, str]:
    """The slots of a measured row: length, both dimensions, and the length in the prior study."""
    low, high = mm
    now = low + int(rng.random() * (high - low + 1))
    ratio = {"increased": 0.5 + 0.3 * rng.random(), "decreased": 1.3 + 0.3 * rng.random()}
    before = int(now * ratio.get(change, 1.0) + (change == "decreased"))
    size = _length(now)
    number, unit = size.split()
    width = max(1, int(int(number) * (0.6 + 0.3 * rng.random())))
    dims = _pick(rng, (size, f"{number} x {width} {unit}"))
    return {"size": size, "dims": dims, "old": f"{_length(before)} on ____"}


def _tell(rng: random.Random, row: Finding) -> tuple[str, str]:
    """The row's sentence for the findings and its phrase for the impression, same slots in both."""
    slots = {name: _pick(rng, options) for name, options in SLOTS.items()}
    slots["other"] = "right" if slots["side"] == "left" else "left"
    change = _pick(rng, row.changes)
    if row.mm:
        slots |= _sizes(rng, row.mm, change)
    tails = [tail for tail in CHANGES[change] if row.mm or "{old}" not in tail]
    sentence = f"{_pick(rng, row.texts)} {_pick(rng, tails)}".strip().format(**slots)
    return sentence, f"{change} {row.phrase}".strip().format(**slots)


def _choose(rng: random.Random, study: Study) -> list[Finding]:
    """Some rows without a common first topic, in the order of the grammar."""
    n_rows, n_trivia = _pick(rng, ROWS_PER_REPORT), _pick(rng, TRIVIA_PER_REPORT)
    by_topic = {row.topics[0]: row for row in _shuffled(rng, study.rows)}
    told = [row for row in by_topic.values() if row.kind != "trivial"][:n_rows]
    trivia = [row for row in by_topic.values() if row.kind == "trivial"][:n_trivia]
    return sorted(told + trivia, key=study.rows.index)


def _impression(study: Study, told: Sequence[tuple[Finding, str]], stated: Sequence[str]) -> str:
    """Major rows, the first stated negative, minor rows; numbered where there are several."""
    major = [phrase for row, phrase in told if row.kind == "major"]
    minor = [phrase for row, phrase in told if row.kind == "minor"]
    if not major and not minor:
        return study.normal
    negatives = [phrase for topic, phrase in study.negatives.items() if topic in stated]
    items = major + negatives[:1] + minor
    if len(items) == 1:
        return items[0]
    return " ".join(f"{number} {item}" for number, item in enumerate(items, start=1))


def _report(rng: random.Random) -> tuple[str, str, str]:
    """Prompt, impression and group of one random report."""
    study = _pick(rng, studies())
    rows = _choose(rng, study)
    silenced = {topic for row in rows for topic in row.topics}
    normal = {
        topic: _pick(rng, texts)
        for topic, texts in study.statements.items()
        if rng.random() < STATED and topic not in silenced
    }
    told = [(row, *_tell(rng, row)) for row in rows]
    sentences = _shuffled(rng, [*normal.values(), *(sentence for _, sentence, _ in told)])
    opening = f"{_pick(rng, study.openings)} {_pick(rng, COMPARISONS)}".strip()
    impression = _impression(study, [(row, phrase) for row, _, phrase in told], list(normal))
    return " ".join([opening, *sentences]), impression, study.group


def generate(n: int, seed: int = 0, without: Collection[str] = ()) -> list[Pair]:
    """The first `n` reports of `seed`, no prompt twice and none of those in `without`; same seed,
    same reports on any machine."""
    rng = random.Random(seed)
    reports: dict[str, Pair] = {}
    while len(reports) < n:
        prompt, impression, group = _report(rng)
        if prompt not in reports and prompt not in without:
            name = f"synthetic-{len(reports):06d}"
            reports[prompt] = Pair(name, prompt, impression, group)
    return list(reports.values())


def write_splits(
    output_dir: str | Path,
    n_train: int = N_TRAIN,
    n_validation: int = N_VALIDATION,
    n_test: int = N_TEST,
    seed: int = 0,
    without_seeds: tuple[int, ...] = (),
) -> None:
    """Write {train,validation,test}.jsonl of synthetic reports; no prompt stands in two splits.

    Args:
        output_dir: Folder for the three files, made where it is missing.
        n_train: Number of reports in train.jsonl.
        n_validation: Number of reports in validation.jsonl.
        n_test: Number of reports in test.jsonl.
        seed: Seed of the generator.
        without_seeds: No report may be one that another call, with one of these seeds and the
            numbers as they stand above, writes: to pre-train on this, and test on that.

    Raises:
        ConfigError: a number below 1, or a folder that cannot be written.
    """
    sizes = {"train": n_train, "validation": n_validation, "test": n_test}
    for split, size in sizes.items():
        if size < 1:
            raise ConfigError(f"--n_{split} is {size}; ask for 1 report or more")
    elsewhere = {r.prompt for other in without_seeds for r in generate(N_DEFAULT, other)}
    reports = iter(generate(sum(sizes.values()), seed, elsewhere))
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, size in sizes.items():
            lines = "".join(map(json_line, islice(reports, size)))
            write_file(folder / f"{split}.jsonl", lines.encode())
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot write {folder}: {reason}; choose another --output_dir"
        ) from error
    counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
    print(f"wrote {counts} synthetic reports (no patient's data, not clinical) to {folder}")


@exits_cleanly
def main() -> None:
    """The command line of `write_splits`."""
    auto_cli(write_splits, as_positional=False)


if __name__ == "__main__":
    main()
