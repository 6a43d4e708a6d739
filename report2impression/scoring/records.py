"""per_report.jsonl: what each report added to the figures of each system, without its text.

Line 1:          {"format": "per_report 1", "signature": {...}}   how all was scored
all other lines: {"id": str, "system": str, <F1 by metric>, "bleu": [10 counts]}

F1 is in [0, 1], counts are in the order of scoring.rouge_bleu.BLEU_COUNTS. Floats are written in
full, so figures from the file equal those of the run to the last bit. Two runs can be compared
report by report long after, and none of the texts has to be kept for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from report2impression.program.errors import ConfigError, DataError
from report2impression.program.files import write_file
from report2impression.scoring.rouge_bleu import ALL_ROUGE, BLEU_COUNTS, Statistics

FORMAT = "per_report 1"
FILE = "per_report.jsonl"


@dataclass(frozen=True)
class Records:
    """Content of one file."""

    path: Path
    ids: list[str]
    systems: dict[str, Statistics]
    """Each in the order of `ids`."""
    signature: dict[str, str]

    def of(self, system: str) -> Statistics:
        """Raises ConfigError if the run had no such system."""
        if system not in self.systems:
            there = ", ".join(self.systems)
            raise ConfigError(f"{self.path}: no system {system!r} in it; name one of {there}")
        return self.systems[system]


def write_per_report(
    path: Path,
    ids: Sequence[str],
    systems: Mapping[str, Statistics],
    signature: Mapping[str, str],
) -> None:
    """Write all or nothing. Raises ConfigError if the folder cannot be written."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "signature": dict(signature)}]
    for system, found in systems.items():
        for i, (name, counts) in enumerate(zip(ids, found.bleu.tolist(), strict=True)):
            f1 = {metric: float(found.rouge[metric][i]) for metric in ALL_ROUGE}
            lines.append({"id": name, "system": system, **f1, "bleu": counts})
    try:
        write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write {path}: {reason}; choose another --output_dir") from None


def read_per_report(path: Path) -> Records:
    """The records of a file, or of an evaluation folder. DataError tells of the first broken line;
    ConfigError if there is no such file."""
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{path}: {reason}; name an evaluation folder (it holds {FILE}), or run eval.py again"
        ) from None
    signature = _signature(path, lines[0])
    rows: dict[str, dict[str, list[float]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            system, name, row = _row(path, number, line)
            known = rows.setdefault(system, {})
            if name in known:
                raise DataError(f"{path} line {number}: id {name!r} stands twice; ids must differ")
            known[name] = row
    if not rows:
        raise DataError(f"{path}: no reports in it; run eval.py again")
    ids = list(next(iter(rows.values())))
    for system, found in rows.items():
        if list(found) != ids:
            raise DataError(f"{path}: {system} has other reports than the rest; run eval.py again")
    systems = {system: _statistics(list(found.values())) for system, found in rows.items()}
    return Records(path, ids, systems, signature)


def _signature(path: Path, line: bytes) -> dict[str, str]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    known = isinstance(header, dict) and header.get("format") == FORMAT
    if not (known and isinstance(header.get("signature"), dict)):
        raise DataError(f"{path} line 1: not the head of a {FORMAT!r} file; run eval.py again")
    return header["signature"]


def _row(path: Path, number: int, line: bytes) -> tuple[str, str, list[float]]:
    try:
        row = json.loads(line)
        f1, counts = [row[metric] for metric in ALL_ROUGE], row["bleu"]
        good = isinstance(row["id"], str) and isinstance(row["system"], str)
        good &= all(type(x) in (int, float) and 0 <= x <= 1 for x in f1)
        good &= len(counts) == len(BLEU_COUNTS) and all(type(x) is int and x >= 0 for x in counts)
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise DataError(f"{path} line {number}: not a record of a report; run eval.py again")
    return row["system"], row["id"], [*f1, *counts]


def _statistics(rows: list[list[float]]) -> Statistics:
    table = np.array(rows, dtype=float)
    n = len(ALL_ROUGE)
    return Statistics(
        {metric: table[:, i] for i, metric in enumerate(ALL_ROUGE)}, table[:, n:].astype(np.int64)
    )
