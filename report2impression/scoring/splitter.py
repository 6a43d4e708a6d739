"""Where an impression's numbered items and sentences end, for texts that are one long line.

    items("1. no fracture. 2. lung nodule.")  ->  ["1. no fracture.", "2. lung nodule."]
    units("no fracture. lung nodule")          ->  ["no fracture.", "lung nodule"]

rougeLsum compares sentence by sentence, but knows a sentence by its newline, and impressions have
none. Numbers are items only if they count 1, 2, 3 ... from the start of the text; "1 nodule of 2
cm" is one item. No word is lost or changed: the parts, joined by blanks, are the words of the text.
"""

import itertools
import re
from collections.abc import Callable, Sequence

VERSION = "items and sentences, 1"  # part of the signature: another rule gives other scores

# A number with a dot or bracket is a mark anywhere; a bare one not before a unit or after a word
# that takes a number ("2 cm", "grade 2", "less than 3").
UNITS = "mm|cm|m|ml|cc|mg|g|kg|hu|x|by|to|of|or|and|day|week|month|year|hour|min|level|vessel|part"
NUMBERED = (
    "grade|stage|type|segment|level|zone|series|image|images|number|least|than|about|approximately|"
    "measuring|measures|measure|to|by|x|of|is|are|up|for|from|in|on|at|over|and|or|the|these|those|"
    "t|l|c|s|day|pod|rib|bi-rads|birads|lung-rads|tirads|pirads|category|class|fazekas"
)
MARK = re.compile(r"(?<!\S)#?(\d{1,2})([.):])?(?=\s+\S)")
LOOK_BACK = 24  # characters: longer than any word that the patterns look for before a place
TAKES_NUMBER = re.compile(rf"(?<![\w-])({NUMBERED})\s*$", re.IGNORECASE)
UNIT = re.compile(rf"\s+({UNITS})s?\b", re.IGNORECASE)

# A stop ends a sentence before a blank, but not in "dr. x", "s. aureus", "e.g. this" or "2. this".
ENDED = re.compile(r"(?<=[.!?;])\s+(?=\S)")
NO_END = re.compile(
    r"(?<!\S)[(\[]?(?:[a-z]|\d{1,2}|dr|mr|mrs|ms|vs|e\.g|i\.e|etc|approx|fig|no|st|cf|resp|incl|ca|"
    r"a\.m|p\.m|d\.w|d/w|w\.r\.t)\.$",
    re.IGNORECASE,
)


def items(text: str) -> list[str]:
    """The numbered items with their numbers, and what stands before the first; lines apart."""
    return [text[start:end] for start, end in item_spans(text)]


def item_spans(text: str) -> list[tuple[int, int]]:
    """Where the items stand: characters [start, end) of the text."""
    return _spans(text, _item_starts)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences stand: characters [start, end) of the text."""
    return _spans(text, _sentence_starts)


def sentences(text: str) -> list[str]:
    """The sentences, with their stops; lines apart."""
    return [text[start:end] for start, end in sentence_spans(text)]


def units(text: str) -> list[str]:
    """The sentences of each item: what rougeLsum should compare one by one."""
    return [text[start:end] for start, end in unit_spans(text)]


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Where the units stand: characters [start, end) of the text."""
    return [
        (begin + start, begin + end)
        for begin, stop in item_spans(text)
        for start, end in sentence_spans(text[begin:stop])
    ]


def one_per_line(texts: Sequence[str]) -> list[str]:
    """The same words with a newline after each unit, as rougeLsum expects them."""
    return ["\n".join(units(text)) for text in texts]


def _spans(text: str, starts: Callable[[str], Sequence[int]]) -> list[tuple[int, int]]:
    """The parts of each line, without the blanks around them; no empty ones."""
    found, at = [], 0
    for line in text.splitlines(keepends=True):
        cuts = [0, *starts(line.rstrip("\r\n")), len(line)]
        for first, last in itertools.pairwise(cuts):
            part = line[first:last]
            begin = first + len(part) - len(part.lstrip())
            if part.strip():
                found.append((at + begin, at + begin + len(part.strip())))
        at += len(line)
    return found


def _item_starts(line: str) -> list[int]:
    """Where 1, 2, 3 ... stand as marks. A list is all dotted or all bare, as its 1 is; the bare
    one must open the line. Nothing where there is a 1 but no 2."""
    marks = list(MARK.finditer(line))
    lead = len(line) - len(line.lstrip())
    tried: set[bool] = set()  # a later 1 of the same kind counts on no further than the first did
    for at, first in enumerate(marks):
        if first[1] != "1" or not (first[2] or first.start() <= lead) or bool(first[2]) in tried:
            continue
        tried.add(bool(first[2]))
        found = [first.start()]
        for mark in marks[at + 1 :]:
            due = int(mark[1]) == len(found) + 1 and bool(mark[2]) == bool(first[2])
            if due and (mark[2] or _stands_alone(line, mark)):
                found.append(mark.start())
        if len(found) > 1:
            return found
    return []


def _stands_alone(line: str, mark: re.Match[str]) -> bool:
    """A bare number that neither counts a unit nor belongs to the word before it."""
    before = line[max(0, mark.start() - LOOK_BACK) : mark.start()]
    return not UNIT.match(line, mark.end()) and not TAKES_NUMBER.search(before)


def _sentence_starts(line: str) -> list[int]:
    gaps = ((gap, max(0, gap.start() - LOOK_BACK)) for gap in ENDED.finditer(line))
    return [gap.end() for gap, at in gaps if not NO_END.search(line, at, gap.start())]
