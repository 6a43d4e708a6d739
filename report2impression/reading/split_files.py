"""Where a split of a folder lies: in a file, in shards, in a pair of .tok files, or in reports.

    DIR/train.jsonl | .json | .csv | .tsv (each also .gz or .zst) | .parquet
    DIR/train-00000-of-00003.parquet ...                    shards of any of these formats
    DIR/train/*.parquet ...                                 the same, in a folder of their own
    DIR/train/state.json + *.arrow                          what `datasets.save_to_disk` writes
    DIR/train/**/*.txt                                      whole reports with section headings
    DIR/data/..., DIR/default/...                           a copy of a hub set; if DIR has none
    DIR/train.findings.tok + DIR/train.impression.tok       one text per line
    DIR/GROUP/train.findings.tok + ...                      several groups; only if nothing else is

Each split has the names of SPLIT_NAMES, in any case. Two of these for one split are refused.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from report2impression.program.errors import ConfigError, DataError
from report2impression.reading import tok
from report2impression.reading.report_files import open_reports, report_files
from report2impression.reading.rows import ENDINGS, Table
from report2impression.reading.tables import ending_of, open_saved, open_shards, open_table

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "validate", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
PLACES = ("data", "default")  # subfolders in which copies of hub sets have their files
_ENDING = "|".join(map(re.escape, sorted(ENDINGS, key=len, reverse=True)))
_SHARD = r"[-_.](?P<number>\d+)(?:[-_]of[-_](?P<of>\d+))?(?:-[0-9a-f]{8,})?"
_SHOWN = 8  # names of what lies in a folder without the split


@dataclass(frozen=True)
class Found:
    """What holds a split, and what messages call it."""

    kind: Literal["file", "shards", "saved", "tok", "reports", "groups"]
    path: Path
    files: tuple[Path, ...] = ()
    n_wanted: int = 0  # of shards, as their names say


def find_split(folder: Path, split: str) -> Found:
    """What holds the split. DataError: nothing does; ConfigError: there are two."""
    for place in (folder, *(folder / name for name in PLACES)):
        found = list(_found(place, split, is_top=place == folder))
        if len(found) > 1:
            names = " and ".join(one.path.name for one in found)
            raise ConfigError(f"{place}: {names} are both there; keep one of them")
        if found:
            return found[0]
    if groups := tok.groups(folder, SPLIT_NAMES[split]):
        return Found("groups", folder, tuple(groups))
    raise DataError(
        f"{folder}: none of {split}.jsonl, {split}.json, {split}.csv, {split}.tsv (also .gz, "
        f".zst), {split}.parquet, {split}-*-of-*.parquet, {split}{tok.FINDINGS}, {split}/*.txt is "
        f"there; {_lies_there(folder)}; add one, or point `--data.path` to the folder that holds it"
    )


def open_split(folder: Path, split: str) -> Table:
    """The split of the folder as a table. DataError: missing or unreadable; ConfigError: twice."""
    found = find_split(folder, split)
    if found.kind == "groups":
        return tok.open_groups(found.files)
    if found.kind == "tok":
        return tok.open_tok(found.path)
    if found.kind == "reports":
        return open_reports(found.path)
    if found.kind == "saved":
        return open_saved(found.path)
    if found.kind == "file":
        return open_table(found.path)
    if found.n_wanted and len(found.files) != found.n_wanted:
        raise DataError(
            f"{found.path}: {len(found.files)} of {found.n_wanted} files are there; copy all of "
            "them"
        )
    return open_shards(found.path.name, found.files)


def _found(place: Path, split: str, *, is_top: bool) -> Iterator[Found]:
    names = "|".join(SPLIT_NAMES[split])
    shape = re.compile(rf"(?P<name>{names})(?:{_SHARD})?\.(?P<ending>{_ENDING})")
    shards: dict[tuple[str, str, int], list[Path]] = {}
    for path in _entries(place):
        lower = path.name.lower()
        if match := shape.fullmatch(lower):
            if match["number"] is None:
                yield Found("file", path)
            else:
                key = (path.name[: match.end("name")], match["ending"], int(match["of"] or 0))
                shards.setdefault(key, []).append(path)
        elif is_top and re.fullmatch(rf"(?:{names}){re.escape(tok.FINDINGS)}", lower):
            yield Found("tok", path)
        elif lower in SPLIT_NAMES[split] and path.is_dir():
            yield from _in_folder(path)
    for (name, ending, n_wanted), files in shards.items():
        yield Found("shards", place / f"{name}-*.{ending}", tuple(files), n_wanted)


def _in_folder(folder: Path) -> Iterator[Found]:
    """What a folder that is named after the split holds."""
    if os.path.lexists(folder / "state.json"):
        yield Found("saved", folder)
        return
    tables: dict[str, list[Path]] = {}
    for path in _entries(folder):
        if ending := ending_of(path.name):
            tables.setdefault(ending, []).append(path)
    for ending, files in tables.items():
        yield Found("shards", folder / f"*.{ending}", tuple(files))
    if next(report_files(folder), None):
        yield Found("reports", folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    except OSError:
        return []


def _lies_there(folder: Path) -> str:
    """What is found instead: names that tell nothing of a patient, and how many others."""
    if os.path.lexists(folder / "state.json"):
        return "found one saved set without splits: save a DatasetDict, or move it into train/"
    entries = _entries(folder)
    names = [path.name + "/" * path.is_dir() for path in entries]
    shown = [name for name in names if re.fullmatch(r"[A-Za-z][\w.-]{0,39}/?", name)]
    shown = [name for name in shown if not re.search(r"\d{3}", name) and not _is_report(name)]
    shown = shown[:_SHOWN]
    parts = [*shown, *_counted(name for name in names if name not in shown)]
    if not parts:
        return "the folder is empty"
    told = f"found {', '.join(parts)}"
    if next(report_files(folder), None) is None:
        return told
    return f"{told}; reports (.txt) belong in folders train/, validation/ and test/"


def _is_report(name: str) -> bool:
    return name.lower().endswith(".txt")


def _counted(names: Iterable[str]) -> list[str]:
    """Such as "12 .txt", "3 folders"."""
    kinds: dict[str, int] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        is_plain = re.fullmatch(r"\.[a-z]{1,8}", suffix)
        kind = "folders" if name.endswith("/") else suffix if is_plain else "other files"
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"{n:,} {kind}" for kind, n in kinds.items()]
