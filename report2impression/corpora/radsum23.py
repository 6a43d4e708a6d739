"""The rules of the RadSum23 / MIMIC-RRS pairs: one radiology note in, (findings, impression) out.

`radsum23` follows the published builder to the letter, with its defects; `corrected` mends them.
The tables (examinations of each group, spellings of headings, findings headings in order of
preference, counts and MD5 sums of the published split) are in radsum23.json beside this file; they
come from jbdel/vilmedic, data/make_datasets/mimiciii (MIT), and hold no text of any report.

The order defect: the builder takes the name of the impression out of the list of headings but
leaves its text in the list of texts, so each heading after the impression gets the text of the
section before its own. Where the impression stands before the findings, the "findings" are the
impression or whatever else stands before.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from report2impression.reading import closings

Mode = Literal["radsum23", "corrected"]
Style = Literal["plain", "hub"]
TABLES = Path(__file__).with_name("radsum23.json")

NO_REPORT = "no FINAL REPORT"
PAGE_BREAK = "malformed note: (Cont) before (Over)"
NO_IMPRESSION = "no impression"
TWO_IMPRESSIONS = "more than one impression"
NO_FINDINGS = "no findings"
EMPTY_IMPRESSION = "empty impression"
SAME_TEXTS = "findings equal impression"

_TITLE = "FINAL REPORT"
_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s")
# What `corrected` also takes for a heading: these words behind an ordinal, before a dash or a NBSP.
_WORDS = (
    "IMPRESSIONS?|CONCLUSIONS?|FINDINGS|COMPARISONS?|TECHNIQUE|INDICATIONS?|(?:CLINICAL )?HISTORY"
)
_ORDINAL = r"\(?(?:\d{1,2}|[IVX]{1,4})[.)]+[ \xa0]*"
_DASH = r"[ \xa0]*[-\u2013\u2014]+\s"
_CORRECTED = re.compile(
    rf"\n (?:(?:{_ORDINAL})?({_WORDS})(?:{_DASH}|\xa0+:\s)|{_ORDINAL}({_WORDS}):\s|"
    r"([A-Z ()/,-]+):\s)"
)
_PAGE_BREAK = re.compile(r"\(Over\).*?\(Cont\)", re.DOTALL)
_PLACEHOLDER = re.compile(r"\[\*\*(.*?)\*\*\]")
_UNDERSCORES = re.compile("_{3,}")
_APOSTROPHE = re.compile("['\u2019]")
_PUNCTUATION = re.compile(r"[^\w\s]")


@dataclass(frozen=True)
class Tables:
    """radsum23.json, turned round for look-ups."""

    groups: tuple[str, ...]  # in the order of the builder
    split_groups: tuple[str, ...]  # train, validation and test, in the order of the shuffles
    test_groups: tuple[str, ...]  # test only
    group_of: dict[str, str]  # DESCRIPTION -> group
    name_of: dict[str, str]  # spelling of a heading -> its name
    findings_headings: dict[str, tuple[str, ...]]  # group -> names, best first
    n_reports: dict[str, int]  # published counts
    n_pairs: dict[str, int]
    md5: dict[str, str]  # "<group>_<split>_<findings|impression>" -> sum of the published file


@cache
def tables() -> Tables:
    raw = json.loads(TABLES.read_text(encoding="utf-8"))
    counts = raw["expected_counts"]
    synonyms = raw["heading_synonyms"].items()
    exams = raw["exam_descriptions"]
    return Tables(
        groups=tuple(exams),
        split_groups=tuple(raw["groups_train_val_test"]),
        test_groups=tuple(raw["groups_test_only"]),
        group_of={exam: group for group, names in exams.items() for exam in names},
        name_of={spelling: name for name, spellings in synonyms for spelling in spellings},
        findings_headings={g: tuple(names) for g, names in raw["findings_headings"].items()},
        n_reports={group: row["reports_matching_description"] for group, row in counts.items()},
        n_pairs={group: row["suitable_pairs"] for group, row in counts.items()},
        md5=raw["md5"],
    )


def pair_of(note: str, group: str, mode: Mode, style: Style = "plain") -> tuple[str, str] | str:
    """The (findings, impression) of a note of that group, or the reason why it has none."""
    body = report_body(note, mode)
    if body in (NO_REPORT, PAGE_BREAK):
        return body
    names, texts = sections(body, mode)
    if names.count("impression") != 1:
        return TWO_IMPRESSIONS if "impression" in names else NO_IMPRESSION
    place = names.index("impression")
    impression = _clean(texts[place], mode)
    names.remove("impression")
    if mode == "corrected":
        del texts[place]
    findings = _first_findings(names, texts, group, mode)
    if not findings:
        return NO_FINDINGS
    pair = restyle(findings, style), restyle(impression, style)
    return (_problem(*pair) or pair) if mode == "corrected" else pair


def report_body(note: str, mode: Mode) -> str:
    """The note from its first FINAL REPORT on, without page breaks; or NO_REPORT or PAGE_BREAK.

    The builder cuts from the first `(Over)` to the first `(Cont)`. Where these stand the other way
    round it would never end: such a note is in none of its files (PAGE_BREAK). The corrected mode
    cuts from each `(Over)` to the `(Cont)` that follows it.
    """
    start = note.find(_TITLE)
    if start < 0:
        return NO_REPORT
    body = note[start:]
    if mode == "corrected":
        return _PAGE_BREAK.sub("", body)
    while (over := body.find("(Over)")) >= 0 and (cont := body.find("(Cont)")) >= 0:
        if cont < over:
            return PAGE_BREAK
        body = body[:over] + body[cont + len("(Cont)") :]
    return body


def sections(body: str, mode: Mode = "radsum23") -> tuple[list[str], list[str]]:
    """(names, raw texts) of the preamble and of each heading, in the order of the report.

    A heading begins at a newline, so a second one on the same line is text; and as it takes the
    white space behind its colon, to the builder one on the line directly below an empty heading is
    text too. `_clean` ends a section at its closing line in the corrected mode.
    """
    heading = _CORRECTED if mode == "corrected" else _HEADING
    match = heading.search(body)
    if not match:
        return ["full report"], [body]
    names, texts = ["preamble"], [body[len(_TITLE) : match.start()]]
    while match:
        title, start = match[match.lastindex or 0].lower(), match.end()
        following = heading.search(body, start)
        names.append(tables().name_of.get(title, title))
        texts.append(body[start : following.start() if following else len(body)])
        match = following
    return names, texts


def _first_findings(names: list[str], texts: list[str], group: str, mode: Mode) -> str:
    """The text of the best heading that is there and not empty, or ""."""
    for heading in tables().findings_headings[group]:
        if heading not in names:
            continue
        # The builder sees only the first section of a name; a second one may hold the text.
        last = len(names) if mode == "corrected" else names.index(heading) + 1
        for name, text in zip(names[:last], texts, strict=False):
            if name == heading and (findings := _clean(text, mode)):
                return findings
    return ""


def _clean(text: str, mode: Mode) -> str:
    """One line in lower case, placeholders as `___`. The builder drops newlines, which glues the
    last word of a line to the first of a line without indentation. The corrected mode ends it at
    the first closing line, as `reading.sections` does."""
    text = (closings.body(text) if mode == "corrected" else text).strip().lower()
    if mode == "radsum23":
        text = text.replace("\n", "")
    text = " ".join(text.split())  # what `\s+` matches, faster
    if mode == "corrected":
        return _PLACEHOLDER.sub("___", text)
    # One after the other, each everywhere: a mark may be gone when its turn comes, and stays.
    for inner in _PLACEHOLDER.findall(text):
        text = text.replace(f"[**{inner}**]", "___")
    return text


def restyle(text: str, style: Style) -> str:
    """`hub`: the look of the copy on the hub: no punctuation, placeholders as `____`.

    Punctuation becomes a space, so that "1.5" does not become "15"; apostrophes just go.
    """
    if style == "plain":
        return text
    text = _PUNCTUATION.sub(" ", _APOSTROPHE.sub("", text))
    return " ".join(_UNDERSCORES.sub(" ____ ", text).split())


def _problem(findings: str, impression: str) -> str:
    if not findings:
        return NO_FINDINGS
    if not impression:
        return EMPTY_IMPRESSION
    return SAME_TEXTS if findings == impression else ""
