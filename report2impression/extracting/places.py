"""Where a finding is and how large: its side, level, place in words, and measurements in mm."""

import re
from collections.abc import Iterator, Sequence

from report2impression.extracting.parts import Measurement, Span
from report2impression.scoring.faithfulness.claims import Claim, nearest
from report2impression.scoring.faithfulness.clinical_terms import ANATOMY
from report2impression.scoring.faithfulness.marks import (
    LEFT_RIGHT,
    LEVEL,
    SIDE,
    SIZE,
    SPINE,
    VERTEBRAE,
    Mark,
)

PRIOR = re.compile(
    r"\b(?:previously|formerly|prior(?:ly)?|earlier|compared (?:to|with)|was|were|from|before)"
    r"\s*(?:measur\w+|size|at|of|approximately|about|was|estimated|study|[:,(]|\s)*$",
    re.IGNORECASE,
)
PRIOR_AFTER = re.compile(
    r"\s*(?:in \w+ )?(?:previously|before|on (?:the )?(?:prior|previous|earlier)|formerly)\b",
    re.IGNORECASE,
)
AND = re.compile(r"\s*(?:and|or|/|and/or)\s*(?:\w+\s+){0,2}", re.IGNORECASE)
OPENS = re.compile(r"[\s;:.]*(?:(?:at|at the level of)\s+)?", re.IGNORECASE)
DISTANCE = re.compile(
    r"\s*(?:(?:distal|proximal|deep|caudal|cranial) to|from the (?:nipple|skin|origin))\b",
    re.IGNORECASE,
)
FROM_TO = re.compile(r"\bfrom\s*$", re.IGNORECASE)
TO = re.compile(r"\s+to\s+")
NOUN = re.compile(
    r"[\s-]+(?:lung\s+)?(lobes?|zones?|poles?|quadrants?|thirds?|fields?|lungs?|bases?)\b",
    re.IGNORECASE,
)
# What may stand between the words of one place: "right lower lobe of the lung".
LINK = re.compile(
    r"(?:[\s-]|\b(?:of|the|lobes?|zones?|poles?|distal|proximal|medial|lateral|anterior|posterior|"
    r"mid|upper|lower|inferior|superior|and|at|aspect|portion|part|segment|region|bone|wall|level|"
    r"area)\b)*",
    re.IGNORECASE,
)
LENGTH = "length"


def own_marks(text: str, statement: Sequence[Claim], claim: Claim, kind: str) -> list[Mark]:
    """The sides or levels of the claim; where it has none, those of the finding that an "and"
    joins to it, or a vertebra or disc that opens the statement ("L4-L5: bulge, stenosis")."""
    group = [c for c in statement if c.kind == claim.kind]
    at = next(i for i, c in enumerate(group) if c is claim)
    while at < len(group):
        own = [m for m in claim.nearby if m.kind == kind and _is_inside(m, group[at])]
        own = own or [
            m
            for m in group[at].marks
            if m.kind == kind and not any(_is_inside(m, c) for c in group)
        ]
        if own:
            return sorted(own, key=lambda mark: mark.start)
        if at + 1 == len(group) or not AND.fullmatch(text, group[at].end, group[at + 1].start):
            break
        at += 1
    start = claim.statement[0]
    opening = (m for m in claim.nearby if m.kind == kind == LEVEL and m.values & VERTEBRAE)
    return [mark for mark in opening if OPENS.fullmatch(text, start, mark.start)][:1]


def _is_inside(mark: Mark, claim: Claim) -> bool:
    return claim.start <= mark.start and mark.end <= claim.end


def laterality(text: str, statement: Sequence[Claim], claim: Claim) -> str | None:
    marks = own_marks(text, statement, claim, SIDE)
    sides = frozenset().union(*(mark.values for mark in marks))
    return "bilateral" if sides >= LEFT_RIGHT else next(iter(sides), None)


def level(text: str, statement: Sequence[Claim], claim: Claim) -> str | None:
    """The level as written ("lower lobe", "frontal"), vertebrae and discs by name ("L4-L5")."""
    names = [_level_name(text, mark) for mark in own_marks(text, statement, claim, LEVEL)]
    return ", ".join(dict.fromkeys(names)) or None


def _level_name(text: str, mark: Mark) -> str:
    if mark.values & VERTEBRAE:
        return _vertebrae(mark.values).upper()
    word = text[mark.start : mark.end].lower()
    if word in {"rul", "lul", "rml", "rll", "lll"}:
        return {"u": "upper lobe", "m": "middle lobe", "l": "lower lobe"}[word[1]]
    noun = NOUN.match(text, mark.end)
    return f"{word} {noun[1].lower()}" if noun else word


def _vertebrae(values: frozenset[str]) -> str:
    """ "l4", "l4-l5" or the ends of a longer range; "l2, l5" where nothing joins them."""
    single = sorted((v for v in values if "-" not in v), key=SPINE.index)
    discs = [v for v in values if "-" in v]
    if not discs:
        return ", ".join(single)
    return discs[0] if not single else f"{single[0]}-{single[-1]}"


def location(text: str, claim: Claim, statement: Sequence[Claim]) -> str | None:
    """The place in the words of the text: sides, levels and organs that stand together."""
    group = [c for c in statement if c.kind == claim.kind]
    found = [
        text[start:end]
        for start, end in _places(text, claim, statement)
        if any(c is claim for c in nearest(text, (start, end), group))
    ]
    return " ".join(", ".join(found).lower().split()) or None


def _places(text: str, claim: Claim, statement: Sequence[Claim]) -> Iterator[tuple[int, int]]:
    """Spans of sides, levels and organs, joined where only such words stand between them."""
    taken = [(c.start, c.end) for c in statement if c.kind == claim.kind]
    pieces = [(m.start, m.end) for m in claim.nearby if m.kind in (SIDE, LEVEL)]
    pieces += [(c.start, c.end) for c in statement if c.kind == ANATOMY]
    free = [p for p in pieces if not any(p[0] < end and start < p[1] for start, end in taken)]
    joined: list[tuple[int, int]] = []
    for start, end in sorted(free):
        noun = NOUN.match(text, end)
        end = noun.end() if noun else end
        if joined and (start <= joined[-1][1] or LINK.fullmatch(text, joined[-1][1], start)):
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    yield from joined


def measurements(text: str, claim: Claim) -> tuple[Measurement, ...]:
    """The finding's lengths, in their order."""
    own = [mark for mark in claim.marks if mark.kind == SIZE]
    found = [m for mark in own for m in _measured(text, mark)]
    return tuple(sorted(found, key=lambda m: m.span))


def _measured(text: str, mark: Mark) -> Iterator[Measurement]:
    readings = [r for r in mark.readings if r.dimension == LENGTH]
    values = tuple(round(r.values[0], 3) for r in readings)[:3]
    if not values or DISTANCE.match(text, mark.end):
        return
    lead, span = text[max(0, mark.start - 40) : mark.start], Span(mark.start, mark.end)
    turn = TO.search(text, mark.start, mark.end)
    if len(values) == 2 and turn and FROM_TO.search(lead):  # "from 8 to 12 mm"
        first, second = Span(mark.start, turn.start()), Span(turn.end(), mark.end)
        yield Measurement(values[:1], text[first.start : first.end], True, first)
        yield Measurement(values[1:], text[second.start : second.end], False, second)
        return
    of_prior = bool(PRIOR.search(lead) or PRIOR_AFTER.match(text, mark.end))
    yield Measurement(values, text[mark.start : mark.end], of_prior, span)
