"""Labelled errors for `bench.faithfulness.detection`: one edit makes a supported impression wrong.

An edit is made only where it is an error whatever the check thinks: the new number stands nowhere
in the report, no statement of the report that shares a word with the edited one has the new side or
level, the added finding shares no word with the report. (Which statements hold a finding at all is
read from the lexicon of the check: recall is that of known findings.)
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.faithfulness.clean_impressions import (
    REGION,
    REGIONS,
    SIDE,
    SIZE,
    VERTEBRA,
    ZONE,
    Report,
    clean_of,
    statements,
)
from report2impression.scoring.faithfulness.claims import read
from report2impression.scoring.faithfulness.clinical_terms import FINDING
from report2impression.scoring.faithfulness.negation import parse


@dataclass(frozen=True)
class Case:
    """An impression with its clean twin; the edited statement is edited[start:end]."""

    source: str
    clean: str
    edited: str
    start: int
    end: int


CHECK_OF = {
    "side flip": "laterality",
    "number change": "measurement",
    "unit change": "measurement",
    "level change": "level",
    "finding denied": "negation",
    "denial dropped": "negation",
    "added finding": "added finding",
    "added comparison": "comparison",
}
DENIED = re.compile(r"\b(no|not|without|negative|free|absent|resolved|cleared|clear|normal)\b")
HEDGED = re.compile(
    r"\b(may|might|could|possibl\w+|likely|suggest\w*|represent\w*|versus|question)\b"
)
LEAD = re.compile(r"(there (is|are|has been|have been) )?((a|an|the) )?")
ODD = re.compile(r"(?<!^)\b(there|except)\b")  # "no evidence of" would not deny these
OF_TIME = re.compile(
    r"prior|previous|compar|stable|unchanged|interval|again|since|\bnew|increas|decreas|progress|"
    r"improv|worse|resol|develop|remain|persist|change|\bold|recent|\blast|still|remov|follow|"
    r"not seen|earlier|longer|continu|ago|____"
)
ADDED = {
    "chest": (
        *("large hiatal hernia", "acute pulmonary embolism", "small right pneumothorax"),
        *("moderate pericardial effusion", "aortic dissection", "acute rib fracture"),
        *("pneumomediastinum", "cavitary tuberculosis", "subcutaneous emphysema"),
        *("left hilar adenopathy", "moderate scoliosis", "bronchiectasis"),
    ),
    "abdomen": (
        *(
            "acute appendicitis",
            "acute cholecystitis",
            "small bowel obstruction",
            "sigmoid volvulus",
        ),
        *("moderate hydronephrosis", "splenomegaly", "cirrhosis", "acute pancreatitis"),
        *("nonobstructing nephrolithiasis", "moderate ascites", "colonic diverticulitis"),
    ),
    "head": (
        *("acute subdural hematoma", "obstructive hydrocephalus", "acute infarct", "midline shift"),
        *("subarachnoid hemorrhage", "acute sinusitis", "demyelinating disease"),
    ),
    "bones": (
        *("femoral neck fracture", "shoulder dislocation", "osteomyelitis", "disc herniation"),
        *("grade one anterolisthesis", "severe spinal stenosis", "osteonecrosis"),
    ),
}
DOMAINS = {
    "chest": "chest",
    "abdomen": "abdomen",
    "head": "head",
    "spine": "bones",
    "knee": "bones",
}
Edit = tuple[str, int, int]  # the edited impression and the bounds of the edited statement


def _items(impression: str) -> list[tuple[int, int]]:
    """The bounds of each statement, item numbers left out."""
    bounds = []
    for start, end, _ in parse(impression):
        number = re.match(r"\d+\.?\s+(?!mm|cm|x)", impression[start:end])
        bounds.append((start + (number.end() if number else 0), end))
    return [(a, b) for a, b in bounds if b > a]


def _replace(text: str, start: int, end: int, new: str, item: tuple[int, int]) -> Edit:
    shift = len(new) - (end - start)
    return text[:start] + new + text[end:], item[0], item[1] + shift


def _stems(text: str) -> set[str]:
    small = {
        "right",
        "left",
        "there",
        "which",
        "measuring",
        "lobe",
        "upper",
        "lower",
        "seen",
        "noted",
    }
    return {w[:5] for w in re.findall(r"[a-z]{4,}", text) if w not in small}


def _is_new(report: Report, statement: str, value: re.Pattern[str]) -> bool:
    """No statement of the report with this value shares a word with the edited one."""
    words = _stems(statement)
    rivals = [s for s in statements(report.source) if value.search(s)]
    return not any(_stems(rival) & words for rival in rivals)


def _asserted(impression: str) -> list[tuple[int, int]]:
    items = _items(impression)
    rng = [(a, b) for a, b in items if not DENIED.search(impression[a:b])]
    return [(a, b) for a, b in rng if not HEDGED.search(impression[a:b])]


def flip_side(report: Report, clean: str, rng: random.Random) -> Edit | None:
    options = []
    for item in _asserted(clean):
        text = clean[slice(*item)]
        found = list(SIDE.finditer(text))
        if len({m[0] for m in found}) != 1 or not _has_finding(clean, item):
            continue
        other = "left" if found[0][0] == "right" else "right"
        rival = re.compile(rf"\b({other}|bilateral\w*|both|bases|apices|bi\w+ar)\b")
        if _is_new(report, text, rival) and not rival.search(text):
            options.append((item, found[0], other))
    if not options:
        return None
    item, match, other = rng.choice(options)
    start = item[0] + match.start()
    return _replace(clean, start, start + len(match[0]), other, item)


def change_number(report: Report, clean: str, rng: random.Random) -> Edit | None:
    def other(match: re.Match[str]) -> str:
        value = int(match[1])
        factor = rng.choice((rng.uniform(1.25, 3), rng.uniform(0.3, 0.75)))
        return f"{max(1, round(value * factor))}{match[2]}"

    return _change_size(report, clean, rng, other)


def change_unit(report: Report, clean: str, rng: random.Random) -> Edit | None:
    return _change_size(report, clean, rng, lambda m: f"{m[1]}{' cm' if m[2] == ' mm' else ' mm'}")


def _change_size(
    report: Report, clean: str, rng: random.Random, other: Callable[[re.Match[str]], str]
) -> Edit | None:
    given = {float(n) for n in re.findall(r"\d+(?:\.\d+)?", report.source)}
    given_mm = {n * f for n in given for f in (1, 10)}
    options = []
    for item in _items(clean):
        for match in SIZE.finditer(clean, *item):
            new = other(match)
            number, unit = new.split()
            mm = int(number) * (10 if unit == "cm" else 1)
            is_part = re.search(r"[\d.] ?$|[x.] ?$", clean[: match.start()])
            near = {n for n in given if abs(mm - n) < 0.11 * n or abs(mm - 10 * n) < 1.1 * n}
            if number != match[1] and near or is_part:
                continue
            if mm not in (given_mm if number != match[1] else _given_mm(report.source)):
                options.append((item, match, new))
    if not options:
        return None
    item, match, new = rng.choice(options)
    return _replace(clean, *match.span(), new, item)


def _given_mm(source: str) -> set[int]:
    """Lengths of the report, in mm, each number of "a x b cm" for itself."""
    found = set()
    for numbers, unit in re.findall(r"((?:\d+ x )*\d+) (mm|cm)\b", source):
        found |= {int(n) * (10 if unit == "cm" else 1) for n in numbers.split(" x ")}
    return found


def change_level(report: Report, clean: str, rng: random.Random) -> Edit | None:
    options = []
    for item in _asserted(clean):
        if not _has_finding(clean, item):
            continue
        for pattern in (ZONE, REGION, VERTEBRA):
            for match in pattern.finditer(clean, *item):
                new = _other_level(match, pattern, rng)
                text = clean[slice(*item)]
                if new and new not in text and _is_new(report, text, _rival(new)):
                    options.append((item, match, new))
    if not options:
        return None
    item, match, new = rng.choice(options)
    return _replace(clean, *match.span(), new, item)


def _other_level(match: re.Match[str], pattern: re.Pattern[str], rng: random.Random) -> str:
    if pattern is ZONE:
        return "lower" if match[0] == "upper" else "upper"
    if pattern is REGION:
        return rng.choice([region for region in REGIONS if region != match[0]])
    letter, number = match[1], int(match[2])
    by = -1 if number > 2 else 1
    if not match[4]:
        return f"{letter}{number + by}"
    if match[3] not in (None, letter):
        return "l3-l4"
    return f"{letter}{number + by}-{match[3] or ''}{int(match[4]) + by}"


def _rival(level: str) -> re.Pattern[str]:
    alike = {"upper": "upper|ap[a-z]+|lingula", "lower": "lower|bas[a-z]+|bibas[a-z]+"}
    return re.compile(rf"\b({alike.get(level, '|'.join(level.split('-')))})\b")


def _has_finding(impression: str, item: tuple[int, int], denied: bool = False) -> bool:
    """Does the statement assert (deny) a finding that the lexicon knows?"""
    claims = [c for c in read(impression).of_kind(FINDING) if item[0] <= c.start < item[1]]
    return any(not c.suspected and c.denied == denied for c in claims)


def deny(report: Report, clean: str, rng: random.Random) -> Edit | None:
    """ "left effusion" -> "no evidence of left effusion"."""
    items = [item for item in _asserted(clean) if _has_finding(clean, item)]
    items = [item for item in items if not ODD.search(clean, *item)]
    if not items:
        return None
    item = rng.choice(items)
    lead = LEAD.match(clean, *item)
    end = lead.end() if lead else item[0]
    return _replace(clean, item[0], end, "no evidence of ", item)


def assert_denied(report: Report, clean: str, rng: random.Random) -> Edit | None:
    """ "no effusion" -> "effusion"."""
    lead = re.compile(r"(there (is|are) )?no (evidence of )?(?!\w+ evidence)")
    items = [i for i in _items(clean) if lead.match(clean, *i) and _has_finding(clean, i, True)]
    items = [i for i in items if len(DENIED.findall(clean[slice(*i)])) == 1]
    if not items:
        return None
    item = rng.choice(items)
    match = lead.match(clean, *item)
    return _replace(clean, *match.span(), "", item) if match else None


def add_finding(report: Report, clean: str, rng: random.Random) -> Edit | None:
    own = next((d for word, d in DOMAINS.items() if word in report.group), "")
    words = _stems(report.source) | _stems(clean)
    phrases = [p for d, group in ADDED.items() if d != own for p in group]
    phrases = [p for p in phrases if not _stems(p) - _stems("acute small large moderate") & words]
    if not phrases:
        return None
    added = rng.choice(phrases)
    last = max((int(n) for n in re.findall(r"(?:^|\s)([1-9])\s+(?!mm|cm|x)", clean)), default=0)
    start = f"{clean} {last + 1} " if last else f"1 {clean} 2 "
    return start + added, len(start), len(start) + len(added)


def add_comparison(report: Report, clean: str, rng: random.Random) -> Edit | None:
    if OF_TIME.search(report.source) or OF_TIME.search(clean):
        return None
    items = [item for item in _asserted(clean) if _has_finding(clean, item)]
    if not items:
        return None
    item = rng.choice(items)
    if rng.random() < 0.5:
        lead = LEAD.match(clean, *item)
        at = lead.end() if lead else item[0]
        return _replace(clean, at, at, rng.choice(("unchanged ", "stable ", "new ")), item)
    tail = rng.choice((" since the prior study", " unchanged", " compared to prior exam"))
    return _replace(clean, item[1], item[1], tail, item)


_EDITS: dict[str, Callable[[Report, str, random.Random], Edit | None]] = {
    "side flip": flip_side,
    "number change": change_number,
    "unit change": change_unit,
    "level change": change_level,
    "finding denied": deny,
    "denial dropped": assert_denied,
    "added finding": add_finding,
    "added comparison": add_comparison,
}


def inject(kind: str, reports: Sequence[Report], n: int, rng: random.Random) -> list[Case]:
    """Up to n cases of one error type, at most one per report."""
    cases: list[Case] = []
    for report in rng.sample(reports, len(reports)):
        if len(cases) < n and (clean := clean_of(report, kind, rng)):
            edit = _EDITS[kind](report, clean, rng)
            if edit:
                cases.append(Case(report.source, clean, *edit))
    return cases
