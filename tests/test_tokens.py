"""tokens.py with a tokenizer trained here: truncation, the cache, its privacy."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

import tokens
from corpus.new_base import train_tokenizer
from errors import ConfigError
from tokens import Tokens, tokenise, tokenise_cached, tokenizer_digest

WORDS = (
    *("the", "lung", "heart", "is", "clear", "small", "left", "right", "effusion", "no", "acute"),
    *("mass", "stable", "seen", "12", "mm"),
)


def invented(n: int, seed: int = 0) -> list[str]:
    """Sentences of 4 to 14 words from a list, no patient's."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 14))) for _ in range(n)]


def tiny_tokenizer(folder: Path, seed: int = 0) -> PreTrainedTokenizerBase:
    return train_tokenizer(invented(200, seed), 220, folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def as_lists(stored: Tokens) -> list[list[int]]:
    return [stored.row(i).tolist() for i in range(len(stored.lengths))]


def test_ids_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [*invented(5), "", "unseen: Ünïcödé"]
    stored = tokenise(texts, tokenizer, max_tokens=512)
    assert as_lists(stored) == tokenizer(texts)["input_ids"]  # HF adds the same one eos
    assert stored.ids.dtype == np.int32 and stored.offsets.dtype == np.int64
    assert stored.lengths.tolist() == [len(row) for row in as_lists(stored)]
    assert stored.n_truncated == 0


LITERAL = [
    "lung </s> clear",
    "</s>",
    "<pad> 12 mm",
    "a <extra_id_0>b<extra_id_99>",
    "\uff1c/s\uff1e",
]


@pytest.mark.parametrize("text", LITERAL)
def test_literal_special_tokens_are_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """The last one becomes </s> in the tokenizer's own normalisation."""
    (alone,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {2}
    assert special & set(alone)  # so the tokenizer alone reads it
    row = tokenise([text], tokenizer, max_tokens=64).row(0).tolist()
    assert not special & set(row[:-1]) and row[-1] == tokenizer.eos_token_id
    bare = tokenise([text], tokenizer, max_tokens=64, add_eos=False).row(0).tolist()
    assert bare == row[:-1]
    letters = tokenizer.decode(row, skip_special_tokens=True).replace(" ", "")
    assert letters == text.replace(" ", "").replace("\uff1c", "<").replace("\uff1e", ">")


def test_more_texts_than_one_chunk_keep_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = invented(2001)
    stored = tokenise(iter(texts), tokenizer, max_tokens=64)
    assert len(stored.lengths) == 2001
    for i in (0, 999, 1000, 2000):
        assert stored.row(i).tolist() == tokenizer(texts[i])["input_ids"]


def test_truncation_keeps_eos_and_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["lung", " ".join(WORDS), " ".join(WORDS * 3)]
    full = tokenizer(texts, add_special_tokens=False)["input_ids"]
    limit = len(full[1]) + 1  # the second one fits exactly
    stored = tokenise(texts, tokenizer, max_tokens=limit)
    assert stored.lengths.tolist() == [len(full[0]) + 1, limit, limit]
    assert stored.n_truncated == 1
    assert [row[-1] for row in as_lists(stored)] == [tokenizer.eos_token_id] * 3
    assert as_lists(stored)[2][:-1] == full[2][: limit - 1]
    assert tokenise(texts, tokenizer, max_tokens=limit - 1).n_truncated == 2


def test_without_eos_the_limit_is_all_text(tokenizer: PreTrainedTokenizerBase) -> None:
    (full,) = tokenizer([" ".join(WORDS)], add_special_tokens=False)["input_ids"]
    for limit, cut in ((len(full), 0), (len(full) - 1, 1)):
        stored = tokenise([" ".join(WORDS)], tokenizer, max_tokens=limit, add_eos=False)
        assert (stored.ids.tolist(), stored.n_truncated) == (full[:limit], cut)


def test_take_keeps_the_given_order() -> None:
    stored = Tokens(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6]), 2)
    assert as_lists(stored.take([2, 0, 2])) == [[3, 4, 5], [0], [3, 4, 5]]


def test_second_call_reads_the_cache(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = invented(20)
    call: dict[str, Any] = {"tokenizer": tokenizer, "folder": str(tmp_path), "max_tokens": 9}
    first = tokenise_cached(texts, **call)
    monkeypatch.setattr(tokens, "tokenise", lambda *_, **__: pytest.fail("tokenised again"))
    second = tokenise_cached(texts, **call)
    assert first.n_truncated == second.n_truncated > 0
    assert as_lists(second) == as_lists(first)
    assert second.ids.dtype == np.int32 and second.offsets.dtype == np.int64


def test_cached_is_what_was_tokenised(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = invented(20)
    plain = tokenise(texts, tokenizer, max_tokens=9)
    cached = tokenise_cached(texts, tokenizer=tokenizer, folder=str(tmp_path), max_tokens=9)
    assert as_lists(cached) == as_lists(plain) and cached.n_truncated == plain.n_truncated


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["ab", "d"]},
        {"texts": ["c", "ab"]},
        {"texts": ["a", "bc"]},  # the same characters, cut elsewhere
        {"texts": ["abc"]},
        {"max_tokens": 10},
        {"add_eos": False},
        {"tokenizer": "other"},
    ],
)
def test_any_change_is_another_file(
    change: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"texts": ["ab", "c"], "max_tokens": 9, "tokenizer": tokenizer}
    cache = tmp_path / "cache"
    for _ in range(2):
        tokenise_cached(**call, folder=str(cache))
    assert len(list(cache.iterdir())) == 1
    if change.get("tokenizer"):
        change = {"tokenizer": tiny_tokenizer(tmp_path, seed=1)}
        assert tokenizer_digest(change["tokenizer"]) != tokenizer_digest(tokenizer)
    tokenise_cached(**{**call, **change}, folder=str(cache))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("no_umask")
def test_only_the_owner_reads_the_cache(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "cache"
    during: list[int] = []
    save = tokens.save_file

    def spy(arrays: Any, file: Path) -> None:
        save(arrays, file)
        during.append(min(file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777))

    monkeypatch.setattr(tokens, "save_file", spy)
    tokenise_cached(["lung"], tokenizer=tokenizer, folder=str(folder), max_tokens=9)
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
    assert during and not during[0] & 0o077  # nor while it is being written


def test_home_is_expanded(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenise_cached(["lung"], tokenizer=tokenizer, folder="~/cache", max_tokens=9)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), SafetensorError("disk full"), KeyboardInterrupt()],
)
def test_a_failed_write_leaves_nothing(
    failure: BaseException,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_half(_: Any, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(tokens, "save_file", write_half)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ConfigError
    with pytest.raises(expected) as caught:
        tokenise_cached(["lung"], tokenizer=tokenizer, folder=str(tmp_path), max_tokens=9)
    assert list(tmp_path.iterdir()) == []
    if expected is ConfigError:
        assert "--data.cache_dir" in str(caught.value) and str(tmp_path) in str(caught.value)
        assert "lung" not in str(caught.value)


def test_a_file_in_the_way_of_the_folder(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match=r"--data\.cache_dir"):
        tokenise_cached(["lung"], tokenizer=tokenizer, folder=str(tmp_path / "cache"), max_tokens=9)
