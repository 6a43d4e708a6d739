r"""Reports as HL7 messages carry them: the text of their OBX segments, as lines.

    from_hl7("OBX|1|TX|71020&GDT||Lungs clear.\\.br\\No effusion.||||||F") -> "FINDINGS:\nLungs ..."

`\.br\` and its like are line ends, with or without segments around. Where the field that says what
is observed (OBX-3) names a section and its text does not, that name becomes the heading. Any other
text is given back unchanged.
"""

import re

from report2impression.reading.headings import is_known, name_of, plain

_BREAK = re.compile(r"\\\.(?:br|ce|sp\d*|sk\d*|in[+-]?\d*|ti[+-]?\d*|fi|nf)\\|\\X0[AD](?:0[AD])?\\")
_SEGMENT = re.compile(r"(?:^|[\r\n])OBX\|\d*\|(?:TX|FT|ST)?\|")
_ESCAPES = {"\\F\\": "|", "\\S\\": "^", "\\T\\": "&", "\\R\\": "~", "\\E\\": "\\"}
_ESCAPE = re.compile(r"\\[FSTRE]\\|\\[HN]\\|\\[XZCM][0-9A-F]+\\")
_SUFFIXES = {"GDT": "FINDINGS", "IMP": "IMPRESSION", "ADT": "ADDENDUM", "REC": "RECOMMENDATION"}
_TEXTS = ("TX", "FT", "ST", "")


def from_hl7(report: str) -> str:
    """The report as plain lines."""
    if _SEGMENT.search(report):
        report = "\n".join(_observed(report))
    elif not _BREAK.search(report):
        return report
    return _unescaped(report)


def _observed(message: str) -> list[str]:
    """The lines of all text observations, a heading before those that change the subject."""
    lines, subject = [], ""
    for segment in re.split(r"\r\n|\r|\n", message):
        fields = segment.strip().split("|")
        if fields[0] != "OBX" or len(fields) < 6 or fields[2] not in _TEXTS:
            continue
        text = fields[5].replace("~", "\n")
        heading = _heading(fields[3])
        if heading and heading != subject and not _has_heading(_unescaped(text)):
            lines.append(f"{heading}:")
        subject = heading
        lines.append(text)
    return lines


def _heading(identifier: str) -> str:
    """The section that OBX-3 names: its suffix (71020&IMP), or one of its words."""
    for part in identifier.split("^"):
        code, _, suffix = part.partition("&")
        if suffix.upper() in _SUFFIXES:
            return _SUFFIXES[suffix.upper()]
        for word in (code, suffix):
            if is_known(word):
                return plain(word).upper()
    return ""


def _has_heading(text: str) -> bool:
    title, colon, _ = text.lstrip().partition(":")
    return bool(colon) and bool(name_of(title.strip(), has_colon=True))


def _unescaped(text: str) -> str:
    text = _BREAK.sub("\n", text)
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[0], ""), text)
