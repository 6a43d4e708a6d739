"""Is an impression supported by its own report? Rules and a lexicon, no language model, no torch.

    findings("12 mm nodule in the left lung", "1.2 cm nodule on the right")
        ->  {"laterality": [Span(21, 26, "other side")], ...}

Each check marks what the impression states and the report does not: a measurement, a side, a level,
a finding that is denied or not mentioned at all, a comparison without a prior study. A side or
level is held against what the report says of the same finding. What is only suspected ("may
represent") is no statement. The same checks on the radiologist's own impressions give the noise
floor. `bench.faithfulness.detection` measures precision and recall. Shape: N reports.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from report2impression.scoring.faithfulness.claims import (
    GRADES,
    QUALIFIERS,
    SMALL,
    Claim,
    Text,
    read,
)
from report2impression.scoring.faithfulness.clinical_terms import (
    ANATOMY,
    FINDING,
    GENERAL,
    SIGN,
    lexicon,
)
from report2impression.scoring.faithfulness.marks import (
    LEFT_RIGHT,
    LEVEL,
    PAIR,
    SIDE,
    SIZE,
    VERTEBRAE,
    Mark,
    Reading,
)

CHECKS = ("measurement", "laterality", "level", "negation", "comparison", "added finding")
CONFIDENCE = 0.95
ROUNDING = 0.1  # a rounded measurement may be this share off

STUDIES = (
    r"(?:study|studies|exams?|examinations?|ct|chest|radiographs?|films?|imaging|images?|____)"
)
COMPARED = re.compile(
    r"\b(unchanged|stable|stability|interval(?!\s+follow)|"
    rf"(?<!no )(?<!absence of )(?:prior|previous)(?=\s+(?:\w+\s+)?{STUDIES})|"
    rf"since(?=\s+(?:the\s+)?(?:prior|previous|last|____|{STUDIES}))|compared (?:to|with)|"
    r"in comparison|no (?:significant |interval )*change|not (?:significantly )?changed|new|newly|"
    r"(?:in|de)creas(?:ed|ing)(?=\s+(?:in size|from|since|compared))|worsen(?:ed|ing)|"
    r"improv(?:ed|ing|ement)|resolved|resolving|persistent|again|redemonstrated|has progressed)\b",
    re.IGNORECASE,
)
PRIOR = re.compile(
    r"\b(prior|previous(ly)?|compar\w+|interval|interim|again|re-?demonstrat\w+|since|unchanged|"
    r"stable|stability|new(ly)?|earlier|persist\w+|progress\w+|improv\w+|worsen\w+|resol[uv]\w+|"
    r"no longer|has developed|have developed|last (exam|study)|(no|not) (significant(ly)? |"
    r"interval )*change[ds]?|changed|still|(in|de)creased? (in|from|since)|older|recent|ago|"
    r"remains?|not seen on|old (exam|study|films?)|removed|continued)\b",
    re.IGNORECASE,
)
ADVICE = re.compile(
    r"\b(recommend\w*|suggest(ed)?|consider|correlat\w*|if|would|may be|could be|advised?|obtain|"
    r"available|helpful|follow-?\s?up|evaluat\w+|indicated|needed|should)\b",
    re.IGNORECASE,
)


ADVICE_REACH = 8  # words: "recommend ... comparison with prior studies" compares nothing yet


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters [start, end) of the impression, and why; the reason holds no report text."""

    start: int
    end: int
    reason: str


def findings(source: str, impression: str, said: Text | None = None) -> dict[str, list[Span]]:
    """The unsupported spans of one impression, for each check, in their order. `said`: what it was
    read as, where that is known."""
    report, said = read(source), said or read(impression)
    found = {
        "measurement": _measurements(report, said),
        "laterality": _places(report, said, SIDE),
        "level": _places(report, said, LEVEL),
        "negation": _denials(report, said),
        "comparison": _comparisons(source, impression),
        "added finding": _added(report, said),
    }
    return {check: sorted(set(found[check])) for check in CHECKS}


def evidence(report: Text, claim: Claim) -> list[Claim]:
    """Where the report says what the claim says: the claims of it that have most in common."""
    if claim.kind == GENERAL:
        return []
    if claim.denied:
        organs = lexicon().organs[claim.concept]
        denials = [m for m in _mentions(report, claim) if m.denied and m.concept == claim.concept]
        return denials or [c for c in report.of_kind(ANATOMY) if c.normal and c.concept in organs]
    said = [m for m in _mentions(report, claim) if not m.denied and _sides_meet(claim, m)]
    likeness = [_likeness(claim, m) for m in said]
    most = max(likeness, default=0)
    return [m for m, like in zip(said, likeness, strict=True) if like == most]


def omitted_measurements(report: Text, said: Text) -> int:
    """Measurements of the report that the impression repeats neither whole nor rounded."""
    stated = [reading for mark in _of(said, SIZE) for reading in mark.readings]
    return sum(
        not any(_is_given(reading, mark.readings) for reading in stated)
        for mark in _of(report, SIZE)
    )


def prepare() -> None:
    """What takes a second at the first use."""
    read("")


def unsupported(sources: Sequence[str], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Per check, bool (N,): has the report's impression such a span? ValueError if N differ."""
    pairs = [findings(s, o) for s, o in zip(sources, outputs, strict=True)]
    return {check: np.array([bool(pair[check]) for pair in pairs], dtype=bool) for check in CHECKS}


def unsupported_rates(sources: Sequence[str], outputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`rates` of `unsupported`."""
    return rates(unsupported(sources, outputs))


def rates(flags: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Flagged impressions per 100 reports, with Wilson's 95 % interval; ValueError if N is 0."""
    return {check: rate(int(values.sum()), len(values)) for check, values in flags.items()}


def rate(count: int, n: int) -> dict[str, Any]:
    """{"per_100", "interval"} of a share, by Wilson's score interval."""
    if n == 0:
        raise ValueError("no reports: the rate over 0 reports does not exist")
    from scipy.stats import binomtest  # a second to load

    interval = binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return {"per_100": 100 * count / n, "interval": [100 * interval.low, 100 * interval.high]}


def _measurements(report: Text, said: Text) -> Iterator[Span]:
    given = [reading for mark in _of(report, SIZE) for reading in mark.readings]
    for mark in _of(said, SIZE):
        if not all(_is_given(reading, given) for reading in mark.readings):
            yield Span(mark.start, mark.end, "no such measurement in the report")


def _is_given(stated: Reading, given: Sequence[Reading]) -> bool:
    """Equal to a number of the report, or that number rounded to the digits stated."""
    for value, half in zip(stated.values, stated.halves, strict=True):
        for other in (v for r in given if r.dimension == stated.dimension for v in r.values):
            off = abs(value - other)
            if off < 1e-6 or (off <= half + 1e-6 and off <= ROUNDING * other):
                return True
    return False


def _of(text: Text, kind: str) -> Iterator[Mark]:
    return (mark for mark in text.marks if mark.kind == kind)


def _places(report: Text, said: Text, kind: str) -> Iterator[Span]:
    """Sides or levels that the report does not give to the finding they modify."""
    kinds = (kind, PAIR) if kind == SIDE else (kind,)
    anywhere = frozenset(v for mark in report.marks if mark.kind in kinds for v in mark.values)
    for claim in said.claims:
        own = [mark for mark in claim.marks if mark.kind == kind]
        if (
            not own
            or claim.denied
            or claim.kind == SIGN
            or (claim.kind == ANATOMY and claim.normal)
        ):
            continue
        candidates = _candidates(report, claim)
        closest = _closest_values(claim, candidates, kind)
        every = frozenset(value for c in candidates for value in _given(c, kind))
        if not closest and any(c.masked for c in candidates):
            continue
        reason = f"other {kind}" if closest else f"no such {kind} in the report"
        for mark in own:
            values = every if mark.values == LEFT_RIGHT else closest
            if not _supported(mark.values, values or anywhere, kind):
                yield Span(mark.start, mark.end, reason)
    for mark in said.loose:
        if mark.kind == kind and not _supported(mark.values, anywhere, kind):
            yield Span(mark.start, mark.end, f"no such {kind} in the report")


def _candidates(report: Text, claim: Claim) -> list[Claim]:
    """What the report says of the same thing: the finding or its signs, or the same organ."""
    if claim.kind == ANATOMY:
        return [c for c in report.of_kind(ANATOMY) if c.concept == claim.concept]
    return [c for c in _mentions(report, claim) if not c.denied]


def _closest_values(claim: Claim, candidates: list[Claim], kind: str) -> frozenset[str]:
    """The values of the candidates that have most in common with the claim, if any has one."""
    placed = [c for c in candidates if _given(c, kind)]
    placed = [c for c in placed if not c.suspected] or placed
    if len([mark for mark in claim.marks if mark.kind == kind]) > 1:  # "right and left ..."
        return frozenset(value for c in placed for value in _given(c, kind))
    likeness = [_likeness(claim, c) for c in placed]
    most = max(likeness, default=0)
    closest = [c for c, like in zip(placed, likeness, strict=True) if like == most]
    return frozenset(value for c in closest for value in _given(c, kind))


def _given(claim: Claim, kind: str) -> frozenset[str]:
    """The report's values; where it names no side, a plural ("bases") may mean both."""
    return claim.values(kind) or (claim.values(PAIR) if kind == SIDE else frozenset())


def _likeness(claim: Claim, other: Claim) -> int:
    """Shared sizes, the same finding, and shared words."""
    sizes = len(claim.values(SIZE) & other.values(SIZE))
    levels = bool(claim.values(LEVEL) & other.values(LEVEL))
    return (
        4 * sizes
        + 2 * (claim.concept == other.concept)
        + 3 * levels
        + len(claim.stems & other.stems)
    )


def _supported(stated: frozenset[str], given: frozenset[str], kind: str) -> bool:
    """Sides: each stated side is given ("bilateral" gives both). Vertebrae: each is; a disc is also
    given by both of its vertebrae, a vertebra by a disc that it bounds. Lobes: any name of one is,
    as the lingula is also called upper and a base is any lobe but an upper one."""
    if kind == SIDE:
        return stated <= given
    if "base" in stated | given and {"lower", "middle", "lingula", "base"} & (
        given if "base" in stated else stated
    ):
        return True
    parts = {part for value in given for part in value.split("-")}
    is_given = [v in given or v in parts or set(v.split("-")) <= given for v in stated]
    return all(is_given) if stated & VERTEBRAE else any(is_given)


def _denials(report: Text, said: Text) -> Iterator[Span]:
    for claim in said.of_kind(FINDING):
        if claim.suspected:
            continue
        if claim.denied and _is_asserted(report, claim):
            yield Span(claim.start, claim.end, "the report states it")
        elif not claim.denied and (reason := _denial_of(report, claim)):
            yield Span(claim.start, claim.end, reason)


def _is_asserted(report: Text, claim: Claim) -> bool:
    """Does the report state what the claim denies, and nowhere deny it?"""
    mentions = list(_mentions(report, claim))
    if any(m.denied and m.concept == claim.concept for m in mentions):
        return False
    qualified = claim.before & QUALIFIERS
    for m in mentions:
        if m.suspected or m.denied or not _sides_meet(claim, m):
            continue
        if _akin(claim, m) or (m.concept == claim.concept and not qualified):
            return True
    return False


def _akin(claim: Claim, other: Claim) -> bool:
    """Do both name one place, size or grade?"""
    same_place = any(claim.values(kind) & other.values(kind) for kind in (SIDE, LEVEL, SIZE))
    return same_place or bool(claim.before & other.before & GRADES)


def _denial_of(report: Text, claim: Claim) -> str:
    """Why the report speaks against a stated finding, or "" if it does not."""
    mentions = list(_mentions(report, claim))
    stated = [m for m in mentions if not m.denied and _sides_meet(claim, m)]
    denials = [m for m in mentions if m.denied]
    by_name = any(m.concept == claim.concept for m in denials)
    if any(not by_name or m.concept == claim.concept or _akin(claim, m) for m in stated):
        return ""  # a sign elsewhere is no answer to a denial by name
    small = claim.before & SMALL
    if denials and not (small and all(m.before & QUALIFIERS - small for m in denials)):
        return "the report denies it"
    organs = lexicon().organs[claim.concept]
    normal = (c for c in report.of_kind(ANATOMY) if c.normal and c.concept in organs)
    if not mentions and not small and any(_sides_meet(claim, c) for c in normal):
        return "the report calls the organ normal"
    return ""


def _mentions(report: Text, claim: Claim) -> Iterator[Claim]:
    supports = lexicon().supports[claim.concept]
    return (c for c in report.of_kind(FINDING, SIGN) if c.concept in supports)


def _sides_meet(a: Claim, b: Claim) -> bool:
    sides = a.values(SIDE), b.values(SIDE)
    return not all(sides) or bool(sides[0] & sides[1])


def _added(report: Text, said: Text) -> Iterator[Span]:
    """Stated findings of which the report has neither the name nor a sign."""
    for claim in said.of_kind(FINDING):
        silent = not any(_mentions(report, claim))
        if silent and not claim.denied and not claim.suspected:
            yield Span(claim.start, claim.end, "not in the report")


def _comparisons(source: str, impression: str) -> Iterator[Span]:
    if PRIOR.search(source):
        return
    for match in COMPARED.finditer(impression):
        lead = impression[: match.start()].split()[-ADVICE_REACH:]
        if not ADVICE.search(" ".join(lead)):
            yield Span(*match.span(), "no prior study in the report")
