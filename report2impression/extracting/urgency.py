"""How soon a finding must reach the clinician, by a small table that the user can change."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report2impression.extracting.parts import URGENCY, Finding
from report2impression.program.errors import ConfigError
from report2impression.scoring.faithfulness.clinical_terms import FINDING, lexicon

TABLE = Path(__file__).with_name("urgency.txt")
QUALITIES = ("acute", "subacute", "new", "increased", "mild", "moderate", "severe")
SIZE = re.compile(r"\s*>=\s*(\d+(?:\.\d+)?)\s*mm$")
OVER = {"chronic", "resolved", "unchanged"}


@dataclass(frozen=True)
class Rule:
    category: str
    concept: str
    exact: str  # the term, where it is not its line's first: only so written; else ""
    qualities: frozenset[str]
    least_mm: float


@dataclass(frozen=True)
class UrgencyTable:
    """The rules, the first that fits counts."""

    rules: tuple[Rule, ...]

    def of(self, finding: Finding) -> str:
        """category_1, category_2, category_3 or none."""
        said = {finding.acuity, finding.change, finding.severity}
        if finding.presence == "absent" or finding.certainty == "unlikely" or said & OVER:
            return "none"
        return next((r.category for r in self.rules if _fits(r, finding, said)), "none")


def _fits(rule: Rule, finding: Finding, said: set[str | None]) -> bool:
    if rule.concept != finding.term or not rule.qualities <= said:
        return False
    if rule.exact and rule.exact not in " ".join(finding.text.lower().split()):
        return False
    sizes = [v for m in finding.measurements if not m.of_prior for v in m.values_mm]
    return not rule.least_mm or max(sizes, default=0.0) >= rule.least_mm


@functools.cache
def default_table() -> UrgencyTable:
    return read_table(TABLE)


def read_table(path: str | Path) -> UrgencyTable:
    """The table of a file like urgency.txt; ConfigError names the line that cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}; give an urgency table") from error
    rules: list[Rule] = []
    category = ""
    for number, line in enumerate(lines, start=1):
        body = line.strip()
        if not body or body.startswith("#"):
            continue
        if not line[0].isspace():
            category, _, body = body.partition(":")
        if category not in URGENCY[:-1]:
            raise ConfigError(
                f"{path}, line {number}: begin it with category_1:, category_2: or category_3:"
            )
        rules += [_rule(category, e, f"{path}, line {number}") for e in _entries(body)]
    return UrgencyTable(tuple(rules))


def _entries(body: str) -> list[str]:
    return [entry.strip().lower() for entry in body.split("|") if entry.strip()]


def _rule(category: str, entry: str, where: str) -> Rule:
    size = SIZE.search(entry)
    words = SIZE.sub("", entry).split()
    terms = lexicon().terms[FINDING]
    qualities: list[str] = []
    while " ".join(words) not in terms and words and words[0] in QUALITIES:
        qualities.append(words.pop(0))
    term = " ".join(words)
    if term not in terms:
        raise ConfigError(
            f"{where}: an entry is no term of the lexicon; write a term of a `finding:` line of "
            "clinical_terms.txt, with acute, new, increased, moderate or severe before it"
        )
    least = float(size[1]) if size else 0.0
    exact = "" if term == terms[term] else term
    return Rule(category, terms[term], exact, frozenset(qualities), least)


def highest(categories: Sequence[str]) -> str:
    """The most urgent of them; "none" where there is none."""
    return min(categories, key=URGENCY.index, default="none")
