"""A report as spaCy sees it: statements, the findings in them, and which of those are denied.

    doc = parse("no effusion or pneumothorax mild atelectasis")
    [(span.label_, span._.negated) for span in doc.spans["terms"]]

Negation is negspacy's (NegEx) with its clinical term set, extended by what radiologists write; the
same algorithm with another term set finds what is only suspected. NegEx denies up to the end of the
sentence, but these reports have no punctuation: the statements are cut where the words show that
a new one begins ("there is", a subject with its verb, the word after "or pneumothorax" ...).
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from report2impression.scoring.faithfulness.clinical_terms import ANATOMY, FINDING, lexicon, phrases
from report2impression.scoring.faithfulness.statements import starts
from report2impression.scoring.splitter import units

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span

VERTEBRA = re.compile(r"[ctl]\d{1,2}(-[ctls]?\d{1,2})?")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, as broken JSON has: spaCy refuses it
TERMS = "terms"  # name of the span group
GAP = 5  # words that ".." in a term may stand for
NO_GAP = ["a", "an", "there", "no", "normal", "clear", "without", "which"]

KINDS = ("pseudo", "preceding", "following", "termination")  # NegEx's


def parse(text: str) -> "Doc":
    """The statements (sents) of the text and its terms (spans: label = concept, id = kind)."""
    return pipeline()(SURROGATE.sub("\ufffd", text))


@functools.cache
def pipeline() -> "Language":
    """Built at first use: spaCy takes a second to load."""
    import spacy
    from negspacy.negation import Negex
    from negspacy.termsets import termset
    from spacy.language import Language

    clinical = termset("en_clinical").get_patterns()
    not_denials = set(phrases("not_denials"))
    denied, suspected = {}, {}
    for kind in KINDS:
        key = f"{kind}_negations" if kind != "termination" else kind
        denied[key] = [t for t in (*clinical[key], *phrases(kind)) if t not in not_denials]
        suspected[key] = phrases(f"suspected_{kind}")
    nlp = spacy.blank("en")
    find = _finder(nlp)

    @Language.component("radiology_terms")
    def radiology_terms(doc: "Doc") -> "Doc":
        return find(doc)

    @Language.component("denied_within")
    def denied_within(doc: "Doc") -> "Doc":
        """NegEx looks before and after a term, but "heart is not enlarged" is one term, and
        "non-" is no word."""
        for span in doc.spans[TERMS]:
            inside = len(span) > 2 and any(token.lower_ in {"not", "never"} for token in span)
            lead = doc[max(0, span.start - 2) : span.start]
            if inside or lead.text.lower() == "non-":
                span._.negated = True
        return doc

    nlp.add_pipe("radiology_terms")
    for name, terms in (("negated", denied), ("suspected", suspected)):
        config = {"neg_termset": terms, "extension_name": name, "span_keys": [TERMS]}
        nlp.add_pipe("negex", name=name, config=config)
    nlp.add_pipe("denied_within")
    assert Negex is not None  # its import registers the factory
    return nlp


def _finder(nlp: "Language") -> "Callable[[Doc], Doc]":
    """A component that sets `doc.spans[TERMS]` and the starts of statements."""
    from spacy.matcher import Matcher, PhraseMatcher
    from spacy.tokens import Span
    from spacy.util import filter_spans

    exact, patterns = PhraseMatcher(nlp.vocab, attr="LOWER"), Matcher(nlp.vocab)
    concepts: dict[int, tuple[str, str]] = {}
    for kind, terms in lexicon().terms.items():
        for term, concept in terms.items():
            key = f"{kind}/{concept}"
            concepts[nlp.vocab.strings.add(key)] = (kind, concept)
            if ".." in term:
                patterns.add(key, [_pattern(nlp, term)])
            else:
                exact.add(key, [nlp.tokenizer(term)])

    def find(doc: "Doc") -> "Doc":
        found = []
        for key, start, end in [*exact(doc), *patterns(doc)]:
            kind, concept = concepts[key]
            found.append(Span(doc, start, end, label=concept, span_id=kind))
        findings = filter_spans([span for span in found if span.id_ == FINDING])
        others = [span for span in found if span.id_ != FINDING]
        begins = _cut(doc, findings, [span for span in others if span.id_ == ANATOMY])
        whole = [s for s in (*findings, *others) if not any(begins[s.start + 1 : s.end])]
        doc.spans[TERMS] = sorted(whole, key=lambda span: (span.start, -span.end, span.label_))
        return doc

    return find


def _pattern(nlp: "Language", term: str) -> list[dict[str, Any]]:
    left, right = (part.split() for part in term.split(" .. "))
    gap: list[dict[str, Any]] = [
        {"LOWER": {"NOT_IN": NO_GAP}, "IS_ALPHA": True, "OP": "?"} for _ in range(GAP)
    ]
    return [{"LOWER": w} for w in left] + gap + [{"LOWER": w} for w in right]


def _cut(doc: "Doc", findings: "list[Span]", organs: "list[Span]") -> list[bool]:
    """Sentence starts: the splitter's items and sentences, and within them the statements -> for
    each token, is it one?"""
    begin = set()
    at = 0
    text = doc.text  # a doc joins its tokens at every look
    for unit in units(text):
        at = text.index(unit, at)
        begin.add(at)
        at += len(unit)
    ends = [[0] * len(doc), [0] * len(doc)]
    for row, spans in zip(ends, (findings, organs), strict=True):
        for span in spans:
            row[span.start] = max(row[span.start], span.end)
    tokens = list(doc)  # every look at a token of a doc makes it anew
    words = [token.lower_ for token in tokens]
    for i, word in enumerate(words):
        if VERTEBRA.fullmatch(word):
            ends[1][i] = max(ends[1][i], i + 1)
    begins = []
    for token, starts_here in zip(tokens, starts(words, *ends), strict=True):
        begins.append(starts_here or token.idx in begin)
        token.is_sent_start = begins[-1]
    return begins
