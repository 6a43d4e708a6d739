"""Impressions that their report supports, for detection.py: the clean twins of its errors.

A synthetic impression is a function of its findings and taken as it is. Of a real report, one to
three statements are restated by rules that keep the meaning: other openings, "no evidence of" for
"no", abbreviations, cm for mm.
"""

import random
import re
from dataclasses import dataclass

from report2impression.scoring.faithfulness.negation import parse

SIDE = re.compile(r"\b(left|right)\b")
SIZE = re.compile(r"\b(\d+)( mm| cm)\b")
ZONE = re.compile(r"\b(upper|lower)(?= (?:lobe|pole|zone|left|right)\b)")
REGIONS = ("frontal", "parietal", "temporal", "occipital")
REGION = re.compile(rf"\b({'|'.join(REGIONS)})\b(?! (?:and|view|radiograph|chest))")
VERTEBRA = re.compile(r"\b([clt])(\d)(?:-([clst])?(\d))?\b(?! (?:hyper|hypo))")


@dataclass(frozen=True)
class Report:
    source: str
    reference: str
    group: str
    reference_is_clean: bool  # the impression is supported by construction


def clean_of(report: Report, kind: str, rng: random.Random) -> str:
    """An impression that the report supports, fit for this error if it can be; "" if none is."""
    if report.reference_is_clean:
        return report.reference
    said = [
        statement for statement in statements(report.source) if 2 <= len(statement.split()) <= 25
    ]
    fit = [s for s in said if _is_fit(s, kind)]
    if not fit:
        return ""
    chosen = rng.choice(fit)
    others = rng.sample([s for s in said if s != chosen], min(len(said) - 1, rng.randrange(3)))
    order = [chosen, *others]
    rng.shuffle(order)
    restated = [restate(statement, rng) for statement in order]
    if len(restated) == 1:
        return restated[0]
    return " ".join(f"{number} {item}" for number, item in enumerate(restated, start=1))


def statements(text: str) -> list[str]:
    return [text[statement.start : statement.end].strip() for statement in parse(text)]


def _is_fit(statement: str, kind: str) -> bool:
    pattern = {"side flip": SIDE, "number change": SIZE, "unit change": SIZE}.get(kind)
    if pattern:
        return bool(pattern.search(statement))
    if kind == "level change":
        return any(p.search(statement) for p in (ZONE, REGION, VERTEBRA))
    return True


RESTATED: tuple[tuple[str, str], ...] = (
    (r"^there (?:is|are) no (?:evidence of )?", "no "),
    (r"^no (?:evidence of )?", "no evidence of "),
    (r"^there (?:is|are) (?:a |an )?", ""),
    (r" (?:is|are) (?:again )?(?:seen|noted|identified|present)$", ""),
    (r"\bpleural effusion", "effusion"),
    (r"\bright lower lobe\b", "rll"),
    (r"\bleft lower lobe\b", "lll"),
    (r"\b([ltc]\d)-[ltc](\d)\b", r"\1-\2"),
    (r"\bin the (left|right) ([a-z]+ lobe|base|apex|lung)$", r"at the \1 \2"),
    (r"^the heart is (?:mildly |moderately )?enlarged$", "cardiomegaly"),
    (r"^the ", ""),
)


def restate(statement: str, rng: random.Random) -> str:
    """The same in other words: each rule that fits is used every other time; mm may become cm."""
    for pattern, said in RESTATED:
        if rng.random() < 0.5:
            statement = re.sub(pattern, said, statement)
    if rng.random() < 0.5:
        statement = re.sub(r"(?<!x )(?<!\d )\b(\d+) mm\b", _in_cm, statement)
    return statement


def _in_cm(match: re.Match[str]) -> str:
    return f"{int(match[1]) / 10:g} cm"
