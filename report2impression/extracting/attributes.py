"""What an impression says of each of its findings: how sure, how severe, how new, where, how large.

Cues and marks are looked for in the finding's own statement, as the lexicon cuts it, and given to
one finding by the rules of `cues.owners`; sides, levels and sizes are those of `claims`.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from report2impression.extracting import cues
from report2impression.extracting.parts import CERTAINTY, SEVERITY
from report2impression.scoring.faithfulness.claims import Claim
from report2impression.scoring.faithfulness.clinical_terms import phrases, words

ACROSS = re.compile(r"\s+(?:than|on)\s+(?:on\s+)?(?:the\s+)?(?:left|right)\b", re.IGNORECASE)
NEXT_WORD = re.compile(r"[\s-]+(\w+)")
TO_BE = re.compile(
    r"\b(?:confirm|ensure|assess|document|establish|demonstrate|for)\s+(?:\w+\s+)?$", re.IGNORECASE
)
YEARS = re.compile(r"(?:year|month|week|day)s?[\s-]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Said:
    """The attributes of one finding that words give."""

    presence: str
    certainty: str
    severity: str | None
    change: str | None
    acuity: str | None


def said_of(text: str, stated: Sequence[Claim]) -> list[Said]:
    """Of each finding of one statement, in order."""
    start, end = stated[0].statement
    told: dict[str, dict[int, list[str]]] = {}
    for kind in ("severity", "change", "acuity"):
        told[kind] = defaultdict(list)
        for cue in cues.find(kind, text, start, end):
            if _counts(text, kind, cue):
                near = kind in ("severity", "acuity")
                for claim in cues.owners(text, cue, stated, directly=near):
                    told[kind][claim.start].append(_value(kind, cue, text, claim))
    sure = cues.find("certainty", text, start, end)
    return [_said(text, claim, stated, sure, told) for claim in stated]


def _counts(text: str, kind: str, cue: cues.Cue) -> bool:
    """ "Increased density", "larger on the left" and "72 years old" tell nothing of a course."""
    after = NEXT_WORD.match(text, cue.end)
    if kind == "change" and cue.value == "unchanged":
        return not TO_BE.search(text[max(0, cue.start - 24) : cue.start])
    if kind == "change" and cue.value in {"increased", "decreased"}:
        picture = after is not None and after[1].lower() in words("not_a_change")
        return not picture and not ACROSS.match(text, cue.end)
    return kind != "acuity" or not YEARS.search(text[max(0, cue.start - 8) : cue.start])


def _value(kind: str, cue: cues.Cue, text: str, claim: Claim) -> str:
    if kind != "severity" or cue.value != "amount":
        return cue.value
    graded = claim.concept in phrases("by amount")
    word = text[cue.start : cue.end].lower()
    return {"small": "mild", "moderate": "moderate", "large": "severe"}[word] if graded else ""


def _said(
    text: str,
    claim: Claim,
    stated: Sequence[Claim],
    sure: Sequence[cues.Cue],
    told: dict[str, dict[int, list[str]]],
) -> Said:
    severities = [value for value in told["severity"][claim.start] if value]
    changes, acuities = told["change"][claim.start], told["acuity"][claim.start]
    acuity = acuities[0] if acuities else None
    if claim.denied and not _is_open(text, claim, sure):
        gone = "resolved" if "resolved" in changes else None
        return Said("absent", "stated", None, gone, acuity)
    if changes and changes[0] == "resolved":
        return Said("absent", "stated", None, "resolved", acuity)
    presence, certainty = _certainty(text, claim, stated, sure)
    return Said(
        presence,
        certainty,
        max(severities, key=SEVERITY.index, default=None),
        changes[0] if changes else None,
        acuity,
    )


def _is_open(text: str, claim: Claim, sure: Sequence[cues.Cue]) -> bool:
    """ "No stenosis, a lesion cannot be excluded": the end of the statement speaks for itself."""
    after = [c for c in sure if c.start >= claim.end and _leads_back(text, claim.end, c)]
    return claim.suspected and any(_phrase(text, cue) in phrases("excluding") for cue in after)


def _certainty(
    text: str, claim: Claim, stated: Sequence[Claim], sure: Sequence[cues.Cue]
) -> tuple[str, str]:
    """(presence, certainty): the weakest word between the finding before and this one, or after
    it; where there is none, the weakest that leads to both ("possible edema or pneumonia")."""
    if not claim.suspected:
        return "present", "stated"
    last = max((c.end for c in stated if c.end <= claim.start), default=claim.statement[0])
    end, following = _group_end(text, claim, stated)
    near = [c for c in sure if last <= c.start < claim.start]
    near += [c for c in sure if end <= c.start < following and _follows(text, end, c)]
    near = near or [c for c in sure if c.start < claim.start]
    if not near:
        return "present", "stated"
    weakest = max(near, key=lambda cue: CERTAINTY.index(cue.value))
    if weakest.value == "stated" or _phrase(text, weakest) in phrases("asserting"):
        return "present", weakest.value
    return "possible", weakest.value


def _group_end(text: str, claim: Claim, stated: Sequence[Claim]) -> tuple[int, int]:
    """The ends of the last finding that an "or" joins to this one, and of what follows it."""
    end = claim.end
    for later in (c for c in stated if c.start >= claim.end):
        if not cues.JOINED.fullmatch(text, end, later.start):
            return end, later.start
        end = later.end
    return end, claim.statement[1]


def _follows(text: str, end: int, cue: cues.Cue) -> bool:
    """ "Pneumonia is unlikely", "mass in the left lung cannot be excluded", but not "pneumonia, may
    be ..."."""
    return _phrase(text, cue) in phrases("excluding") or _leads_back(text, end, cue)


def _leads_back(text: str, end: int, cue: cues.Cue) -> bool:
    return bool(cues.BACK.fullmatch(text, end, cue.start))


def _phrase(text: str, cue: cues.Cue) -> str:
    return " ".join(text[cue.start : cue.end].lower().split())
