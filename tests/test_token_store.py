"""token_store.py: a stream gives what texts in memory give, and no change of anything meets old
ids."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from report2impression.batching import token_store
from report2impression.batching.token_store import PairStream, Side, Stored, survey, tokenised
from report2impression.batching.tokens import CHUNK, Tokeniser
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.pairs import BadRow, Pair
from tests.test_tokens import as_lists, invented, tiny_tokenizer

SOURCE, TARGET = Side("source", ("prompt",), 12, before="sum: "), Side("target", ("impression",), 9)
REPORT = Side("report", ("prompt", "impression"), 30, between=" and ", around="nothing")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def invented_pairs(n: int) -> list[Pair]:
    texts = zip(invented(n, seed=1), invented(n, seed=2), strict=True)
    return [Pair(f"r\u00e9-{i}", *both) for i, both in enumerate(texts)]


def store(
    rows: list[Any], tokenizer: PreTrainedTokenizerBase, folder: Path, *sides: Side, **how: Any
) -> Stored:
    found = survey("train", lambda: rows)
    return tokenised(found, lambda: rows, sides, tokenizer, folder=str(folder), **how)


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_stream_gives_what_texts_in_memory_give(
    n: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pairs = invented_pairs(n)
    stored = store(pairs, tokenizer, tmp_path, SOURCE, TARGET, REPORT, keep_impressions=True)
    assert list(stored.ids) == [pair.id for pair in pairs]
    assert list(stored.impressions) == [pair.impression for pair in pairs]
    texts = {
        "source": ["sum: " + pair.prompt for pair in pairs],
        "target": [pair.impression for pair in pairs],
        "report": [f"{pair.prompt} and {pair.impression}" for pair in pairs],
    }
    whole = Tokeniser(tokenizer)
    for side in (SOURCE, TARGET, REPORT):
        how: dict[str, Any] = {"max_tokens": side.max_tokens, "around": side.around}
        expected, found = whole(texts[side.name], **how), stored.sides[side.name]
        assert as_lists(found) == as_lists(expected)
        assert found.n_truncated == expected.n_truncated
        assert found.ids.dtype == np.int32 and found.offsets.dtype == np.int64
    assert stored.sides["source"].n_truncated > 0 or n == 1


def test_memory_does_not_grow_with_the_stream(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """20,000 pairs in a list would be 7 MB more."""
    words = invented(20)

    def stream(n: int) -> Iterator[Pair]:
        return (Pair(f"r{i}", f"{words[i % 20]} {i}", words[i % 7]) for i in range(n))

    peaks = []
    for n in (8 * CHUNK, 40 * CHUNK):  # the shorter one already fills what is under way
        pairs = partial(stream, n)
        tracemalloc.start()
        found = survey("train", pairs)
        stored = tokenised(found, pairs, [SOURCE, TARGET], tokenizer, folder=str(tmp_path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(stored.ids) == n
    assert peaks[1] < peaks[0] + 3e6


def test_a_second_start_tokenises_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = invented_pairs(20)
    first = store(pairs, tokenizer, tmp_path, SOURCE, TARGET)
    monkeypatch.setattr(token_store, "_fill", lambda *_: pytest.fail("tokenised again"))
    second = store(pairs, tokenizer, tmp_path, SOURCE, TARGET)
    for name in ("source", "target"):
        assert as_lists(first.sides[name]) == as_lists(second.sides[name])
        assert first.sides[name].n_truncated == second.sides[name].n_truncated
    assert list(second.ids) == list(first.ids) and len(second.impressions) == 0


A, B = Pair("a", "ab", "c"), Pair("b", "lung", "heart")
CHANGES: dict[str, dict[str, Any]] = {
    "a text": {"rows": [Pair("a", "ab", "d"), B]},
    "an id": {"rows": [Pair("x", "ab", "c"), B]},
    "the order": {"rows": [B, A]},
    "where texts meet": {"rows": [Pair("a", "a", "bc"), B]},
    "the sides": {"rows": [Pair("a", "c", "ab"), B]},
    "a row less": {"rows": [A]},
    "a row more": {"rows": [A, B, B]},
    "the prefix": {"sides": [replace(SOURCE, before="sum:"), TARGET]},
    "the limit": {"sides": [replace(SOURCE, max_tokens=13), TARGET]},
    "the other limit": {"sides": [SOURCE, replace(TARGET, max_tokens=8)]},
    "the end": {"sides": [SOURCE, replace(TARGET, around="nothing")]},
    "what joins": {"sides": [replace(REPORT, between="")]},
    "impressions kept": {"keep_impressions": True},
    "the tokenizer": {"tokenizer": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_another_folder(
    change: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    cache, changed = tmp_path / "cache", dict(CHANGES[change])
    for _ in range(2):
        store([A, B], tokenizer, cache, SOURCE, TARGET)
    assert len(kept(cache)) == 1
    other = tiny_tokenizer(tmp_path, seed=1) if "tokenizer" in changed else tokenizer
    rows, sides = changed.pop("rows", [A, B]), changed.pop("sides", [SOURCE, TARGET])
    changed.pop("tokenizer", None)
    store(rows, other, cache, *sides, **changed)
    assert len(kept(cache)) == 2


texts = st.text("ab", max_size=2)
made_pairs = st.lists(st.builds(Pair, texts, texts, texts), min_size=1, max_size=3)


@given(made_pairs, made_pairs)
def test_the_digest_is_of_every_id_and_text(one: list[Pair], other: list[Pair]) -> None:
    same = [(p.id, p.prompt, p.impression) for p in one] == [
        (p.id, p.prompt, p.impression) for p in other
    ]
    assert (survey("a", lambda: one).digest == survey("b", lambda: other).digest) == same


def test_a_survey_counts_and_keeps_the_first_bad_rows() -> None:
    bad = [BadRow(i, f"line {i}", "is empty") for i in range(9)]
    found = survey("train", lambda: [bad[0], A, *bad[1:], B])
    assert (found.n_pairs, found.n_skipped, found.n_rows) == (2, 9, 11)
    assert found.first_skipped == bad[:5]
    assert found.digest == survey("train", lambda: [A, B]).digest


@pytest.mark.parametrize("rows", [[], [BadRow(0, "line 1", "is empty")]])
def test_a_split_without_pairs_is_refused(rows: list[BadRow]) -> None:
    with pytest.raises(DataError, match="split train has no rows"):
        survey("train", lambda: rows)


def test_bad_rows_are_left_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    bad = BadRow(0, "line 1", "is empty")
    stored = store([bad, A, bad, B, bad], tokenizer, tmp_path, TARGET)
    assert list(stored.ids) == ["a", "b"] and len(stored.sides["target"].lengths) == 2


def test_a_source_that_changes_between_the_passes_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    found = survey("train", lambda: [A, B])
    later: dict[str, PairStream] = {"less": lambda: [A], "else": lambda: [A, replace(B, id="c")]}
    for stream in later.values():
        with pytest.raises(DataError, match="split train changed while it was being read"):
            tokenised(found, stream, [TARGET], tokenizer, folder=str(tmp_path))
        assert kept(tmp_path) == []


def test_what_the_stream_raises_is_raised_and_leaves_nothing(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    def broken() -> Iterator[Pair]:
        yield A
        raise DataError("line 2 is bad")

    with pytest.raises(DataError, match="line 2 is bad"):
        survey("train", broken)
    found = survey("train", lambda: [A])
    with pytest.raises(DataError, match="line 2 is bad"):
        tokenised(found, broken, [TARGET], tokenizer, folder=str(tmp_path))
    assert kept(tmp_path) == []


def test_home_is_expanded(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store([A], tokenizer, Path("~/cache"), TARGET)
    assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize("reason", ["No space left on device", "a file is in the way"])
def test_a_cache_that_cannot_be_used_is_told_in_one_line(
    reason: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, reason)

    cache = tmp_path / "cache"
    if reason == "a file is in the way":
        cache.write_text("")
        reason = "File exists"
    else:
        monkeypatch.setattr(token_store.Growing, "append", full)
    with pytest.raises(ConfigError) as caught:
        store([Pair("a", "lung", "heart")], tokenizer, cache, TARGET)
    message = str(caught.value)
    assert str(cache) in message and reason in message and "--data.cache_dir" in message
    assert "lung" not in message and "\n" not in message
    assert not cache.is_dir() or kept(cache) == []
