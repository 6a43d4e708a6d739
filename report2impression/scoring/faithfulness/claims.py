"""What a text claims: each finding with its side, level and size, as far as words can tell.

A mark (left, upper lobe, l4-l5, 12 mm) belongs to a finding of its statement: to the one before it
if it says where ("... in the left lower lobe"), else to the next ("left pleural effusion"), else to
whatever finding or organ the statement has. All offsets are characters of the text as given.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from report2impression.scoring.faithfulness.clinical_terms import ANATOMY, FINDING, SIGN, words
from report2impression.scoring.faithfulness.marks import Mark, marks
from report2impression.scoring.faithfulness.negation import TERMS, parse
from report2impression.scoring.placeholders import replaced

if TYPE_CHECKING:
    from spacy.tokens import Span

WHERE = words("where")
# Words after which a new thing is named: the mark before them belongs to what came earlier.
ASIDE = words("aside")
# A denial that is qualified ("no large effusion") leaves room for less than that.
QUALIFIERS = words("qualifiers")
SMALL = words("small_grades")
GRADES = SMALL | words("other_grades")
STOP = words("stop")
NORMAL = re.compile(
    r"\b(normal(ly)?|clear|unremarkable|intact|preserved|patent|maintained|symmetric\w*|"
    r"within (normal )?limits|not (enlarged|dilated|thickened)|homogeneous(ly)?|anatomic|sharp)\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[a-z][a-z-]+")
STEM = 5  # letters; hepat(ic) is not hepar, but enlarg(ed) is enlarg(ement)


@dataclass
class Claim:
    """One mention of a finding (or a sign of one, or an organ) with what is said of it."""

    concept: str
    kind: str
    start: int
    end: int
    denied: bool
    suspected: bool
    normal: bool  # its statement calls something normal
    masked: bool  # a removed word ("____") leads to it: it may have been the side
    before: frozenset[str]  # the words that lead to it
    stems: frozenset[str]  # what its statement is about
    marks: list[Mark] = field(default_factory=list)
    nearby: list[Mark] = field(default_factory=list)  # all marks of its statement

    def values(self, *kinds: str) -> frozenset[str]:
        """What its own marks say, else what its statement says without contradiction."""
        own = [mark.values for mark in self.marks if mark.kind in kinds]
        near = {mark.values for mark in self.nearby if mark.kind in kinds}
        return frozenset().union(*(own or (near if len(near) == 1 else ())))


@dataclass(frozen=True)
class Text:
    """The claims of one text, its marks, and those of them that no claim took."""

    claims: tuple[Claim, ...]
    marks: tuple[Mark, ...]
    loose: tuple[Mark, ...]

    def of_kind(self, *kinds: str) -> Iterator[Claim]:
        return (claim for claim in self.claims if claim.kind in kinds)


@functools.lru_cache(maxsize=32_768)
def read(text: str) -> Text:
    """Parsed once per text: base, adapter and reference are held against the same reports."""
    doc = parse(text)
    found = marks(text)
    spans: dict[int, list[Span]] = {}
    for span in doc.spans[TERMS]:
        spans.setdefault(span.sent.start_char, []).append(span)
    claims: list[Claim] = []
    loose: list[Mark] = []
    for sentence in doc.sents:
        start, end = sentence.start_char, sentence.end_char
        stated = _claims(text, spans.get(start, []), start, end)
        here = [mark for mark in found if start <= mark.start < end]
        for mark in here:
            owners = _owners(text, mark, stated, start)
            for claim in owners:
                claim.marks.append(mark)
            if not owners:
                loose.append(mark)
        for claim in stated:
            claim.nearby = here
        claims += stated
    return Text(tuple(claims), tuple(found), tuple(loose))


def _claims(text: str, spans: "list[Span]", start: int, end: int) -> list[Claim]:
    """The claims of the statement [start, end)."""
    whole = text[start:end].lower()
    normal = bool(NORMAL.search(whole)) and "upper limits" not in whole
    stems = frozenset(w[:STEM] for w in WORD.findall(whole) if w not in STOP and len(w) > 2)
    claims = []
    for span in spans:
        ends = [s.end_char for s in spans if s.id_ == FINDING and s.end_char <= span.start_char]
        lead = text[max(ends, default=start) : span.start_char].lower()
        claims.append(
            Claim(
                concept=span.label_,
                kind=span.id_,
                start=span.start_char,
                end=span.end_char,
                denied=span._.negated,
                suspected=span._.suspected,
                normal=normal,
                masked="____" in replaced(f"{lead} finding").split()[-4:-1],
                before=frozenset(WORD.findall(lead)[-6:]),
                stems=stems,
            )
        )
    return claims


def _owners(text: str, mark: Mark, stated: list[Claim], start: int) -> list[Claim]:
    """The claims that a mark of their statement describes: a finding, a sign, else an organ."""
    by_kind = {kind: [c for c in stated if c.kind == kind] for kind in (FINDING, SIGN, ANATOMY)}
    found = [c for kind in (FINDING, SIGN) for c in _nearest(text, mark, by_kind[kind], start)]
    return found or _nearest(text, mark, by_kind[ANATOMY], start)


def _nearest(text: str, mark: Mark, pool: list[Claim], start: int) -> list[Claim]:
    earlier = [claim for claim in pool if claim.end <= mark.start]
    later = [claim for claim in pool if claim.start >= mark.end]
    last = max((claim.end for claim in earlier), default=start)
    first = min((claim.start for claim in later), default=mark.end)
    lead, way = text[last : mark.start].lower(), text[mark.end : first].lower()
    says_where = set(WORD.findall(lead)[-4:]) & WHERE or ASIDE & set(WORD.findall(way))
    if earlier and not NORMAL.search(lead) and (says_where or not later):
        return [claim for claim in earlier if claim.end == last]
    if later:
        return [claim for claim in later if claim.start == first]
    return [claim for claim in pool if claim.start < mark.end and mark.start < claim.end]
