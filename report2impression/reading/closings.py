"""Where a section ends although no heading follows: lines that belong to the report's paper.

    for start, end, is_rule in closings(report): ...   # in the order of the report
    body("No change.\\nElectronically signed by N. N.") -> "No change."

`END OF IMPRESSION` and its like, rules of underscores, dashes or equals signs, title lines (FINAL
REPORT, ADDENDUM), signatures, attestations, accession numbers and summary codes. Some count at the
start of a line only; what cannot be anything else also after a full stop, as exports lose their
line ends.
"""

import re
from collections.abc import Iterable, Iterator

_RULE = re.compile(
    r"^[^\S\n]*+(?:(?:_[ \t]?){5,}|(?:[-=~\u2013\u2014\u2015\u2500-\u257f][ \t]?){3,}"
    r"|(?:[*#+.][ \t]?){5,})[^\S\n]*$|(?<=\s)(?:_{10,}|[-=]{10,})(?=\s|$)",
    re.MULTILINE,
)
_LINE_START = re.compile(r"^[^\S\n]*+(?P<start>[^\w\s/]*+[^\S\n]*+)(?=[\w/])", re.MULTILINE)
_AFTER_STOP = re.compile(r"(?<=[.?!;)\]])(?:[ \t\xa0]++\n?|\n)\s*+(?P<start>)(?=[\w/])")

# Below a blank stands for white space within the line, and ^ for a capital letter.
_PARTS = (
    "impressions?|findings|reports?|dictation|narrative|document|note|addend(?:um|a)|"
    "exam(?:ination)?|study|transcription|message|summary|conclusions?|section|text|results?|"
    "record|transcript|interpretation|technique|comparison|history"
)
_KINDS = (
    "final|preliminary|prelim|interim|provisional|corrected|revised|amended|addended|draft|"
    "official|unofficial|radiology|radiological|imaging|diagnostic|verified|unverified|signed"
)
_DONE = (
    "dictated|transcribed|signed|authenticated|approved|verified|finali[sz]ed|interpreted|read|"
    "reviewed|reported|edited|typed|attested|validated|released|performed and interpreted"
)
_PEOPLE = "radiologist|physician|transcriptionist|resident|attending|fellow|provider"
_ROLES = (
    "attending|staff|reading|interpreting|resident|reporting|signing|dictating|responsible|"
    "consultant|supervising"
)
_PAPERS = "report|document|dictation|note|transcription"
_AT_LINE_START = (
    # END OF IMPRESSION, *** End of report ***, <END>
    rf"end (?:of )?(?:the )?(?:\w+ )?(?:{_PARTS})[^\w\n]*(?:\d[\d/:.\x20-]*)?$",
    r"(?-i:END)[^\w\n.]*$",
    # FINAL REPORT, Preliminary radiology report, ADDENDUM #2
    rf"^(?:(?:{_KINDS}) ){{1,3}}(?:report|read|reading|results?|addendum)"
    r"[^\w\n.]*(?:\d[^\n]{0,30})?[^\w\n.]*$",
    r"(?-i:(?:FINAL|PRELIMINARY|CORRECTED|REVISED|AMENDED) REPORT\b[^.a-z\n]*)$",
    r"^addend(?:um|a|ed)\b",
    r"^(?:wet|prelim(?:inary)?) read\b(?! of| as| by)",
    # Transcribed on 1/1, Attending radiologist: ..., D: 1/1/2010
    r"^(?:dictated|transcribed|signed|authenticated|approved|verified|finali[sz]ed|dictation|"
    r"transcription|signature)(?: (?:on|at|date|time|using|with|via|id)\b|[^\w\n]*:|[^\w\n]*\d)",
    r"(?:dd|dt|td|tt|d|t|d/t|t/d) ?: ?\d{1,4}[/.-]\d",
    rf"^(?:(?:{_ROLES}) )?(?:{_PEOPLE})(?:s|\(s\))?(?: of record)? ?:",
    r"cc ?: ?(?:dr\b|[\w.,\x20]{2,40}\bm\.?d\b)",
    r"(?P<name>(?-i:(?:Dr\.? )?[A-Z][\w.'-]*(?:[\x20,]+[A-Z][\w.'-]*){1,4} ?, ?(?:M\.?D|D\.?O|"
    r"M\.?B\.?B\.?S|F\.?R\.?C\.?R|Ph\.?D|P\.?A|R\.?R\.?A)\b[^a-z\n]*|"
    r"Dr\.? [A-Z][\w'-]+(?: [A-Z][\w.'-]*){0,2}\.?))$",
    # Diagnostic code: 1, MRN: 1
    r"^(?:summary|diagnos\w+|result|billing|procedure|report|exam|critical\w*|alert|icd|cpt)"
    r"(?: ?-?\d+)?(?: (?:result|cm))? codes?\b",
    r"^(?:mrn|job|order|report|document|dictation|transcription|exam|workstation|confirmation)"
    r" ?(?:id|#|no\.|number|status) ?[:#\d]",
    r"^(?:mrn|icd-?\d*|cpt) ?[:#]",
    r"^acc ?#",
)
_AT_SENTENCE = (
    r"(?-i:END OF (?:THE )?(?:[A-Z]+ )?(?:IMPRESSION|FINDINGS|REPORT|DICTATION))\b",
    # Electronically signed by ..., Read and signed by ..., /s/
    r"(?:report )?(?:electronic(?:ally)?|digital(?:ly)?|e)(?: ?- ?| )?"
    r"(?:signed|signature|authenticated|approved|verified|finali[sz]ed|reviewed)\b",
    rf"^(?:{_DONE})(?: ?(?:and|&|/|,)(?: ?\w+){{1,2}}?)?(?: (?:electronically|digitally))? by\b",
    r"/s/",
    # I have personally reviewed ...; The attending ...; This report was ...
    r"(?-i:I|WE|We),?\s+(?:[\w'.]+,?\s+){0,7}?(?:personally|attest|certify|reviewed|viewed|"
    r"examined|supervised|(?:agree|concur)\s+with\s+(?:the\s+|this\s+|these\s+)?(?:above|report|"
    r"resident\S*|preliminary|findings|interpretation|trainee\S*))\b",
    r"^(?:as\s+)?(?:the\s+|an?\s+)?(?:attending|teaching|staff)\s+(?:radiologist|physician)?"
    r"[^\n.]{0,80}\b(?:reviewed|attest\w*|agrees?|statement|present|interpreted)\b",
    r"^(?:the|these|all)\s+(?:above\s+)?(?:images?|films?|study|studies|examination|report|"
    r"interpretation)\b[^\n.]{0,60}\b(?:reviewed|interpreted|read|dictated|signed|approved)\s+"
    r"(?:and\s+\w+\s+)?by\b",
    rf"^this\s+(?:{_PAPERS})\s+(?:has\s+been|was|is|had\s+been|may\s+have\s+been)\s+(?:\w+\s+)?"
    rf"(?:{_DONE}|anonymi[sz]ed|de-?identified|electronically|generated|created|prepared|produced|"
    r"final|preliminary)\b",
    r"^this\s+(?:study|exam(?:ination)?|case)\s+(?:has\s+been|was)\s+(?:\w+\s+)?"
    r"(?:reviewed|interpreted|read|dictated)\s+(?:and\s+\w+\s+)?by\b",
    r"^(?:attestation|teaching physician|voice recognition|speech recognition)\b",
    # ACCESSION NUMBER: ...; SUMMARY: 2-ABNORMAL
    r"^accession(?: (?:number|no|#|id)| ?[#:])",
    r"(?-i:SUMMARY|Summary)(?: code)? ?:?\s*\d{1,2} ?"
    r"(?:[-:\u2013\u2014] ?(?-i:(?=[A-Z]))|(?-i:(?=NO |NORMAL|ABNORMAL|POSSIBLE|[A-Z]+\s*$)))",
)


def _compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    text = "|".join(p.replace("^", "(?-i:(?=[A-Z]))", p.startswith("^")) for p in patterns)
    text = text.replace(" ?", r"[^\S\n]*+").replace(" ", r"[^\S\n]+")
    return re.compile(text, re.IGNORECASE | re.MULTILINE)


_PLACES = (
    (_LINE_START, _compiled((*_AT_LINE_START, *_AT_SENTENCE))),
    (_AFTER_STOP, _compiled((*_AT_SENTENCE, "(?P<name>(?!))"))),
)
_COLON = re.compile(r"[^\S\n]*+:")


def closings(report: str) -> list[tuple[int, int, bool]]:
    """(start, end, is it a rule?) of each, in the order of the report."""
    return sorted({*_rules(report), *_lines(report)})


def body(text: str) -> str:
    """A section's text up to its first closing line; rules right below its heading are left out."""
    start = 0
    for first, last, is_rule in closings(text):
        if is_rule and not text[start:first].strip():
            start = last
        elif first >= start:
            return text[start:first].strip()
    return text[start:].strip()


def _rules(report: str) -> Iterator[tuple[int, int, bool]]:
    for match in _RULE.finditer(report):
        first = match.end() - len(match[0].lstrip())
        yield first, first + len(match[0].strip()), True


def _lines(report: str) -> Iterator[tuple[int, int, bool]]:
    for places, pattern in _PLACES:
        for place in places.finditer(report):
            match = pattern.match(report, place.end())
            start = place.start("start")
            if match and not (match["name"] and _goes_on(report, start)):
                end = match.start() + len(match[0].rstrip())
                colon = _COLON.match(report, end)
                yield start, colon.end() if colon else end, False


def _goes_on(report: str, start: int) -> bool:
    """Whether a line is the rest of a sentence: then a name in it is no signature."""
    before = report[max(0, start - 100) : start]
    text = before.rstrip()
    return before[len(text) :].count("\n") < 2 and bool(re.search(r"[\w,;&-]$", text))
