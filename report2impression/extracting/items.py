"""An impression as structured items: what it finds, how, where, and where the report says so.

    structure("1. 8 mm nodule in the left lower lobe, new. CT in 6 months is recommended.")
        ->  one item: a nodule (present, left, 8 mm, new) and a recommendation (CT, P6M)

Rules and the lexicon of scoring/faithfulness, no model, no torch. Pure functions of the text; any
text gives a structure, in time linear in its length. Offsets are characters of the text as given.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from report2impression.extracting.advice import TRIGGER, recommendations
from report2impression.extracting.attributes import said_of
from report2impression.extracting.parts import (
    Checks,
    Finding,
    Item,
    Span,
    Structure,
    Unsupported,
)
from report2impression.extracting.places import laterality, level, location, measurements
from report2impression.extracting.rads import assessment
from report2impression.extracting.urgency import UrgencyTable, default_table, highest
from report2impression.scoring.faithfulness import checks
from report2impression.scoring.faithfulness.claims import Claim, Text, read
from report2impression.scoring.faithfulness.clinical_terms import FINDING, GENERAL
from report2impression.scoring.splitter import item_spans, sentence_spans

ADVICE_REACH = 60  # characters: advice that opens a sentence
RULES = "2026-11"  # version of lexicon and rules: the provenance's `rules`

LONGEST = 50_000  # characters: of what follows nothing is read
LONGEST_IMPRESSION, LONGEST_SOURCE = 5_000, 40_000  # held against each other
NUMBER = re.compile(
    r"\s*(?:#?\d{1,2}[.):](?=[\sA-Z])|[-*\u2022\u2013\u25cf](?=\s)|\(?[a-h][.)](?=\s))\s*"
)
FIRST_DIGIT = re.compile(r"(?<!\S)#?\d")
BARE = re.compile(r"\s*(\d{1,2})\s+")
# A line that goes on with the one before: no number, and a small letter or no stop before it.
WRAPPED = re.compile(r"(?<=[^\s.:;!?])[ \t]*\r?\n[ \t]*(?=[a-z(])(?![a-h][.)]\s)")
RUN_ON = re.compile(r"(?<=\.),(?=\d{1,2}\.)")  # "1.Clear lungs.,2.No effusion."
GOES_ON = re.compile(
    r"\s*(?:this|these|it|they|that|findings?|which|the (?:finding|lesion|mass|nodule)|other|"
    r"differential|considerations?)\b",
    re.IGNORECASE,
)


def structure(
    impression: str, source: str | None = None, *, urgency: UrgencyTable | None = None
) -> Structure:
    """The items of one impression; with its source report also `evidence` and `checks`.

    A text that is longer than any report is (LONGEST_...) is held against nothing: no checks. Of an
    impression the first 50,000 characters are read.
    """
    text = _joined_lines(impression[:LONGEST])
    spans = list(_item_spans(text))
    said = read(_without_numbers(text, spans))
    report = None if source is None or _is_long(impression, source) else read(source)
    stated = _by_statement(said)
    findings = sorted(
        (f for group in stated for f in _findings(text, group, report)), key=lambda f: f.span
    )
    table = urgency or default_table()
    rated = [replace(finding, urgency=table.of(finding)) for finding in findings]
    return Structure(
        tuple(_items(text, impression, spans, rated)),
        highest([finding.urgency for finding in rated]),
        None if source is None or report is None else _checks(source, text, report, said),
    )


def _is_long(impression: str, source: str) -> bool:
    """Each finding is held against each of the report's: not where a text is no report."""
    return len(impression) > LONGEST_IMPRESSION or len(source) > LONGEST_SOURCE


def as_json(found: Structure) -> dict[str, Any]:
    """The schema's `items`, `urgency` and `checks`. The caller adds what it knows: `checks` say
    false and null for what the text alone does not tell. Without a source nothing was held against
    it: `supported` is false and no finding has `evidence`."""
    plain: dict[str, Any] = _plain(found)
    said = plain["checks"]
    if said is None:
        for item in plain["items"]:
            for finding in item["findings"]:
                del finding["evidence"]
    plain["checks"] = {
        "supported": said is not None and not said["unsupported"],
        "unsupported": said["unsupported"] if said else [],
        "omitted_measurements": said["omitted_measurements"] if said else 0,
        "truncated_source": False,
        "confidence": None,
    }
    return plain


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, as JSON has them."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    names = getattr(type(value), "__dataclass_fields__", None)
    return {name: _plain(getattr(value, name)) for name in names} if names else value


def _joined_lines(text: str) -> str:
    """A sentence that was wrapped stands on one line again; every offset stays."""
    text = RUN_ON.sub("\n", text)
    if text.islower():
        return text  # lines of the kind that has no stops and no capitals
    return WRAPPED.sub(lambda gap: " " * len(gap[0]), text)


def _without_numbers(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """A stop for each item's number, lest "1 8 mm nodule" be one of 1.8 mm; every offset stays."""
    parts, at = [], 0
    for start, end in spans:
        number = FIRST_DIGIT.search(text, at, start)
        first = number.start() if number else start
        parts += [text[at:first], ";".ljust(start - first) if number else "", text[start:end]]
        at = end
    return "".join([*parts, text[at:]])


def _by_statement(said: Text) -> list[list[Claim]]:
    """The claims of each statement, in order."""
    groups: dict[tuple[int, int], list[Claim]] = {}
    for claim in said.claims:
        groups.setdefault(claim.statement, []).append(claim)
    return list(groups.values())


def _findings(text: str, statement: Sequence[Claim], report: Text | None) -> Iterator[Finding]:
    stated = [claim for claim in statement if claim.kind in (FINDING, GENERAL)]
    if not stated:
        return
    for claim, said in zip(stated, said_of(text, stated), strict=True):
        support = checks.evidence(report, claim) if report else []
        yield Finding(
            term=claim.concept,
            text=text[claim.start : claim.end],
            span=Span(claim.start, claim.end),
            presence=said.presence,
            certainty=said.certainty,
            laterality=laterality(text, statement, claim),
            location=location(text, claim, statement),
            level=level(text, statement, claim),
            severity=said.severity,
            change=said.change,
            acuity=said.acuity,
            measurements=measurements(text, claim),
            codes=(),
            urgency="none",
            evidence=tuple(sorted({Span(*c.statement) for c in support})),
        )


def _items(
    text: str, written: str, spans: Sequence[tuple[int, int]], findings: Sequence[Finding]
) -> Iterator[Item]:
    """The items with the findings and advice that stand in them."""
    begins = [finding.span.start for finding in findings]
    for number, (start, end) in enumerate(spans, start=1):
        own = findings[bisect.bisect_left(begins, start) : bisect.bisect_left(begins, end)]
        named = [(finding.span.start, finding.span.end) for finding in own]
        yield Item(
            number,
            written[start:end],
            Span(start, end),
            tuple(own),
            tuple(recommendations(text, start, end, named)),
            assessment(text, start, end),
        )


def _item_spans(text: str) -> Iterator[tuple[int, int]]:
    """Numbered items without their numbers; of other lines the sentences, where one that only goes
    on (advice, "this may be ...") belongs to the sentence before it."""
    parts = item_spans(text)
    pending: tuple[int, int] | None = None
    for number, (start, end) in enumerate(parts, start=1):
        begin = _after_number(text, start, end, number, len(parts))
        cuts = [(begin, end)] if begin > start else list(_sentences(text, start, end))
        for first, last in cuts:
            if pending and begin == start and _goes_on(text, first, last):
                pending = pending[0], last
            else:
                if pending:
                    yield pending
                pending = (first, last) if first < last else None
    if pending:
        yield pending


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    return ((start + a, start + b) for a, b in sentence_spans(text[start:end]))


def _after_number(text: str, start: int, end: int, number: int, n_items: int) -> int:
    """Where the item's own words begin."""
    mark = NUMBER.match(text, start, end)
    if mark:
        return mark.end()
    bare = BARE.match(text, start, end)
    return bare.end() if bare and n_items > 1 and int(bare[1]) == number else start


def _goes_on(text: str, start: int, end: int) -> bool:
    if GOES_ON.match(text, start, end):
        return True
    advice = TRIGGER.search(text, start, end)
    return bool(advice and advice.start() - start < ADVICE_REACH)


def _checks(source: str, text: str, report: Text, said: Text) -> Checks:
    found = checks.findings(source, text, said)
    spans = [
        Unsupported("finding" if kind == "added finding" else kind, span.start, span.end)
        for kind, marked in found.items()
        for span in marked
    ]
    spans.sort(key=lambda span: (span.start, span.end, span.kind))
    return Checks(tuple(spans), checks.omitted_measurements(report, said))
