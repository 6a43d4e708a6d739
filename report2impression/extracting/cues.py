"""Words that say how severe, how new, how old or how sure a finding is, and of which finding.

The words are the lexicon's ("phrases severity mild: ..."). A cue belongs to the finding before it
if only such words stand between as lead back to it ("effusion has slightly increased"), else to
the next one, else to the last; findings joined by "and" share it.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from report2impression.extracting.parts import ACUITY, CERTAINTY, CHANGE, SEVERITY
from report2impression.scoring.faithfulness.claims import Claim
from report2impression.scoring.faithfulness.clinical_terms import phrases

VALUES = {
    "severity": (*SEVERITY, "amount"),
    "change": CHANGE,
    "acuity": ACUITY,
    "certainty": CERTAINTY,
}
BACK = re.compile(
    r"(?:[\s,(]|\b(?:is|are|was|were|has|have|been|be|being|appears?|remains?|seems?|which|that|"
    r"again|also|now|overall|significantly|slightly|mildly|markedly|interval|grossly|essentially|"
    r"relatively|not|in|size|extent|degree|to|a|at|least|very|somewhat|both|bilaterally|on|the|"
    r"left|right|side|seen|noted|present|identified|considered|felt)\b)*",
    re.IGNORECASE,
)
VERB = re.compile(r"[a-z]", re.IGNORECASE)
NO_MORE = re.compile(
    r"\s*(?:[.,;:)]|$|(?:in (?:size|degree|extent)|since|compared|from|and|when|but|as|on)\b)"
)
JOINED = re.compile(r"\s*(?:,|and|or|,\s*and|with|and/or|/)\s*(?:\w+\s+){0,2}", re.IGNORECASE)
ELSE = re.compile(
    r"(?<!degree )(?<!amount )(?<!volume )(?<!burden )(?<!quantity )(?<!component )\bof\b|"
    r"\b(?:from|to|by|for|with|at|secondary|causing|measuring|without)\b",
    re.IGNORECASE,
)
REACH = 80  # characters: an attribute stands near what it describes


@dataclass(frozen=True, slots=True)
class Cue:
    value: str
    start: int
    end: int


def find(kind: str, text: str, start: int, end: int) -> list[Cue]:
    """The cues of one kind in [start, end), in order; of two that overlap the longer one."""
    pattern, values = _pattern(kind)
    found = pattern.finditer(text, start, end)
    return [Cue(values[" ".join(m[0].lower().split())], *m.span()) for m in found]


@functools.cache
def _pattern(kind: str) -> tuple[re.Pattern[str], dict[str, str]]:
    values = {term: value for value in VALUES[kind] for term in phrases(f"{kind} {value}")}
    longest_first = sorted(values, key=len, reverse=True)
    each = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in longest_first)
    return re.compile(rf"(?<![\w-])(?:{each})(?![\w-])", re.IGNORECASE), values


def owners(text: str, cue: Cue, stated: Sequence[Claim], *, directly: bool = False) -> list[Claim]:
    """The findings of the cue's statement that it describes; none if all are far. `directly`: nor
    one that something else leads to ("extensive artifact from the pacemaker")."""
    inside = [claim for claim in stated if claim.start <= cue.start < claim.end]
    if inside:
        return inside[:1]
    before = [i for i, claim in enumerate(stated) if claim.end <= cue.start]
    after = [i for i, claim in enumerate(stated) if claim.start >= cue.end]
    if before and (not after or _is_of_the_last(text, cue, stated[before[-1]].end)):
        at, step = before[-1], -1
    elif after and not (directly and ELSE.search(text, cue.end, stated[after[0]].start)):
        at, step = after[0], 1
    else:
        return []
    return _joined(text, stated, at, step) if _is_near(cue, stated[at]) else []


def _is_of_the_last(text: str, cue: Cue, end: int) -> bool:
    """By a verb ("effusion is large"), or by a comma with nothing to go on to ("effusion, large.");
    "enlargement, large effusion" goes on."""
    gap = BACK.fullmatch(text, end, cue.start)
    return gap is not None and bool(VERB.search(gap[0]) or NO_MORE.match(text, cue.end))


def _is_near(cue: Cue, claim: Claim) -> bool:
    return max(claim.start - cue.end, cue.start - claim.end) <= REACH


def _joined(text: str, stated: Sequence[Claim], at: int, step: int) -> list[Claim]:
    """Backwards, those that an "and" joins: "effusion and edema are unchanged"."""
    found = [stated[at]]
    while step < 0 and at > 0 and JOINED.fullmatch(text, stated[at - 1].end, stated[at].start):
        at -= 1
        found.append(stated[at])
    return found
