"""The sections of a free-text radiology report, with character offsets.

    for section in find_sections(report):
        section.name, report[section.start : section.end]
    text_of(report, "findings")

    report2impression sections --input report.txt           # a folder of .txt, or - for stdin

Names: findings, impression, comparison, technique, history (indication, reason for the
examination), examination; `other` for another heading; `preamble` for what stands before the first
heading; `report` for a report without headings. Spans are stripped, ascending and disjoint.

What is a heading, in the order of trust: a known word with a colon at the start of a line, in any
case, misspelt or not; a known word alone on its line; other CAPITALS with a colon at the start of a
line; a known word in CAPITALS with a colon within a line, or after a full stop in a report that is
one single line. Where a name stands in capitals, small letters do not make a heading of it. In
findings and impression, unknown capitals ("LUNGS:") are part of the text.
Where no heading says findings, the sections that are named after an examination or a part of the
body ("CT HEAD: There is ...") are the findings. Headings within page breaks, `(Over) ... (Cont)`,
do not count, and `text_of` leaves the page breaks out.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

NAMES = ("findings", "impression", "comparison", "technique", "history")
# Name -> its headings in lower case without punctuation; misspelt ones are found by likeness.
_WORDS = {
    "findings": "findings, finding, observations, report findings",
    "impression": (
        "impression, conclusion, opinion, interpretation, summary, assessment, final impression, "
        "diagnostic impression, impression and recommendation, impression and plan"
    ),
    "comparison": "comparison, comparisons, comparison study, prior studies, prior examinations",
    "technique": "technique, protocol, procedure, procedure and technique, scan technique",
    "history": (
        "history, clinical history, indication, clinical indication, clinical information, "
        "clinical data, reason for examination, reason for exam, reason for this examination, "
        "reason for study, underlying medical condition, medical condition"
    ),
    "examination": "examination, exam, study, type of examination",
    "other": (
        "recommendation, recommendations, notification, addendum, wet read, attestation, note, "
        "comment, dose, radiation dose, contrast, medication, electronically signed by, signed by, "
        "dictated by, date, final report, preliminary report, discussion, communication"
    ),
}
_NAME_OF = {word.strip(): name for name, words in _WORDS.items() for word in words.split(",")}
# "FINDINGS AND IMPRESSION", "CT FINDINGS", "COMPARISON STUDIES", "INDICATION FOR STUDY".
_STARTS = ("findings", "impression", "comparison", "technique", "indication", "clinical history")
_LIKENESS = 0.84
_MAX_WORDS = 9

_TITLE = r"[A-Za-z][A-Za-z0-9 ()/,&.'+-]{2,79}?"
_AT_LINE_START = re.compile(
    rf"^[ \t]*(?P<head>[#*_>]*[ \t]*(?P<title>{_TITLE})[ \t]*"
    r"(?:[*_]*(?P<colon>:)[*_]*|[*_]*[ \t]*\r?$))",
    re.MULTILINE,
)
_WITHIN_LINE = re.compile(
    r"(?<=[ \t])(?P<head>(?P<title>[A-Z][A-Z ]{3,40}[A-Z])(?P<colon>:))(?=\s)"
)
_AFTER_FULL_STOP = re.compile(rf"(?<=[.?!] )(?P<head>(?P<title>{_TITLE})(?P<colon>:))(?= )")
_PAGE_BREAK = re.compile(r"\(Over\).*?\(Cont\)", re.DOTALL)
_EXAMINED = re.compile(
    r"\b(CTA?|MR[IAV]?|US|ULTRASOUND|X-?RAYS?|RADIOGRAPHS?|PET|HEAD|BRAIN|NECK|CHEST|ABDOMEN|"
    r"PELVIS|SPINE|SINUS(ES)?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Section:
    """`report[start:end]` is the text, `report[heading_start:heading_end]` the heading."""

    name: str
    heading_start: int
    heading_end: int
    start: int
    end: int


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
    if any(section.name == "findings" for section in found):
        return found
    return [_as_findings(report, section) for section in found]


def text_of(report: str, name: str) -> str:
    """The text of all sections of that name, a newline between them; "" if there is none."""
    return texts_of(report).get(name, "")


def texts_of(report: str) -> dict[str, str]:
    """The text of each name in the report that has one, as `text_of` gives it."""
    parts: dict[str, list[str]] = {}
    for section in find_sections(report):
        text = _PAGE_BREAK.sub("", report[section.start : section.end]).strip()
        if text:
            parts.setdefault(section.name, []).append(text)
    return {name: "\n".join(texts) for name, texts in parts.items()}


def places_of(report: str, name: str) -> list[int]:
    """Where each character of `text_of(report, name)` stands in the report; of a newline between
    two sections, where the second one begins."""
    found: list[int] = []
    for section in find_sections(report):
        if section.name == name:
            text = report[section.start : section.end]
            kept = _without_breaks(text)
            if kept:
                found += [section.start + kept[0]] * bool(found)
                found += [section.start + place for place in kept]
    return found


def _without_breaks(text: str) -> list[int]:
    """Places of the characters outside page breaks, without white space at both ends."""
    kept: list[int] = []
    last = 0
    for match in _PAGE_BREAK.finditer(text):
        kept += range(last, match.start())
        last = match.end()
    kept += range(last, len(text))
    start = next((i for i, place in enumerate(kept) if not text[place].isspace()), len(kept))
    end = next((i for i in range(len(kept), start, -1) if not text[kept[i - 1]].isspace()), start)
    return kept[start:end]


def _as_findings(report: str, section: Section) -> Section:
    title = report[section.heading_start : section.heading_end]
    is_exam = section.name == "other" and section.end > section.start and _EXAMINED.search(title)
    return replace(section, name="findings") if is_exam else section


def _headings(report: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of each heading. The end lies behind the colon."""
    breaks = [match.span() for match in _PAGE_BREAK.finditer(report)]
    named = []
    for match, is_inner in _candidates(report):
        if not any(first <= match.start("head") < last for first, last in breaks):
            name = _name(match["title"], has_colon=bool(match["colon"]), is_inner=is_inner)
            named.append((name, match["title"].isupper(), *match.span("head")))
    in_capitals = {name for name, is_upper, _, _ in named if is_upper} & set(NAMES)
    current, last_end = "", 0
    for name, is_upper, start, end in named:
        is_text = name in in_capitals and not is_upper
        is_part = name == "unknown" and current in ("findings", "impression")
        if not name or is_text or is_part or start < last_end:
            continue
        current, last_end = "other" if name == "unknown" else name, end
        yield current, start, end


def _candidates(report: str) -> list[tuple[re.Match[str], bool]]:
    """What looks like a heading, and whether it stands within a line, in the order of the text."""
    found = [(match, False) for match in _AT_LINE_START.finditer(report)]
    found += [(match, True) for match in _WITHIN_LINE.finditer(report)]
    if "\n" not in report.strip():
        found += [(match, True) for match in _AFTER_FULL_STOP.finditer(report)]
    return sorted(found, key=lambda candidate: (candidate[0].start("head"), candidate[1]))


def _name(title: str, *, has_colon: bool, is_inner: bool) -> str:
    """The name of a heading, "unknown" for one of unknown meaning, "" for no heading."""
    words = re.sub(r"[^a-z0-9]+", " ", title.lower()).split()
    plain, is_upper = " ".join(words), title.isupper()
    if len(words) > _MAX_WORDS:
        return ""
    name = _NAME_OF.get(plain, "")
    if not has_colon:
        return name if name in NAMES and title[0].isupper() else ""
    if name:
        return name
    if name := _similar(plain):
        return name
    if not is_upper:
        return ""
    for start in _STARTS:
        if plain.startswith(start) or (start == "findings" and plain.endswith(start)):
            return _NAME_OF[start]
    return "" if is_inner else "unknown"


@cache
def _similar(plain: str) -> str:
    """The name for a misspelt heading."""
    known = [word for word in _NAME_OF if len(word) > 6]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=_LIKENESS)
    return _NAME_OF[close[0]] if close else ""


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends; at its beginning, if it is nothing else."""
    part = text[start:end]
    first = start + len(part) - len(part.lstrip())
    return (first, start + len(part.rstrip())) if part.strip() else (start, start)
