"""Who may see what: the mark of credentialed data, and of everything that was made from it.

LICENCE.json lies beside pairs that `corpora.mimic_iii` wrote, beside what `audit.audit --clean`
made of them, and beside weights trained on either: {"source", "licence", "credentialed"}. Weights
may hold parts of the notes, so they fall under the licence of the notes. This module is the only
one that decides; trackers and weights/push.py ask it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from report2impression.program.errors import DataError
from report2impression.program.files import write_file

FILE = "LICENCE.json"
PHYSIONET = "PhysioNet Credentialed Health Data License and Use Agreement 1.5.0"

Credentialed = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Mark:
    """Where data come from, and whether an agreement restricts who may have them."""

    source: str
    licence: str
    credentialed: bool


MIMIC_III = Mark("MIMIC-III 1.4, NOTEEVENTS", PHYSIONET, credentialed=True)


def write_mark(folder: Path, mark: Mark) -> None:
    """Put the mark into a folder, whole, readable by its owner only. Raises OSError."""
    write_file(folder / FILE, json.dumps(asdict(mark), indent=1).encode() + b"\n")


def read_mark(folder: Path) -> Mark | None:
    """The folder's mark; None if it has none. DataError if it cannot be read: never a guess."""
    file = folder / FILE
    try:
        content = json.loads(file.read_bytes())
        mark = Mark(content["source"], content["licence"], content["credentialed"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        mark = None
    good = mark and isinstance(mark.source, str) and isinstance(mark.licence, str)
    if mark is None or not good or not isinstance(mark.credentialed, bool):
        raise DataError(
            f"{file} is not a mark of source, licence and credentialed (true or false): mend it, "
            "or write the data again"
        )
    return mark


def mark_of(path: str, setting: Credentialed = "auto") -> Mark:
    """The mark of a data set. `yes` and `no` are the user's word; `auto` takes its LICENCE.json,
    else its name: hub ids and folders named after MIMIC are copies of it."""
    folder = Path(path).expanduser()
    name = folder.resolve().name if folder.is_dir() else path
    found = read_mark(folder)
    if found is None and "mimic" in name.lower():
        found = Mark(f"{name} (named as MIMIC)", PHYSIONET, credentialed=True)
    if setting == "auto":
        return found or Mark(name, "as its owner says", credentialed=False)
    source, licence = (found.source, found.licence) if found else (name, "as its owner says")
    return Mark(source, licence, setting == "yes")


def inherited(data: Mark, base: str) -> Mark:
    """The mark of weights trained on the data from a base, which may bear a mark of its own."""
    found = read_mark(Path(base).expanduser())
    return found if found and found.credentialed and not data.credentialed else data
