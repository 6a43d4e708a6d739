"""corpus/mixing.py: a mixture of streams is the mixture of the same rows in memory."""

import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report2impression.program.errors import ConfigError
from report2impression.reading.pairs import BadRow, Pair, Split
from report2impression.reading.sources import mix, stream_mix

Rows = list[Pair | BadRow]

one_row = st.sampled_from("pppb")
sources = st.lists(st.lists(one_row, min_size=1, max_size=12), min_size=1, max_size=3)


def rows(number: int, kinds: list[str]) -> Rows:
    return [
        Pair(f"s{number}-{i}", f"text {i}", "x") if kind == "p" else BadRow(i, f"line {i}", "empty")
        for i, kind in enumerate(kinds)
    ]


def split(items: Rows) -> Split:
    pairs = [row for row in items if isinstance(row, Pair)]
    return Split("train", pairs, len(items), [row for row in items if isinstance(row, BadRow)])


@given(sources, st.lists(st.sampled_from([0.01, 0.5, 1, 2, 2.5]), min_size=3), st.integers(0, 9))
def test_streams_give_what_lists_give(
    kinds: list[list[str]], weights: list[float], seed: int
) -> None:
    all_rows = [rows(number, some) for number, some in enumerate(kinds)]
    streams = [partial(iter, some) for some in all_rows]
    weights = weights[: len(all_rows)]
    try:
        expected = mix([split(some) for some in all_rows], weights, seed)
    except ConfigError as error:
        with pytest.raises(ConfigError, match=re.escape(str(error))):
            list(stream_mix(streams, weights, seed))
        return
    found = split(list(stream_mix(streams, weights, seed)))
    assert (found.pairs, found.skipped) == (expected.pairs, expected.skipped)
