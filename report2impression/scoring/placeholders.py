"""Marks of removed words, whatever a data set's tool writes for them; the only place that knows.

    count("seen by [**Name**], told to <HCW>") -> 2
    replaced("seen by XXXX") -> "seen by  ____ "

Where brackets may also hold words of a report ("[sic]", "(removed)", "<4 mm"), only names of what
is removed count. Lines of asterisks are rules, and "*** FINAL ***" is a title.
"""

import re
from collections.abc import Iterator

_REMOVED = (
    "redacted|de-?identified|anonymi[sz]ed|pseudonymi[sz]ed|masked|phi|pii|withheld|"
    "names? (?:withheld|removed|omitted|redacted|deleted)"
)
# What is removed. In angle, square and curly brackets one or several of them, with numbers.
_THINGS = (
    rf"{_REMOVED}|removed|deleted|hidden|censored|names?|surname|initials|person|people|patients?|"
    "doctors?|dr|md|physicians?|providers?|radiologists?|technologists?|nurses?|clinicians?|staff|"
    "hcw|vendor|hospitals?|facility|institution|institute|clinic|department|ward|unit|room|company|"
    "organi[sz]ation|org|loc|location|place|address|street|city|town|county|state|country|zip|"
    "zip ?code|phone|telephone|tel|fax|pager|beeper|email|e-mail|url|date|dates|day|month|year|"
    "time|dob|birth|birthday|age|age ?> ?89|mrn|id|idnum|ssn|account|accession|license|device|"
    "serial|number|no|num|user(?:name)?|contact|profession|relative|family|per|gpe|anon"
)
_LIST = rf"(?:\b(?:{_THINGS}|of|the|first|last|full|middle|other|type|x{{2,}}|\d+)\b[\s_/:.,#'-]*)+"
_WITH_THING = rf"(?=[^\[\](){{}}<>\n]*\b(?:{_THINGS}))"
_PATTERN = re.compile(
    "|".join(
        (
            r"\[\*\*.*?\*\*\]",
            r"\*\*[A-Z][A-Z_-]*(?:\[[^\[\]\n]{0,60}\]|<[^<>\n]{0,60}>)(?:\*\*)?",  # **NAME[AAA]
            r"\bx{4,}\b|_{2,}",
            r"[\u2588\u25a0\u25ae\u2593]{2,}",  # blacked out
            r"\{\{[^{}\n]{1,60}\}\}",
            r"(?P<around>@{2,}|%{2,}|#{2,}|~{2,}|\${2,})[A-Za-z][\w -]{0,40}(?P=around)",
            r"(?-i:@[A-Z][A-Z_]{2,30}@)",
            r"<phi\b[^<>\n]{0,60}>|</phi>",
            rf"<(?:{_LIST})/?>",
            r"(?-i:<(?!/?(?:BR|HR|LI|UL|OL|TD|TR|TH|DIV|SPAN|PRE|TABLE|BODY|HTML)\b)"
            r"[A-Z][A-Z_-]+[ _-]?\d*/?>)",
            rf"\[\s*{_WITH_THING}{_LIST}\]",
            rf"\{{\s*{_WITH_THING}{_LIST}\}}",
            rf"\(\s*(?:(?:{_REMOVED})[\s_-]*\d*|(?-i:NAME|DATE|MRN|PATIENT NAME|HCW))\s*\)",
            r"(?<![*\w])(?P<stars>\*{3,})(?![*\w])",
            r"(?<=[^\w\n#])#{3,}(?=[\s.,;:)]|$)",
        )
    ),
    re.IGNORECASE,
)
# A cheap look first: most texts have none, and the pattern is slow.
_SIGNS = re.compile(r"[\[<{@%#~$(\u2588\u25a0\u25ae\u2593]|__|\*\*|xxxx", re.IGNORECASE)


def has(text: str) -> bool:
    """Whether some word was removed."""
    return next(_found(text), None) is not None


def count(text: str) -> int:
    """How many marks there are."""
    return sum(1 for _ in _found(text))


def replaced(text: str) -> str:
    """The text with one sign for all of them."""
    parts, last = [], 0
    for start, end in _found(text):
        parts += [text[last:start], " ____ "]
        last = end
    return "".join((*parts, text[last:])) if parts else text


def _found(text: str) -> Iterator[tuple[int, int]]:
    if not _SIGNS.search(text):
        return
    for match in _PATTERN.finditer(text):
        if not (match["stars"] and _decorates(text, match)):
            yield match.span()


def _decorates(text: str, match: re.Match[str]) -> bool:
    """Whether asterisks are a rule, or stand around a title on a line of its own."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    line = text[start : end if end >= 0 else len(text)].strip()
    inner = line.strip("* ")
    is_around = line.startswith("***") and line.endswith("***") and inner == inner.upper()
    return not inner or is_around
