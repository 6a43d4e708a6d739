"""tokens.py with a tokenizer trained here: truncation, special tokens, order."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from report2impression.batching import tokens
from report2impression.batching.tokens import Tokeniser, Tokens, chunks, in_threads, tokenise
from report2impression.weights.new_base import train_tokenizer

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
    bare = Tokeniser(tokenizer)([text], max_tokens=64, around="nothing").row(0).tolist()
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
        stored = Tokeniser(tokenizer)([" ".join(WORDS)], max_tokens=limit, around="nothing")
        assert (stored.ids.tolist(), stored.n_truncated) == (full[:limit], cut)


def test_take_keeps_the_given_order() -> None:
    stored = Tokens(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6]), 2)
    assert as_lists(stored.take([2, 0, 2])) == [[3, 4, 5], [0], [3, 4, 5]]


def test_no_texts_are_no_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    stored = tokenise([], tokenizer, max_tokens=9)
    assert (stored.ids.tolist(), stored.offsets.tolist(), stored.n_truncated) == ([], [0], 0)


def test_limits_stored_with_a_tokenizer_do_not_count(tmp_path: Path) -> None:
    texts = invented(3)
    limited = tiny_tokenizer(tmp_path)
    whole = tokenise(texts, limited, max_tokens=64)
    limited.backend_tokenizer.enable_truncation(2)
    limited.backend_tokenizer.enable_padding(length=90)
    assert as_lists(tokenise(texts, limited, max_tokens=64)) == as_lists(whole)


@given(st.integers(0, 40), st.integers(1, 9))
def test_chunks_hold_everything_in_order(n: int, size: int) -> None:
    found = list(chunks(iter(range(n)), size))
    assert [i for chunk in found for i in chunk] == list(range(n))
    assert all(len(chunk) == size for chunk in found[:-1]) and all(found)


def test_threads_keep_the_order_and_do_not_run_ahead() -> None:
    """The first call ends last: whatever comes out comes out in order."""
    taken, released = [], threading.Event()

    def items() -> Iterator[int]:
        for i in range(200):
            taken.append(i)
            if i:
                released.set()
            yield i

    def call(i: int) -> int:
        assert i or released.wait(60)
        return -i

    for number, result in enumerate(in_threads(call, items())):
        assert result == -number
        assert len(taken) <= number + 2 + tokens.MAX_THREADS


def test_an_error_in_a_thread_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // i, iter([1, 0, 1])))
