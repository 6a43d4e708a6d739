"""The RADS category of an item, only where it is written: never inferred."""

import re

from report2impression.extracting.parts import Assessment, Span

BETWEEN = (
    r"[\s:#,-]*(?:(?:final|assessment|category|cat|code|class|score|level|v(?:ersion)?\s?[\d.]+)\b"
    r"[\s:#,.]*)*"
)
CATEGORIES: dict[str, tuple[str, str]] = {  # how the system is called, and its categories
    "BI-RADS": (r"bi-?rads?", r"0|1|2|3|4\s?[abc]|4|5|6"),
    "Lung-RADS": (r"lung-?\s?rads?", r"0|1|2|3|4\s?[abx]|4"),
    "LI-RADS": (r"li-?rads?(?:[\s:]*lr)?|lr(?=-)", "nc|1|2|3|4|5v?|m|tiv"),
    "PI-RADS": ("pi-?rads?", "[1-5]"),
    "TI-RADS": (r"(?:acr )?ti-?rads?(?:[\s:]*tr)?", "[1-5][abc]?"),
    "O-RADS": (r"o-?rads?(?:\s(?:us|mri))?", "[0-5]"),
    "C-RADS": ("c-?rads?", r"[ce]\s?[0-5][ab]?"),
}
PATTERNS = {
    system: re.compile(rf"\b(?:{name}){BETWEEN}({category})(?!\w|\.\d)", re.IGNORECASE)
    for system, (name, category) in CATEGORIES.items()
}


def assessment(text: str, start: int, end: int) -> Assessment | None:
    """The first RADS category written in text[start:end]."""
    matches = ((system, p.search(text, start, end)) for system, p in PATTERNS.items())
    found = [(m.start(), system, m) for system, m in matches if m]
    if not found:
        return None
    _, system, match = min(found, key=lambda f: f[0])
    return Assessment(system, "".join(match[1].upper().split()), Span(*match.span()))
