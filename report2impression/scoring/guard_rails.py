"""Signs that a comparison measures something else than it seems to, each with its remedy.

A guard rail is {"name", "system", "value", "message"}; a healthy evaluation has none. Messages hold
counts and flags, never text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from report2impression.scoring.describe import loops, n_equal
from report2impression.scoring.language import n_not_english, note_on_language
from report2impression.scoring.rouge_bleu import Statistics, TokenKind

LEAST_BREVITY_PENALTY = 0.8
MANY_CUT = 0.05  # share of words of which ROUGE as published sees parts
MANY_SHORT = 0.5  # share of outputs that have no run of four words
ROUGE_SEES = re.compile("[a-z0-9]", re.IGNORECASE | re.ASCII)
Rail = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What the decoder and the tokenizer cut, which texts alone cannot tell; None = not known."""

    max_new_tokens: int | None = None
    long_references: int = 0
    """References of more than max_new_tokens tokens, end of sequence included: out of reach."""
    unfinished: Mapping[str, int] = field(default_factory=dict)
    """Outputs of each system that ran into max_new_tokens without an end of sequence."""
    max_source_tokens: int | None = None
    truncated_sources: int = 0
    """Sources of which the model saw the first max_source_tokens only."""
    unknown_tokens: Mapping[str, int] = field(default_factory=dict)
    """Of sources, references, and the outputs of each system: signs that the tokenizer lacks."""
    unknown_signs: Mapping[str, str] = field(default_factory=dict)
    """The commonest of a side's, by their code points, where they are known."""


def guard_rails(
    outputs: Mapping[str, Sequence[str]],
    sources: Sequence[str],
    *,
    brevity_penalties: Mapping[str, float],
    limits: Limits | None = None,
) -> list[Rail]:
    """What there is to warn of, for the systems in `outputs` (N texts each)."""
    rails = of_limits(limits or Limits(), len(sources))
    count = n_not_english(sources)
    if told := note_on_language(count, len(sources)):
        rails.append(_rail("not_english", "source", count, told))
    for system, texts in outputs.items():
        rails += of_outputs(system, texts, sources, brevity_penalties[system])
    return rails


def of_limits(limits: Limits, n: int) -> list[Rail]:
    """References, sources and outputs that were cut."""
    rails = []
    if limits.long_references:
        told = (
            f"{limits.long_references:,} of {n:,} references are longer than --max_new_tokens "
            f"{limits.max_new_tokens}, so no output can match them: raise it"
        )
        rails.append(_rail("references_cut", "reference", limits.long_references, told))
    if limits.truncated_sources:
        told = (
            f"{limits.truncated_sources:,} of {n:,} reports are longer than "
            f"{limits.max_source_tokens} tokens and lost their end: train with a larger "
            "--data.max_source_tokens, and read their rows apart"
        )
        rails.append(_rail("sources_cut", "source", limits.truncated_sources, told))
    for side, count in limits.unknown_tokens.items():
        if count:
            which = f" ({limits.unknown_signs[side]})" if side in limits.unknown_signs else ""
            told = (
                f"{count:,} tokens of {side} are signs that the tokenizer does not know{which}, "
                "shown as \u2047 and scored as they stand: train with --data.normalise ascii"
            )
            rails.append(_rail("unknown_signs", side, count, told))
    for system, count in limits.unfinished.items():
        if count:
            told = (
                f"{count:,} of {n:,} outputs of {system} ran into --max_new_tokens "
                f"{limits.max_new_tokens}: raise it, or look for loops"
            )
            rails.append(_rail("outputs_cut", system, count, told))
    return rails


def of_outputs(
    system: str, texts: Sequence[str], sources: Sequence[str], brevity_penalty: float
) -> list[Rail]:
    """A system that writes too little, nothing, its input, or the same again and again."""
    n, rails = len(texts), []
    if brevity_penalty < LEAST_BREVITY_PENALTY:
        told = (
            f"{system} writes too short: BLEU's brevity penalty is {brevity_penalty:.2f}, below "
            f"{LEAST_BREVITY_PENALTY}; read BLEU beside its precisions, and raise "
            "--max_new_tokens or train longer"
        )
        rails.append(_rail("brevity", system, brevity_penalty, told))
    for name, count, what, remedy in (
        ("empty", sum(not text.strip() for text in texts), "are empty", "train longer"),
        (
            "copies_input",
            n_equal(texts, sources),
            "repeat the whole report",
            "check --data.prefix and train longer or with a higher --learning_rate",
        ),
        (
            "loops",
            sum(map(loops, texts)),
            "repeat the same words over and over",
            "train longer, or decode with --no_repeat_ngram 4",
        ),
    ):
        if count:
            told = f"{count:,} of {n:,} outputs of {system} {what}: {remedy}"
            rails.append(_rail(name, system, count, told))
    return rails


def of_scores(
    statistics: Mapping[str, Statistics],
    references: Sequence[str],
    outputs: Mapping[str, Sequence[str]],
    tokens: TokenKind = "published",
) -> list[Rail]:
    """Figures that do not apply: ROUGE sees only a-z and digits, BLEU needs four words in a row."""
    n, rails = len(references), []
    is_published = tokens == "published"
    words = re.findall(r"\w+", " ".join(references)) if is_published else []
    n_cut = sum(not word.isascii() for word in words)
    if n_cut > MANY_CUT * len(words):
        told = (
            f"{n_cut:,} of {len(words):,} words of the references have letters that ROUGE as "
            "published drops: score with --tokens unicode"
        )
        rails.append(_rail("words_cut", "reference", n_cut, told))
    for name, texts in {"reference": references, **outputs}.items() if is_published else ():
        count = sum(bool(text.strip()) and not ROUGE_SEES.search(text) for text in texts)
        if count:
            told = (
                f"{count:,} of {n:,} {_texts_of(name)} have no letter a-z and no digit, all that "
                "ROUGE as published sees: it is 0 by definition; score with --tokens unicode"
            )
            rails.append(_rail("not_for_rouge", name, count, told))
    for system in outputs:
        n_short = int((statistics[system].bleu[:, -1] == 0).sum())  # no run of four words
        if n_short == n:
            told = (
                f"no output of {system} has 4 words: BLEU is 0 by definition, whatever they say; "
                "read ROUGE"
            )
            rails.append(_rail("not_for_bleu", system, n_short, told))
        elif n_short >= MANY_SHORT * n:
            told = (
                f"{n_short:,} of {n:,} outputs of {system} have fewer than 4 words and no part in "
                "BLEU's longest runs: read ROUGE beside it"
            )
            rails.append(_rail("not_for_bleu", system, n_short, told))
    return rails


def _texts_of(name: str) -> str:
    return "references" if name == "reference" else f"outputs of {name}"


def _rail(name: str, system: str, value: float, message: str) -> Rail:
    return {"name": name, "system": system, "value": value, "message": message}
