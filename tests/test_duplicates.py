"""Exact and near duplicates of training reports, against comparing each with each."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report2impression.corpora.synthetic import generate
from report2impression.scoring.duplicates import (
    N_WORDS,
    NEAR,
    STATUSES,
    normalised,
    statuses,
)

# The definitions, pair by pair: what the search on arrays must agree with.


def shingles(text: str) -> set[str]:
    """All runs of 3 words of a normalised text; a shorter text is one shingle."""
    words = text.split()
    n = min(N_WORDS, max(len(words), 1))
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlap(a: set[str], b: set[str]) -> float:
    """Jaccard: shared elements over all elements; 1 where both are empty."""
    return len(a & b) / len(a | b) if a or b else 1.0


REPORT = (
    "the lungs are clear there is no pleural effusion or pneumothorax the heart is not enlarged "
    "the mediastinum is within normal limits no fracture is seen the bowel gas pattern is normal"
)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (REPORT, "exact"),
        (REPORT.upper().replace(" ", "\n ") + ".", "exact"),
        (REPORT.replace("heart", "aorta"), "near"),
        (REPORT + " as before", "near"),
        (REPORT.replace("no ", "a "), "new"),
        ("liver is normal", "new"),
        ("", "new"),
        ("...", "new"),
    ],
)
def test_status_of_a_report(text, status):
    assert statuses([text], [REPORT, "another report"]) == [status]


def test_nothing_is_known_of_an_empty_training_split():
    assert statuses(["a", "b"], []) == ["new", "new"] and statuses([], ["a"]) == []


def test_an_empty_report_is_a_duplicate_of_an_empty_one_only():
    assert statuses(["", "a"], ["."]) == ["exact", "new"]


def test_short_texts_are_one_shingle():
    assert shingles("a b") == {"a b"} and shingles("a b c d") == {"a b c", "b c d"}
    assert overlap(set(), set()) == 1.0 and overlap({"a", "b"}, {"b", "c"}) == 1 / 3


def altered(rng: random.Random, text: str) -> str:
    words = text.split()
    for _ in range(rng.randrange(5)):
        words[rng.randrange(len(words))] = rng.choice(["left", "right", "no", "small"])
    return " ".join(words)


def test_statuses_are_those_of_comparing_each_with_each():
    """Near ones are never called so wrongly; at the threshold at most one in fifty is missed."""
    rng = random.Random(4)
    train = [report.prompt for report in generate(150, 0)]
    texts = [altered(rng, rng.choice(train)) for _ in range(250)]
    known = [normalised(text) for text in train]
    expected = []
    for text in map(normalised, texts):
        best = max(overlap(shingles(text), shingles(other)) for other in known)
        expected.append("exact" if text in known else "near" if best >= NEAR else "new")
    found = statuses(texts, train)
    assert all(expected.count(status) > 20 for status in STATUSES)
    pairs = list(zip(found, expected, strict=True))
    assert all(mine == theirs or (mine, theirs) == ("new", "near") for mine, theirs in pairs)
    assert sum(mine != theirs for mine, theirs in pairs) <= expected.count("near") / 50
    assert statuses(texts, reversed(train)) == found


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)
