"""Is a text English? Negation, the lexicon of findings and the checks built on them read English
only: in another language they would count nothing, and a table of zeros would look like praise."""

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+")
# Frequent in English reports and hardly words of German, French, Spanish, Portuguese, Italian or
# Dutch: no "in", "no", "normal", "of" (Dutch), "pleural" (Spanish), "fracture" (French).
WORDS = """the and with without there this that from for have been which within right left lung
lungs heart clear evidence seen unchanged size small chest findings bone disease bowel kidney liver
effusion unremarkable noted demonstrates"""
ENGLISH = frozenset(WORDS.split())
SHARE = 0.04  # of a text's words; in the six languages above it is nearly none
FEW = 5  # words that are too few to tell by
MOST = 0.5  # of the reports, from which on a note is due


def is_english(text: str) -> bool:
    """Also true of a few words in ASCII, and of none: there is little to misread."""
    words = WORD.findall(text.lower())
    if len(words) < FEW and text.isascii():
        return True
    return sum(word in ENGLISH for word in words) >= SHARE * len(words)


def n_not_english(texts: Iterable[str]) -> int:
    """How many are in another language."""
    return sum(not is_english(text) for text in texts)


def note_on_language(count: int, n: int) -> str:
    """One line, if most of n reports are in another language; else ""."""
    if count <= MOST * n:
        return ""
    return (
        f"{count:,} of {n:,} reports are not in English, the only language in which findings, "
        "negation and what a report supports are read: what is counted of them means nothing here"
    )
