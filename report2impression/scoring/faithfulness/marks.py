"""Sides, levels and measurements in a text, as values that can be compared.

    "2.1 x 1.4 cm at l4-5 on the left"  ->  length 21 and 14 (mm), level l4-l5, side left

Reports of the RadSum kind have lost their decimal points: "4 3 x 2 8 cm" is read both as 4.3 x 2.8
and as 3 x 8. A decimal comma is a decimal point, and ".5" is 0.5. A level is a vertebra, a pair of
them, a lobe or zone, a lobe of the brain, or a rib.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

SIDE, LEVEL, SIZE, PAIR = "side", "level", "size", "pair"
LEFT_RIGHT = frozenset(("left", "right"))

SIDES = re.compile(
    r"\b(?:(?P<left>left|leftward|lll|lul|lingular?)|(?P<right>right|rightward|rll|rul|rml)|"
    r"(?P<both>bilateral(?:ly)?|both(?=(?:\s+\w+)?\s+\w+s\b)|bi(?:basilar|basal|apical|hilar)))\b"
    r"(?!\s+(?:lateral\s+)?decubitus)",
    re.IGNORECASE,
)
# Both sides as a report may mean them; in an impression they state no side.
PAIRS = re.compile(
    r"\b(bases|apices|lungs|(?:lower|upper) lobes|costophrenic (?:angles|sulci)|hemidiaphragms|"
    r"effusions|hila|kidneys|throughout|diffuse(?:ly)?|perihilar)\b",
    re.IGNORECASE,
)
_PART = r"(?:lobes?|lungs?|zones?|poles?|quadrants?|thirds?|fields?|left|right|lingula)\b"
ZONES = re.compile(
    rf"\b(?:(?P<upper>(?:upper|superior)(?=\s+(?:\w+\s+)?{_PART})|bi-?apical|apical|apex|apices|"
    rf"rul|lul|upper lobes?)|(?P<middle>(?:middle|mid)(?=[\s-]+(?:\w+\s+)?{_PART})|midlungs?|rml)|"
    rf"(?P<lower>(?:lower|inferior)(?=\s+(?:\w+\s+)?{_PART})|rll|lll)|"
    rf"(?P<base>bi-?basilar|bi-?basal|basilar|basal|bases?)|(?P<lingula>lingular?))\b",
    re.IGNORECASE,
)
BRAIN = re.compile(
    r"\b(frontal|parietal|temporal|occipital)\b"
    r"(?!\s*/|\s+(?:and|views?|radiographs?|chest|projection|process|sinus\w*|pleura\w*|as well))",
    re.IGNORECASE,
)
RIBS = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)\b(?=(?:\s+[a-z]+){0,2}\s+ribs?\b)", re.IGNORECASE)
VERTEBRA = re.compile(
    r"\b(?P<a>[ctls])-?(?P<n>1[0-2]|[1-9])"
    r"(?:(?P<to>\s*[-/\u2013]\s*|\s+(?:through|to|and)\s+)(?P<b>[ctls])?(?P<m>1[0-2]|[1-9]))?"
    r"(?!\w|\.\d)(?!\s*(?:hyper|hypo|iso|signal|weighted|bright|dark|short|prolong|flair|/))"
    r"(?!\s+(?:nerve|root))",
    re.IGNORECASE,
)
_COUNTS = {"c": 7, "t": 12, "l": 5, "s": 5}
SPINE = [f"{letter}{n}" for letter, most in _COUNTS.items() for n in range(1, most + 1)]
VERTEBRAE = {*SPINE, *(f"{a}-{b}" for a, b in itertools.pairwise(SPINE))}

UNITS = {
    "mm": ("length", 1.0), "millimeter": ("length", 1.0), "millimeters": ("length", 1.0),
    "cm": ("length", 10.0), "centimeter": ("length", 10.0), "centimeters": ("length", 10.0),
    "ml": ("volume", 1.0), "cc": ("volume", 1.0), "hu": ("density", 1.0),
    "percent": ("share", 1.0), "%": ("share", 1.0),
}  # fmt: skip
# 4.3, 4,3, 1,200, .5, and 4 3 for a lost decimal point
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[., ]\d+)?|[.,]\d+)"
SIZES = re.compile(
    rf"(?<![\w.])({_NUMBER}(?:\s*(?:x|by|\u00d7|to|-)\s*{_NUMBER}){{0,3}})"
    rf"\s*-?\s*({'|'.join(sorted(UNITS, key=len, reverse=True))})(?!\w)",
    re.IGNORECASE,
)
ONE_NUMBER = re.compile(_NUMBER)
LONGEST_NUMBER = 12  # signs: more are no size, and hundreds of digits are infinite


@dataclass(frozen=True, slots=True)
class Mark:
    """`values` of a side are left, right; of a level names; of a size "dimension:number" (mm)."""

    kind: str
    start: int
    end: int
    values: frozenset[str]
    readings: tuple["Reading", ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One number of a measurement: its possible values, and half of its last digit."""

    dimension: str
    values: tuple[float, ...]
    halves: tuple[float, ...]


def marks(text: str) -> list[Mark]:
    """All marks of the text, in no promised order."""
    return [*_sides(text), *_zones(text), *_vertebrae(text), *_sizes(text)]


def _sides(text: str) -> Iterator[Mark]:
    for match in SIDES.finditer(text):
        side = match.lastgroup or ""
        values = LEFT_RIGHT if side == "both" else frozenset((side,))
        yield Mark(SIDE, *match.span(), values)
    for match in PAIRS.finditer(text):
        yield Mark(PAIR, *match.span(), LEFT_RIGHT)


def _zones(text: str) -> Iterator[Mark]:
    for match in ZONES.finditer(text):
        name = match.lastgroup or ""
        names = {"upper", "middle", "lingula"} if name == "lingula" else {name}
        yield Mark(LEVEL, *match.span(), frozenset(names))
    for match in BRAIN.finditer(text):
        yield Mark(LEVEL, *match.span(), frozenset((match[0].lower(),)))
    for match in RIBS.finditer(text):
        yield Mark(LEVEL, *match.span(), frozenset((f"rib {match[1]}",)))


def _vertebrae(text: str) -> Iterator[Mark]:
    for match in VERTEBRA.finditer(text):
        first = match["a"].lower() + match["n"]
        last = (match["b"] or match["a"]).lower() + match["m"] if match["m"] else first
        if first not in SPINE or last not in SPINE:
            continue
        a, b = SPINE.index(first), SPINE.index(last)
        if match["to"] and match["to"].strip() == "and":
            yield Mark(LEVEL, *match.span(), frozenset((first, last)))
        elif a <= b:
            yield Mark(LEVEL, *match.span(), _range(a, b))


def _range(a: int, b: int) -> frozenset[str]:
    """A single vertebra; a disc "l4-l5"; or all vertebrae and discs of a longer range."""
    discs = {f"{SPINE[i]}-{SPINE[i + 1]}" for i in range(a, b)}
    if b - a == 1:
        return frozenset(discs)
    return frozenset(discs | set(SPINE[a : b + 1]))


def _sizes(text: str) -> Iterator[Mark]:
    for match in SIZES.finditer(text):
        dimension, factor = UNITS[match[2].lower()]
        numbers, readings = ONE_NUMBER.findall(match[1]), []
        if max(map(len, numbers)) > LONGEST_NUMBER:
            continue
        for number in numbers:
            forms = _forms(number)
            decimals = [len(form.partition(".")[2]) for form in forms]
            values = tuple(float(form) * factor for form in forms)
            halves = tuple(0.5 * factor * 10.0**-n for n in decimals)
            readings.append(Reading(dimension, values, halves))
        names = frozenset(f"{r.dimension}:{value:g}" for r in readings for value in r.values)
        yield Mark(SIZE, *match.span(), names, tuple(readings))


def _forms(number: str) -> list[str]:
    """What a number may mean, with a decimal point: "1,200" is a thousand or, with a decimal comma,
    1.2; of "4 3" a decimal point was lost, or the first is an item's number."""
    if re.fullmatch(r"[1-9]\d{0,2},\d{3}", number):
        return [number.replace(",", ""), number.replace(",", ".")]
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", number):
        return [number.replace(",", "")]
    if " " in number:
        return [number.replace(" ", "."), number.split(" ")[1]]
    return [number.replace(",", ".")]
