"""A report's statements, the findings in them, and which of those are denied.

    for statement in parse("no effusion or pneumothorax mild atelectasis"):
        print([(term.concept, term.denied) for term in statement.terms])

spaCy cuts the words. Negation is negspacy's (NegEx) with its clinical term set, extended by what
radiologists write; the same algorithm with another term set finds what is only suspected. NegEx
denies up to the end of the sentence, but these reports have no punctuation: the statements are cut
where the words show that a new one begins ("there is", a subject with its verb, the word after "or
pneumothorax" ...).
"""

import bisect
import functools
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from report2impression.scoring.faithfulness.clinical_terms import (
    ANATOMY,
    FINDING,
    GENERAL,
    lexicon,
    phrases,
)
from report2impression.scoring.faithfulness.statements import starts
from report2impression.scoring.splitter import unit_spans

if TYPE_CHECKING:
    from negspacy.negation import Negex
    from spacy.language import Language
    from spacy.tokens import Doc

VERTEBRA = re.compile(r"[ctl]\d{1,2}(-[ctls]?\d{1,2})?")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, as broken JSON has: spaCy refuses it
GAP = 5  # words that ".." in a term may stand for
MOST_WORDS = 10_000  # different ones that spaCy keeps, half a KiB each; the lexicon has 5,300
NO_GAP = {"a", "an", "there", "no", "normal", "clear", "without", "which"}

KINDS = ("pseudo", "preceding", "following", "termination")  # NegEx's


class Term(NamedTuple):
    """A mention of a concept: characters [start, end) of the text."""

    concept: str
    kind: str
    start: int
    end: int
    denied: bool
    suspected: bool


class Statement(NamedTuple):
    """Characters [start, end) of the text."""

    start: int
    end: int
    terms: tuple[Term, ...]


class Words(NamedTuple):
    """Words [start, end) that name a concept."""

    start: int
    end: int
    concept: str
    kind: str


def parse(text: str) -> list[Statement]:
    """The statements, in order; together they hold every word of the text."""
    return parser()(SURROGATE.sub("\ufffd", text))


@functools.cache
def parser() -> "Parser":
    """Built at first use: spaCy takes a second to load."""
    import spacy

    return Parser(spacy.blank("en"))


class Parser:
    """Text -> statements."""

    def __init__(self, nlp: "Language") -> None:
        self._cut, self._vocab, self.find = nlp.tokenizer, nlp.vocab, Finder(nlp)
        self._one_by_one = threading.Lock()  # spaCy forgets the words of every thread
        self.denied, self.suspected = negex(nlp)

    def __call__(self, text: str) -> list[Statement]:
        """spaCy keeps every different word, so that a service would grow for as long as it reads
        names and numbers: those after the first MOST_WORDS are forgotten after their text."""
        with self._one_by_one:
            if len(self._vocab) < MOST_WORDS:
                return self._parse(text)
            with self._vocab.memory_zone():
                return self._parse(text)

    def _parse(self, text: str) -> list[Statement]:
        doc = self._cut(text)
        tokens = list(doc)  # every look at a token of a doc makes it anew
        words = [token.lower_ for token in tokens]
        begins = [token.idx for token in tokens]
        ends = [token.idx + len(token) for token in tokens]
        cuts, terms = _cut(text, words, begins, self.find(doc, words))
        flags = zip(
            flagged(self.denied, doc, cuts, terms),
            flagged(self.suspected, doc, cuts, terms),
            strict=True,
        )
        own: defaultdict[int, list[Term]] = defaultdict(list)
        for term, (denied, suspected) in zip(terms, flags, strict=True):
            start, end = begins[term.start], ends[term.end - 1]
            lead = text[begins[max(0, term.start - 2)] : ends[term.start - 1] if term.start else 0]
            denied = denied or _is_denied_within(words[term.start : term.end], lead)
            own[bisect.bisect_right(cuts, term.start)].append(
                Term(term.concept, term.kind, start, end, denied, suspected)
            )
        lasts = [*cuts[1:], len(words)]
        return [
            Statement(begins[first], ends[last - 1], tuple(own[i]))
            for i, (first, last) in enumerate(zip(cuts, lasts, strict=False), start=1)
        ]


def _is_denied_within(words: Sequence[str], lead: str) -> bool:
    """NegEx looks before and after a term, but "heart is not enlarged" is one term, and "non-" is
    one word before a space and two before a letter."""
    is_non = lead.lower().split()[-1:] == ["non-"]
    return is_non or (len(words) > 2 and not {"not", "never"}.isdisjoint(words))


def negex(nlp: "Language") -> "tuple[Negex, Negex]":
    """NegEx of what is denied, and of what is only suspected."""
    from negspacy.negation import Negex
    from negspacy.termsets import termset

    clinical = termset("en_clinical").get_patterns()
    not_denials = set(phrases("not_denials"))
    denied, suspected = {}, {}
    for kind in KINDS:
        key = f"{kind}_negations" if kind != "termination" else kind
        denied[key] = [t for t in (*clinical[key], *phrases(kind)) if t not in not_denials]
        suspected[key] = phrases(f"suspected_{kind}")
    return (
        Negex(nlp, "denied", denied, extension_name="denied"),
        Negex(nlp, "suspected", suspected, extension_name="suspected"),
    )


def flagged(
    negex: "Negex", doc: "Doc", cuts: Sequence[int], terms: Sequence[Words]
) -> Iterator[bool]:
    """NegEx's answer for each term: negspacy's, which holds every term against every piece of the
    text; here each looks into its own. A piece ends with a statement or at a word like "but"."""
    preceding, following, terminating = negex.process_negations(doc)
    pieces = sorted({*cuts, *(start for _, start, _ in terminating)})
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for _, start, _ in preceding:
        piece = bisect.bisect_right(pieces, start)
        first[piece] = min(start, first.get(piece, start))
    for _, start, end in following:
        piece = bisect.bisect_right(pieces, start)
        last[piece] = max(end, last.get(piece, end))
    for term in terms:
        piece = bisect.bisect_right(pieces, term.start)
        is_whole = piece == len(pieces) or term.end <= pieces[piece]
        before, after = first.get(piece, term.start), last.get(piece, term.end)
        yield is_whole and (before < term.start or after > term.end)


class Finder:
    """A doc and its lower-case words -> the findings and general terms, of which none overlaps
    another, and then all organs and signs."""

    def __init__(self, nlp: "Language") -> None:
        from spacy.matcher import PhraseMatcher

        self._exact = PhraseMatcher(nlp.vocab, attr="LOWER")
        self._concepts: dict[int, tuple[str, str]] = {}
        # first word -> (the words before the gap, those after it, concept, kind)
        self._parted: defaultdict[str, list[tuple[list[str], list[str], str, str]]]
        self._parted = defaultdict(list)
        for kind, terms in lexicon().terms.items():
            for term, concept in terms.items():
                if ".." in term:
                    left, right = (part.split() for part in term.split(" .. "))
                    self._parted[left[0]].append((left, right, concept, kind))
                else:
                    key = f"{kind}/{concept}"
                    self._concepts[nlp.vocab.strings.add(key)] = (concept, kind)
                    self._exact.add(key, [nlp.tokenizer(term)])

    def __call__(self, doc: "Doc", words: Sequence[str]) -> list[Words]:
        from spacy.util import filter_spans

        found = [Words(start, end, *self._concepts[key]) for key, start, end in self._exact(doc)]
        found += self.with_gap(words)
        items: Any = [term for term in found if term.kind in (FINDING, GENERAL)]
        apart: Any = filter_spans(items)  # it asks for start and end alone
        return [*apart, *(term for term in found if term.kind not in (FINDING, GENERAL))]

    def with_gap(self, words: Sequence[str]) -> Iterator[Words]:
        """The terms that have a "..": "heart size is mildly enlarged"."""
        for start in (i for i, word in enumerate(words) if word in self._parted):
            for left, right, concept, kind in self._parted[words[start]]:
                at = start + len(left)
                if words[start:at] == left:
                    for end in _ends(words, at, right):
                        yield Words(start, end, concept, kind)


def _ends(words: Sequence[str], at: int, right: Sequence[str]) -> Iterator[int]:
    """Where `right` ends that stands at words[at], or after a gap there."""
    for begin in range(at, at + GAP + 1):
        end = begin + len(right)
        if words[begin:end] == right:
            yield end
        if begin >= len(words) or not words[begin].isalpha() or words[begin] in NO_GAP:
            return


def _cut(
    text: str, words: Sequence[str], begins: Sequence[int], terms: Sequence[Words]
) -> tuple[list[int], list[Words]]:
    """The first word of each statement (the splitter's items and sentences, and within them the
    statements), and the terms that none of them cuts, by their place."""
    units = {start for start, _ in unit_spans(text)}
    ends = {kind: [0] * len(words) for kind in (FINDING, ANATOMY)}
    for term in terms:
        if term.kind in ends:
            row = ends[term.kind]
            row[term.start] = max(row[term.start], term.end)
    for i, word in enumerate(words):
        if VERTEBRA.fullmatch(word):
            ends[ANATOMY][i] = max(ends[ANATOMY][i], i + 1)
    here = enumerate(starts(words, ends[FINDING], ends[ANATOMY]))
    cuts = [i for i, begins_here in here if begins_here or begins[i] in units or i == 0]
    whole = (term for term in terms if _next(cuts, term.start) >= term.end)
    return cuts, sorted(whole, key=lambda term: (term.start, -term.end, term.concept))


def _next(cuts: Sequence[int], word: int) -> float:
    """The first cut after the word."""
    at = bisect.bisect_right(cuts, word)
    return cuts[at] if at < len(cuts) else float("inf")
