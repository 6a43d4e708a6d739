"""What an impression advises: which study, in what time, on what condition."""

import bisect
import re
from collections.abc import Iterator, Sequence

from report2impression.extracting.parts import Recommendation, Span
from report2impression.scoring.splitter import sentence_spans

STUDIES = (
    r"(?:c\.?t\.?|mri?|ultraso\w+|radiogra\w+|x-?ray\w*|films?|biops\w+|mammogra\w+|pet|scan\w*|"
    r"colonoscop\w+|endoscop\w+|angiogra\w+|echocardiogra\w+|imaging|stud(?:y|ies)|views?)"
)
DONE = (
    r"(?:suggested|advised|indicated|warranted|considered|necessary|needed|obtained|performed|done)"
)
CARE = (
    r"(?:follow|clinical|correlat\w+|further|repeat|evaluat\w+|consult\w*|referral|comparison|exam)"
)
WITHIN = r"(?=\s+(?:[\w-]+\s+){0,4}?"  # the next few words lead to ...
TRIGGER = re.compile(
    r"\b(?:recommend(?:ed|s|ations?|ing)?|"
    rf"(?:is|are|be|also) (?:{DONE}|helpful|useful|of value|of benefit|beneficial)|"
    rf"(?:suggest|advise|consider){WITHIN}(?:{STUDIES}\b|{CARE}))|"
    r"should (?:be|undergo|have)|"
    rf"follow[\s-]?up{WITHIN}(?:{STUDIES}\b|{DONE}|in \w|to\b|as clinically))|"
    r"correlat(?:e|ion)(?=\s+(?:with|clinically|for|is(?! made)|would|advised)\b|[.,;]|\s*$)|"
    r"(?:please|could|may|can) (?:correlate|obtain|perform))\b",
    re.IGNORECASE,
)
# These advise only where they speak of a study or of care: "is seen and could be a cyst" does not.
NEEDS_STUDY = re.compile(r"(?:is|are|be|also) |should|please|could|may|can", re.IGNORECASE)
MODALITIES: tuple[tuple[str, str], ...] = (
    ("MRCP", r"mrcp"),
    ("PET/CT", r"pet(?:[/ -]?ct)?(?: scan\w*)?|positron emission tomograph\w+"),
    ("CT angiography", r"cta|ct angiogra\w+"),
    ("MR angiography", r"mra|mr angiogra\w+"),
    ("angiography", r"angiogra\w+"),
    ("CT", r"(?:hr|low[\s-]dose )?c\.?t\.?(?: scan\w*)?|cat scan\w*|computed tomograph\w+"),
    ("MRI", r"mri?|magnetic resonance(?: imaging)?"),
    ("ultrasound", r"ultraso(?:und|nogra\w+)|sonogra\w+|us|doppler"),
    ("mammography", r"mammogra\w+|spot compression(?: views?)?|magnification views?"),
    ("biopsy", r"biops\w+|fine needle aspiration|fna|tissue sampling|aspiration"),
    ("echocardiography", r"echocardiogra\w+|echo"),
    ("bone scan", r"(?:nuclear |radionuclide )?bone scan\w*|scintigra\w+"),
    ("radiography", r"radiogra\w+|x-?rays?(?: views?)?|plain films?|chest films?|cxr|kub|films?"),
    ("endoscopy", r"endoscop\w+|colonoscop\w+|cystoscop\w+|bronchoscop\w+|egd|sigmoidoscop\w+"),
    ("densitometry", r"dxa|dexa|bone densitometry"),
)
MODALITY = re.compile(
    r"\b(?:" + "|".join(f"({pattern})" for _, pattern in MODALITIES) + r")(?!\w)", re.IGNORECASE
)
STUDY = re.compile(
    r"\b(?:follow[\s-]?up|correlat\w+|imaging|views?|studies|study|evaluation|examination|exam|"
    r"consult\w+|referral|work[\s-]?up|comparison|surveillance|drainage|aspiration|assessment|"
    r"repeat|screening|investigation)\b",
    re.IGNORECASE,
)
NUMBERS = {
    word: n
    for n, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
         "twelve"),
        start=1,
    )
}  # fmt: skip
_COUNT = rf"(?:\d{{1,3}}|{'|'.join(NUMBERS)}|an?)"
INTERVAL = re.compile(
    rf"\b(?P<n>{_COUNT})(?:\s*(?:-|to|or|\u2013)\s*{_COUNT})?[\s-]*"
    rf"(?P<unit>hour|day|week|wk|month|mo|year|yr)s?\b(?![\s-]*(?:old|ago))|"
    r"\b(?P<every>annual(?:ly)?|yearly)\b",
    re.IGNORECASE,
)
ISO = {"h": "PT{}H", "d": "P{}D", "w": "P{}W", "m": "P{}M", "y": "P{}Y"}
CONDITION = re.compile(
    r"\bas\s+clinically\s+(?:indicated|warranted|needed|necessary)|"
    r"\b(?:if|unless|in case|depending on|when(?=\s+clinically))\b[^.;,]*",
    re.IGNORECASE,
)
LEADING = re.compile(
    r"(?:[\s,;:(-]|\b(?:for which|and|but|which|that|so|therefore|a|an|the|with|however)\b)*",
    re.IGNORECASE,
)
END = re.compile(r"[\s.;,:)]*\Z")


def recommendations(
    text: str, start: int, end: int, named: Sequence[tuple[int, int]]
) -> Iterator[Recommendation]:
    """Of the item text[start:end]; `named` are its findings' spans, at most one for a sentence."""
    for first, last in sentence_spans(text[start:end]):
        found = _advised(text, start + first, start + last, named)
        if found:
            yield found


def _advised(
    text: str, start: int, end: int, named: Sequence[tuple[int, int]]
) -> Recommendation | None:
    of_a_study = bool(MODALITY.search(text, start, end) or STUDY.search(text, start, end))
    for trigger in TRIGGER.finditer(text, start, end):
        if NEEDS_STUDY.match(trigger[0]) and not of_a_study:
            continue
        begin = _begin(text, start, trigger, named)
        modality = MODALITY.search(text, begin, end)
        span = Span(begin, begin + len(END.sub("", text[begin:end])))
        interval = INTERVAL.search(text, span.start, span.end)
        condition = CONDITION.search(text, span.start, span.end)
        return Recommendation(
            text[span.start : span.end],
            MODALITIES[(modality.lastindex or 1) - 1][0] if modality else None,
            _iso(interval) if interval else None,
            condition[0].strip() if condition else None,
            span,
        )
    return None


def _begin(text: str, start: int, trigger: re.Match[str], named: Sequence[tuple[int, int]]) -> int:
    """After the last finding that stands before the trigger, and after what leads over."""
    near = named[bisect.bisect_left(named, (start, start)) :]
    near = near[: bisect.bisect_left(near, (trigger.start(), 0))]
    ends = [last for _, last in near if last <= trigger.start()]
    studies = [m.start() for m in MODALITY.finditer(text, start, trigger.start())]
    begin = max((e for e in ends if not studies or e <= studies[0]), default=start)
    lead = LEADING.match(text, begin, trigger.start())
    return lead.end() if lead else begin


def _iso(match: re.Match[str]) -> str:
    """The earlier end of a range."""
    if match["every"]:
        return "P1Y"
    number = match["n"].lower()
    n = 1 if number in {"a", "an"} else NUMBERS.get(number) or int(number)
    return ISO[match["unit"][0].lower()].format(n)
