"""The sections of a free-text radiology report, with character offsets.

    for section in find_sections(report):
        section.name, report[section.start : section.end]
    texts_of(report)["findings"]

    report2impression sections --input report.txt           # a folder of .txt, or - for stdin

Names: findings, impression, comparison, technique, history (indication, reason for the
examination), examination; `other` for another heading; `preamble` for what stands before the first
heading; `report` for a report without headings. Spans are stripped, ascending and disjoint.

What is a heading, in the order of trust: a known word with a colon at the start of a line, in any
case, misspelt or not; a known word alone on its line, or before a dash; other CAPITALS with a colon
at the start of a line; a known word in CAPITALS with a colon within a line, or after a full stop in
a report that is one single line. An ordinal ("3.", "II.") before a known word belongs to it. Where
a name stands in capitals, small letters do not make a heading of it. In findings and impression,
unknown capitals ("LUNGS:") are part of the text. The words are those of `reading.headings`.
Sections also end at the lines of `reading.closings`; a rule right below a heading underlines it.
Where no heading says findings, the sections that are named after an examination or a part of the
body ("CT HEAD: There is ...") are the findings, else everything of unknown meaning before the
impression is, marked as `instead`. Headings within page breaks, `(Over) ... (Cont)`,
do not count, and `texts_of` leaves the page breaks out. Of several impressions the last that is not
empty counts: the final report follows a preliminary one, and an addendum the report.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from report2impression.reading.closings import closings
from report2impression.reading.headings import NAMES, UNKNOWN, WEAK, is_known, name_of, plain
from report2impression.reading.hl7 import from_hl7

_LETTER, _BLANK = r"[^\W\d_]", r"[^\S\n]"  # a blank may be a NBSP
_TITLE = rf"{_LETTER}(?:[^\W_]|[ \xa0()/,&.'+-]){{2,79}}?"
_DECOR = r"[#*_>=~\[|-]*+"  # Markdown, "=== FINDINGS ===", "[IMPRESSION]"
_ORDINAL = rf"(?:\(?(?:\d{{1,2}}|[IVX]{{1,4}}|[A-Z])(?:[.)\]]+|{_BLANK}*+-(?=\s)){_BLANK}*+)"
_COLON = rf"{_BLANK}*+[*_=\]]*+{_BLANK}*+[:\uff1a][*_\]]*(?:-(?=\s))?"
_DASH = rf"{_BLANK}*+(?:-+(?=\s)|(?<=\s)-+|--+|[\u2010-\u2015\u2212]+)"
_AT_LINE_START = re.compile(
    rf"^{_BLANK}*+(?P<head>{_DECOR}{_BLANK}*+(?P<ordinal>{_ORDINAL})?(?P<title>{_TITLE})"
    rf"(?:(?P<colon>{_COLON})|{_BLANK}*+[*_=~\]|-]*+{_BLANK}*+$))",
    re.MULTILINE,
)
_BEFORE_DASH = re.compile(
    rf"^{_BLANK}*+(?P<head>(?P<ordinal>{_ORDINAL})?(?P<title>{_TITLE})(?P<dash>{_DASH}))",
    re.MULTILINE,
)
_WITHIN_LINE = re.compile(
    rf"(?<=[ \t\xa0])(?P<head>(?P<ordinal>(?<=[.?!;)] ){_ORDINAL})?"
    rf"(?P<title>[A-Z][A-Z ]{{3,40}}[A-Z])(?P<colon>{_BLANK}*+:))(?=\s)"
)
_AFTER_FULL_STOP = re.compile(
    rf"(?<=[.?! ] )(?P<head>(?P<ordinal>{_ORDINAL})?(?P<title>{_TITLE.replace('.', '', 1)})"
    rf"(?P<colon>{_BLANK}*+:))(?=\s)"
)
_RULE, _WORDED = "rule", frozenset((*NAMES, "examination"))
_MAX_HINT_WORDS = 4
_LEAST_WORDS = 5  # a preamble of fewer is a title
_PAGE_MARK = re.compile(r"\((?:Over|Cont)\)")
_EXAMINED = re.compile(
    r"\b(CTA?|MR[IAV]?|US|ULTRASOUND|X-?RAYS?|RADIOGRAPHS?|PET|HEAD|BRAIN|NECK|CHEST|ABDOMEN|"
    r"PELVIS|SPINE|SINUS(ES)?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Section:
    """`report[start:end]` is the text, `report[heading_start:heading_end]` the heading; `instead`:
    no heading says so, it stands in for the findings."""

    name: str
    heading_start: int
    heading_end: int
    start: int
    end: int
    instead: bool = False


def find_sections(report: str) -> list[Section]:
    """All sections in the order of the report; empty for a report of white space."""
    headings = list(_headings(report))
    if not headings:
        start, end = _stripped(report, 0, len(report))
        return [Section("report", start, start, start, end)] if end > start else []
    found = []
    start, end = _stripped(report, 0, headings[0][1])
    if end > start:
        found.append(Section("preamble", start, start, start, end))
    ends = [start for _, start, _ in headings[1:]] + [len(report)]
    for (name, title_start, title_end), next_start in zip(headings, ends, strict=True):
        span = _stripped(report, title_end, next_start)
        found.append(Section(name, title_start, title_end, *span))
    found = _without_weak(report, found)
    if not any(section.name == "findings" for section in found):
        found = [_as_findings(report, section) for section in found]
    if not any(section.name == "findings" for section in found):
        found = _instead(report, found)
    return found


def texts_of(report: str) -> dict[str, str]:
    """The text of each name in the report that has one, as `chosen` of all."""
    return chosen(all_texts_of(report))


def chosen(every: dict[str, list[str]]) -> dict[str, str]:
    """Of several impressions the last; of other sections of one name all, a newline between."""
    return {
        name: texts[-1] if name == "impression" else "\n".join(texts)
        for name, texts in every.items()
    }


def all_texts_of(report: str) -> dict[str, list[str]]:
    """The texts of each name, page breaks left out, empty sections not counted; an HL7 message is
    unpacked."""
    report = from_hl7(report)
    return texts_in(report, find_sections(report))


def texts_in(report: str, sections: Iterable[Section]) -> dict[str, list[str]]:
    """The same of sections that were found."""
    parts: dict[str, list[str]] = {}
    for section in sections:
        text = report[section.start : section.end]
        text = "".join(text[place] for place in _kept_places(text))
        if text:
            parts.setdefault(section.name, []).append(text)
    return parts


def unknown_headings(report: str) -> set[str]:
    """The words, in capitals, of what looks like a heading of unknown meaning: few words without
    digits at the start of a line, before a colon or a dash."""
    found = set()
    for pattern, mark in ((_AT_LINE_START, "colon"), (_BEFORE_DASH, "dash")):
        for match in pattern.finditer(report):
            title = match["title"].strip().upper()
            is_short = len(title.split()) <= _MAX_HINT_WORDS and not re.search(r"\d", title)
            if match[mark] and is_short and name_of(title, has_colon=True) == UNKNOWN:
                found.add(title)
    return found


def _without_weak(report: str, sections: list[Section]) -> list[Section]:
    """A summary or interpretation is no impression where another heading says impression; it is the
    findings where none says findings."""
    titles = [plain(report[s.heading_start : s.heading_end]) for s in sections]
    is_weak = [
        s.name == "impression" and title.lstrip("0123456789 ") in WEAK
        for s, title in zip(sections, titles, strict=True)
    ]
    strong = [
        s for s, weak in zip(sections, is_weak, strict=True) if s.name == "impression" and not weak
    ]
    if not any(s.end > s.start for s in strong):
        weak = [i for i, is_one in enumerate(is_weak) if is_one]
        if len({titles[i] for i in weak}) < 2:
            return sections
        is_weak[weak[-1]] = False  # SUMMARY, then INTERPRETATION
    has_findings = any(s.name == "findings" for s in sections)
    instead = "other" if has_findings else "findings"
    pairs = zip(sections, is_weak, strict=True)
    return [replace(s, name=instead) if weak else s for s, weak in pairs]


def places_of(report: str, name: str) -> list[int]:
    """Where each character of `texts_of(report)[name]` stands in the report, of an HL7 message in
    what it is unpacked to; a newline between two sections stands where the second begins."""
    report = from_hl7(report)
    found: list[int] = []
    for section in find_sections(report):
        kept = _kept_places(report[section.start : section.end]) if section.name == name else []
        if kept and name == "impression":
            found = []  # of several the last one counts
        if kept:
            found += [section.start + kept[0]] * bool(found)
            found += [section.start + place for place in kept]
    return found


def _kept_places(text: str) -> list[int]:
    """Places of the characters outside page breaks, without white space at both ends."""
    kept: list[int] = []
    last = 0
    for start, end in page_breaks(text):
        kept += range(last, start)
        last = end
    kept += range(last, len(text))
    first = next((i for i, place in enumerate(kept) if not text[place].isspace()), len(kept))
    end = next((i for i in range(len(kept), first, -1) if not text[kept[i - 1]].isspace()), first)
    return kept[first:end]


def _as_findings(report: str, section: Section) -> Section:
    title = report[section.heading_start : section.heading_end]
    is_exam = section.name == "other" and section.end > section.start and _EXAMINED.search(title)
    return replace(section, name="findings") if is_exam else section


def _instead(report: str, sections: list[Section]) -> list[Section]:
    """What stands before the impression, and says of no known section, is the findings."""
    last = next((s for s in sections if s.name == "impression" and s.end > s.start), None)
    if last is None:
        return sections
    return [
        replace(s, name="findings", instead=True)
        if _may_be_findings(report, s, is_before=s.start < last.start)
        else s
        for s in sections
    ]


def _may_be_findings(report: str, section: Section, *, is_before: bool) -> bool:
    if section.name not in ("preamble", "other"):
        return False
    title = report[section.heading_start : section.heading_end].strip(" :")
    is_meant = is_before and (not title or name_of(title, has_colon=True) == UNKNOWN)
    is_long = report.count(" ", section.start, section.end) >= _LEAST_WORDS
    return is_long and (is_meant or plain(title) in WEAK)


def _headings(report: str) -> list[tuple[str, int, int]]:
    """(name, start, end) of each heading and closing line. The end lies behind the colon."""
    candidates = [*_closings(report), *_named(report)]
    in_capitals = {name for name, is_upper, _, _ in candidates if is_upper} & set(NAMES)
    found: list[tuple[str, int, int]] = []
    current, last_end = "", 0
    for name, is_upper, start, end in sorted(candidates, key=lambda candidate: candidate[2]):
        is_text = name in in_capitals and not is_upper
        is_part = name == UNKNOWN and current in ("findings", "impression")
        if is_text or is_part or start < last_end:
            continue
        last_end = end
        if name == _RULE and found and not report[found[-1][2] : start].strip():
            found[-1] = (*found[-1][:2], end)  # it underlines the heading
            continue
        current = name if name in _WORDED else "other"
        found.append((current, start, end))
    return found


def _closings(report: str) -> Iterator[tuple[str, bool, int, int]]:
    breaks = page_breaks(report)
    for start, end, is_rule in closings(report):
        if not _is_within(breaks, start):
            yield _RULE if is_rule else "other", True, start, end


def _named(report: str) -> Iterator[tuple[str, bool, int, int]]:
    """(name, is it in capitals?, start, end) of what may be a heading."""
    breaks = page_breaks(report)
    for match, is_inner in _candidates(report):
        title, marks = match["title"], match.groupdict()
        name = name_of(title, has_colon=bool(marks.get("colon")), is_inner=is_inner)
        ordinal = marks.get("ordinal") or ""
        if marks.get("dash"):
            name = name if is_known(title) else ""
        elif re.search(r"\d|\(", ordinal) and name not in NAMES:
            name = ""  # an item of a list
        if name and not _is_within(breaks, match.start("head")):
            yield name, title.isupper(), *match.span("head")


def page_breaks(report: str) -> list[tuple[int, int]]:
    """From each `(Over)` to the `(Cont)` that follows it, in the order of the report."""
    found: list[tuple[int, int]] = []
    start = -1
    for mark in _PAGE_MARK.finditer(report):
        if mark[0] == "(Over)":
            start = mark.start() if start < 0 else start
        elif start >= 0:
            found.append((start, mark.end()))
            start = -1
    return found


def _is_within(breaks: list[tuple[int, int]], place: int) -> bool:
    before = bisect_right(breaks, place, key=lambda span: span[0])
    return before > 0 and place < breaks[before - 1][1]


def _candidates(report: str) -> list[tuple[re.Match[str], bool]]:
    """What looks like a heading, and whether it stands within a line, in the order of the text."""
    patterns = [(_AT_LINE_START, False), (_BEFORE_DASH, False), (_WITHIN_LINE, True)]
    if "\n" not in report.strip():
        patterns.append((_AFTER_FULL_STOP, True))
    found = [(match, inner) for pattern, inner in patterns for match in pattern.finditer(report)]
    return sorted(found, key=lambda candidate: (candidate[0].start("head"), candidate[1]))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends; at its beginning, if it is nothing else."""
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    return (first, start + len(part.rstrip())) if part.strip() else (start, start)
