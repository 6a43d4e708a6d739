"""The findings and organs that the faithfulness check knows, read from clinical_terms.txt.

A concept is one line of the file; its name is the line's first term. `supports[f]` are the concepts
of which one must be in the report where the impression states finding f: f itself, its signs, and
what is alike. `organs[f]` are the organs of which "normal" in the report denies f.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LEXICON = Path(__file__).with_name("clinical_terms.txt")
FINDING, SIGN, ANATOMY, GENERAL = "finding", "sign", "anatomy", "general"


@dataclass(frozen=True)
class Lexicon:
    """term -> concept for each kind, and what the concepts have to do with each other."""

    terms: dict[str, dict[str, str]]  # kind -> term -> concept
    supports: dict[str, frozenset[str]]  # finding -> concepts, the finding among them
    organs: dict[str, frozenset[str]]  # finding -> anatomy concepts


@functools.cache
def lexicon() -> Lexicon:
    """The file, parsed; ValueError where a term belongs to two concepts of a kind."""
    lines = list(_lines())
    terms: dict[str, dict[str, str]] = {FINDING: {}, SIGN: {}, ANATOMY: {}, GENERAL: {}}
    for kind, parts in lines:
        if kind in terms:
            for term in _with_plurals(parts[0]):
                if terms[kind].setdefault(term, parts[0][0]) != parts[0][0]:
                    raise ValueError(f"{LEXICON.name}: {term!r} stands in two lines")
    findings = terms[FINDING]
    for _, (_, signs, _) in lines:
        terms[SIGN].update({sign: sign for sign in _with_plurals(signs) if sign not in findings})
    supports: defaultdict[str, set[str]] = defaultdict(set)
    organs: dict[str, frozenset[str]] = {}
    for kind, (names, signs, places) in lines:
        if kind == FINDING:
            supports[names[0]] |= {findings.get(s, s) for s in (names[0], *_with_plurals(signs))}
            organs[names[0]] = frozenset(places)
        elif kind == "alike":
            group = {findings[name] for name in names}
            for name in group:
                supports[name] |= group
    return Lexicon(terms, {name: frozenset(found) for name, found in supports.items()}, organs)


def words(name: str) -> frozenset[str]:
    """The list of that name: `words NAME: a b c`."""
    return frozenset(_lists()[f"words {name}"].split())


def phrases(name: str) -> list[str]:
    """The list of that name: `phrases NAME: a b | c d`; none where there is no such line."""
    return _terms(_lists().get(f"phrases {name}", ""))


@functools.cache
def _lists() -> dict[str, str]:
    lines = (line.partition(": ") for line in _text().splitlines())
    return {kind: body for kind, _, body in lines if kind.startswith(("words ", "phrases "))}


@functools.cache
def _text() -> str:
    """The file with its continued lines joined."""
    return re.sub(r"\n +", " ", LEXICON.read_text(encoding="utf-8"))


def _lines() -> Iterator[tuple[str, tuple[list[str], list[str], list[str]]]]:
    """(kind, (terms, signs, organs)) of each line of terms."""
    for line in _text().splitlines():
        if line.startswith(("finding: ", "anatomy: ", "general: ", "alike: ")):
            kind, _, body = line.partition(": ")
            body, _, organs = body.partition(" @ ")
            names, _, signs = body.partition(" <= ")
            yield kind, (_terms(names), _terms(signs), _terms(organs))


def _terms(text: str) -> list[str]:
    return [term.strip() for term in text.split("|") if term.strip()]


def _with_plurals(terms: Iterable[str]) -> list[str]:
    """Each term, then its plural; a plural that nobody writes does no harm."""
    return [form for term in terms for form in dict.fromkeys((term, _plural(term)))]


def _plural(term: str) -> str:
    if term.endswith("is"):
        return f"{term[:-2]}es"
    if term.endswith("y") and not term.endswith(("ay", "ey", "oy")):
        return f"{term[:-1]}ies"
    return term if term.endswith("s") else f"{term}es" if term.endswith("x") else f"{term}s"
