"""Which checks there are, how grave each is, and what to do: the audit's table of findings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from report2impression.reading.pairs import Split
from report2impression.reading.rows import BLANK

SEVERITIES = ("error", "warning", "note")


class Check(NamedTuple):
    """`least` is the share of a split's pairs (percent) from which on a check is a finding."""

    name: str
    severity: str
    label: str
    remedy: str
    least: float = 0.0


CLEAN = "remove the pairs with --clean"
CHECKS = (
    Check("same_text", "error", "input equals target", f"they teach copying: {CLEAN}"),
    Check(
        "shared_input",
        "error",
        "input also in another split",
        f"scores on them tell of memory, not skill: {CLEAN}",
    ),
    Check(
        "shared_patient",
        "error",
        "patient also in another split",
        f"split by patient (report2impression mimic does), or {CLEAN}",
    ),
    Check(
        "repeated_pair",
        "warning",
        "pair repeats an earlier one of its split",
        f"they count more than once in loss and scores: {CLEAN}",
    ),
    Check(
        "near_shared",
        "warning",
        "input nearly also in another split",
        "read their scores apart, or add near_shared to --remove",
    ),
    Check(
        "near_repeated",
        "warning",
        "input nearly repeated within its split",
        "templates rather than reports? they weigh more in training and scores",
    ),
    Check(
        "other_target",
        "warning",
        "equal inputs, different targets",
        "no model can tell which is wanted: add history or comparison to the input",
    ),
    Check(
        "repeated_id",
        "warning",
        "id of more than one pair",
        "results cannot be traced to a report: give each its own id",
    ),
    Check(
        "contained",
        "warning",
        "target stands word for word in the input",
        "check that the input does not hold the impression section",
    ),
    Check(
        "short_input",
        "warning",
        "input shorter than target",
        "the target says more than the input can support: check the sections, or add short_input "
        "to --remove",
    ),
    Check(
        "boilerplate",
        "warning",
        'target is boilerplate ("no acute ...")',
        "a constant answer scores high here: read scores of the other reports apart",
        least=25.0,
    ),
    Check(
        "placeholder_target",
        "warning",
        "placeholder (____, [**...**], <NAME>) in the target",
        "the model learns to write placeholders: mend the targets, or add placeholder_target to "
        "--remove",
        least=1.0,
    ),
    Check(
        "placeholder_input",
        "note",
        "placeholder (____, [**...**], <NAME>) in the input",
        "expected in de-identified reports; give inputs the same form when the model is used",
        least=1.0,
    ),
    Check(
        "cut_input",
        "warning",
        "input longer than --max_source_tokens",
        "its end is lost: raise data.max_source_tokens in training",
    ),
    Check(
        "cut_target",
        "warning",
        "target longer than --max_target_tokens",
        "the model never sees its end: raise data.max_target_tokens in training",
    ),
    Check(
        "unknown",
        "warning",
        "characters that the tokenizer does not know",
        "they become <unk>: replace them (see the list of characters)",
    ),
    Check(
        "new_group",
        "note",
        "group without training pairs",
        "scores on it tell of transfer: read them apart",
    ),
)
ROWS = (
    Check(
        "empty",
        "error",
        "rows with an empty or missing text",
        "training stops at them: remove them with --clean, or give --data.on_bad_row skip there",
    ),
    Check(
        "unreadable",
        "error",
        "rows that cannot be read",
        "training stops at them: mend the file, or remove them with --clean",
    ),
)


class Told(NamedTuple):
    """A finding: which check, how grave, how many pairs of which split, and what to do."""

    check: str
    severity: str
    title: str
    counts: dict[str, int]
    remedy: str


def bad_rows(splits: Sequence[Split]) -> dict[str, dict[str, int]]:
    """How many rows of each split gave no pair, by the names in ROWS."""
    found: dict[str, dict[str, int]] = {check.name: {} for check in ROWS}
    for split in splits:
        kinds = Counter(
            "empty"
            if bad.reason == BLANK or bad.reason.endswith((" is empty", " is missing"))
            else "unreadable"
            for bad in split.skipped
        )
        for name, counts in found.items():
            counts[split.name] = kinds[name]
    return found


def judge(
    flags: Mapping[str, Mapping[str, NDArray[np.bool_]]], bad: Mapping[str, dict[str, int]]
) -> list[Told]:
    """The findings, the gravest first, from the flags of pairs and the counts of bad rows."""
    found = [
        Told(check.name, check.severity, check.label, bad[check.name], check.remedy)
        for check in ROWS
        if any(bad[check.name].values())
    ]
    for check in CHECKS:
        own = flags.get(check.name, {})
        counts = {split: int(which.sum()) for split, which in own.items()}
        shares = [100 * n / max(len(own[split]), 1) for split, n in counts.items()]
        if any(counts.values()) and max(shares) >= check.least:
            found.append(Told(check.name, check.severity, check.label, counts, check.remedy))
    return sorted(found, key=lambda told: SEVERITIES.index(told.severity))
