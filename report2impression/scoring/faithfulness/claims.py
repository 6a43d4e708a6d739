"""What a text claims: each finding with its side, level and size, as far as words can tell.

A mark (left, upper lobe, l4-l5, 12 mm) belongs to a finding of its statement: to the one before it
if it says where ("... in the left lower lobe"), else to the next ("left pleural effusion"), else to
whatever finding or organ the statement has. All offsets are characters of the text as given.
"""

import bisect
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from report2impression.scoring.faithfulness.clinical_terms import ANATOMY, FINDING, SIGN, words
from report2impression.scoring.faithfulness.marks import Mark, marks
from report2impression.scoring.faithfulness.negation import Statement, parse
from report2impression.scoring.placeholders import replaced
from report2impression.scoring.splitter import sentence_spans

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
# Characters: a text is read at once up to the first length, a longer one in blocks of the second.
WHOLE, BLOCK = 4_000, 1_000
ANOTHER = re.compile(
    r"\b(?:and|with|resulting in) an?\b"
)  # "... at the wrist and a right ulnar neuropathy"
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
    statement: tuple[int, int]  # characters [start, end) of the text
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
    """Parsed once per text: base, adapter and reference are held against the same reports. What
    reads without end calls `read.cache_clear()`: texts are neither kept nor piled up."""
    found: list[Mark] = []
    claims: list[Claim] = []
    loose: list[Mark] = []
    for start, end in _blocks(text):
        block = _read(text[start:end])
        if start:
            block = _moved(block, start)
        claims += block.claims
        found += block.marks
        loose += block.loose
    return Text(tuple(claims), tuple(found), tuple(loose))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Whole sentences of at most BLOCK characters together; a longer one is cut at a blank."""
    start = 0
    if len(text) > WHOLE:
        begins = [begin for begin, _ in sentence_spans(text)]
        while len(text) - start > BLOCK:
            last = begins[bisect.bisect_right(begins, start + BLOCK) - 1] if begins else 0
            blank = text.rfind(" ", start + 1, start + BLOCK)
            end = last if last > start else blank if blank > start else start + BLOCK
            yield start, end
            start = end
    yield start, len(text)


def _moved(text: Text, by: int) -> Text:
    """The same, as far into the text as its block is."""
    new: dict[int, Mark] = {}

    def move(mark: Mark) -> Mark:
        if id(mark) not in new:
            new[id(mark)] = replace(mark, start=mark.start + by, end=mark.end + by)
        return new[id(mark)]

    for claim in text.claims:
        claim.start, claim.end = claim.start + by, claim.end + by
        claim.statement = claim.statement[0] + by, claim.statement[1] + by
        claim.marks = [move(mark) for mark in claim.marks]
        claim.nearby = [move(mark) for mark in claim.nearby]
    return Text(text.claims, tuple(map(move, text.marks)), tuple(map(move, text.loose)))


def _read(text: str) -> Text:
    """One block: NegEx holds every term of a text against every denial of it."""
    found = sorted(marks(text), key=lambda mark: mark.start)
    begins = [mark.start for mark in found]
    claims: list[Claim] = []
    loose: list[Mark] = []
    for statement in parse(text):
        start, end = statement.start, statement.end
        stated = _claims(text, statement)
        here = found[bisect.bisect_left(begins, start) : bisect.bisect_left(begins, end)]
        pools = _pools(stated) if here else []
        for mark in here:
            owners = _owners(text, mark, pools)
            for claim in owners:
                claim.marks.append(mark)
            if not owners:
                loose.append(mark)
        for claim in stated:
            claim.nearby = here
        claims += stated
    return Text(tuple(claims), tuple(found), tuple(loose))


def _claims(text: str, statement: Statement) -> list[Claim]:
    if not statement.terms:
        return []
    start, end = statement.start, statement.end
    whole = text[start:end].lower()
    normal = bool(NORMAL.search(whole)) and "upper limits" not in whole
    stems = frozenset(w[:STEM] for w in WORD.findall(whole) if w not in STOP and len(w) > 2)
    claims = []
    for term in statement.terms:
        ends = [t.end for t in statement.terms if t.kind == FINDING and t.end <= term.start]
        lead = text[max(ends, default=start) : term.start].lower()
        claims.append(
            Claim(
                concept=term.concept,
                kind=term.kind,
                start=term.start,
                end=term.end,
                denied=term.denied,
                suspected=term.suspected,
                normal=normal,
                statement=(start, end),
                masked="____" in replaced(f"{lead} finding").split()[-4:-1],
                before=frozenset(WORD.findall(lead)[-6:]),
                stems=stems,
            )
        )
    return claims


def _pools(stated: list[Claim]) -> list[list[Claim]]:
    """The findings, the signs and the organs of a statement."""
    return [[c for c in stated if c.kind == kind] for kind in (FINDING, SIGN, ANATOMY)]


def _owners(text: str, mark: Mark, pools: list[list[Claim]]) -> list[Claim]:
    """The claims that a mark of their statement describes: a finding, a sign, else an organ."""
    findings, signs, organs = pools
    at = mark.start, mark.end
    return [*nearest(text, at, findings), *nearest(text, at, signs)] or nearest(text, at, organs)


def nearest(text: str, at: tuple[int, int], pool: list[Claim]) -> list[Claim]:
    """Those claims of one statement that the words text[start:end] describe."""
    if not pool:
        return []
    start, end = at
    earlier = [claim for claim in pool if claim.end <= start]
    later = [claim for claim in pool if claim.start >= end]
    last = max((claim.end for claim in earlier), default=pool[0].statement[0])
    first = min((claim.start for claim in later), default=end)
    lead, way = text[last:start].lower(), text[end:first].lower()
    lead = ANOTHER.split(lead)[-1]
    says_where = set(WORD.findall(lead)[-4:]) & WHERE or ASIDE & set(WORD.findall(way))
    if earlier and not NORMAL.search(lead) and (says_where or not later):
        return [claim for claim in earlier if claim.end == last]
    if later:
        return [claim for claim in later if claim.start == first]
    return [claim for claim in pool if claim.start < end and start < claim.end]
