"""program/unseen.py: which signs are in which list, spelled out once more."""

import re
import sys

import pytest

from report2impression.program.unseen import CONTROLS, HIDDEN, UNSEEN, has_ink

HALVES = {*range(0xD800, 0xE000)}
CONTROL = {*range(0x20), *range(0x7F, 0xA0)}
TURNING = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


@pytest.mark.parametrize(
    ("pattern", "codes"),
    [
        (CONTROLS, CONTROL - set(b"\t\n\v\f\r\x85")),
        (HIDDEN, (CONTROL - set(b"\t\n")) | TURNING | HALVES | {0xFFFE, 0xFFFF}),
        (
            UNSEEN,
            CONTROL | HALVES | {0xAD, 0x61C, 0xFEFF}
            | {*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)},
        ),
    ],
)  # fmt: skip
def test_the_lists(pattern: re.Pattern[str], codes: set[int]) -> None:
    found = {code for code in range(sys.maxunicode + 1) if pattern.fullmatch(chr(code))}
    assert found == codes


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\u200b\u2060\ufeff", "\u00a0\u2003\u3000", "\u202e"]
)
def test_nothing_to_see(text: str) -> None:
    assert not has_ink(text) and has_ink(f"{text}.") and has_ink(f"a{text}")
