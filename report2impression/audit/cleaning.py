"""Audited pairs -> the same data without what the audit found, and a log of what went.

A pair that two splits share goes from the earlier of train, validation, test, so that scores on
the test split stay comparable. The folder gets {train,validation,test}.jsonl and removed.csv
(split, row, id, reason; never text), whole or not at all, readable by its owner only.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from report2impression.audit.checks import Flags, Texts, run_checks
from report2impression.program.errors import ConfigError, DataError
from report2impression.program.files import new_folder
from report2impression.program.privacy import for_spreadsheet
from report2impression.reading.licence import Mark, write_mark
from report2impression.reading.pairs import Split, json_line

REMOVABLE = (
    *("same_text", "repeated_pair", "shared_input", "shared_patient", "near_shared", "contained"),
    *("short_input", "boilerplate", "placeholder_target", "placeholder_input"),
)
DEFAULT = "same_text,repeated_pair,shared_input,shared_patient"


def names_to_remove(listed: str) -> list[str]:
    """The checks of a list with commas. Raises ConfigError for one that cannot be removed."""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    for name in names:
        if name not in REMOVABLE:
            raise ConfigError(f"--remove {name!r} is not one of {', '.join(REMOVABLE)}")
    return names


def reasons(splits: Sequence[Texts], flags: Flags, names: Sequence[str]) -> dict[str, list[str]]:
    """Why each pair of each split goes: the first of the named checks that found it, or "".

    `flags` are those of all splits; what a split shares with later ones only is looked for anew.
    """
    found = {}
    for place, x in enumerate(splits):
        own = flags if place == 0 else run_checks(splits[place:])
        found[x.split.name] = [
            next((name for name in names if own[name][x.split.name][index]), "")
            for index in range(len(x.pairs))
        ]
    return found


def write_clean(
    target: Path, splits: Sequence[Split], why: dict[str, list[str]], mark: Mark
) -> Counter[tuple[str, str]]:
    """Write the folder, marked as the data are, and return how many rows went, by (split, reason).

    ConfigError: the folder is not empty or cannot be written. DataError: a split would be empty.
    """
    for split in splits:
        if all(why[split.name]):
            raise DataError(f"--clean would leave nothing of {split.name}; shorten --remove")
    removed: Counter[tuple[str, str]] = Counter()
    try:
        with (
            new_folder(target) as folder,
            (folder / "removed.csv").open("w", encoding="utf-8", newline="") as file,
        ):
            log = csv.writer(file, lineterminator="\n")
            log.writerow(("split", "row", "id", "reason"))
            for split in splits:
                lines = _removed(split, why[split.name])
                removed.update((name, reason) for name, _, _, reason in lines)
                log.writerows(lines)
                kept = [p for p, w in zip(split.pairs, why[split.name], strict=True) if not w]
                with (folder / f"{split.name}.jsonl").open("w", encoding="utf-8") as pairs:
                    pairs.writelines(map(json_line, kept))
            write_mark(folder, mark)
            for written in folder.iterdir():
                written.chmod(0o600)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--output_dir", "folder for --clean")) from None
    return removed


def _removed(split: Split, why: Sequence[str]) -> list[tuple[str, int, str, str]]:
    """(split, data row from 0, id, reason) of each row that goes, in the order of the data; for
    people's spreadsheets."""
    bad = {row.row: row.reason for row in split.skipped}
    rows = np.setdiff1d(np.arange(split.n_rows), list(bad)).tolist()
    lines = [(split.name, row, "", reason) for row, reason in bad.items()]
    lines += [
        (split.name, row, for_spreadsheet(pair.id), reason)
        for row, pair, reason in zip(rows, split.pairs, why, strict=True)
        if reason
    ]
    return sorted(lines)
