"""Folders of files that are whole or not there, whatever kills the process or fills the disk.

    parent/step-00000120/     manifest.json and the files it names; there only if it is complete
    parent/.tmp-*             being written, or being deleted
    parent/.bad-step-*        found damaged and set aside

A folder is written under another name, every file and the folder are flushed to the disk, then it
is renamed: that rename is the one moment at which it comes to be. The manifest holds SHA-256 and
size of every file and a digest of itself, so that a flipped bit anywhere is found before any of it
is used. All bytes are read once: what was checked is what is used.

Every operation on a file is a call of this module's `os`, or of that of program/files.py: the tests
put one in their place that kills, tears or fails at the n-th.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from report2impression.program.errors import StorageError
from report2impression.program.files import discard, flush, storage_error, write_new

FORMAT = 1  # raise when the meaning of a stored folder changes
MANIFEST = "manifest.json"
ROOM = 3  # free space must hold so many folders of the size to be written
KINDS = {"format": int, "step": int, "facts": dict, "files": dict}
NAME = re.compile(r"step-(\d{8,15})")

Json = dict[str, Any]


class DamagedError(Exception):
    """A stored folder that cannot be trusted; the text says which file and why."""


@dataclass(frozen=True)
class Stored:
    """A folder that was read and found whole."""

    folder: Path
    facts: Json
    files: dict[str, bytes]


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value. Raises ValueError at NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def commit(parent: Path, step: int, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
    """Store the files as parent/step-N, whole or not at all, and read them back.

    Raises StorageError if that fails; what was there before is then still there. A folder in the
    way (found damaged earlier) is set aside.
    """
    described = {name: _described(data) for name, data in files.items()}
    manifest = _sealed({"format": FORMAT, "step": step, "facts": dict(facts), "files": described})
    temporary, final = parent / f".tmp-{step:08d}-{os.getpid()}", parent / folder_name(step)
    try:
        _ask_for_room(parent, sum(map(len, files.values())) + len(manifest))
        discard(temporary)  # of a process that had the same number
        os.mkdir(temporary, 0o700)
        for name, data in {**files, MANIFEST: manifest}.items():
            write_new(temporary / name, data)
        flush(temporary)
        set_aside(final)
        os.rename(temporary, final)
        flush(parent)
    except OSError as error:
        discard(temporary, quietly=True)
        raise storage_error(error, parent) from None
    try:
        read(final)
    except DamagedError as error:
        raise StorageError(
            f"{final} does not read back as it was written ({error}): look at the disk; the "
            "checkpoint before it is whole, run the same command again to go on from there"
        ) from None
    return final


def read(folder: Path) -> Stored:
    """All files of a stored folder, checked. Raises DamagedError."""
    if not stat.S_ISDIR(_mode(folder)):
        raise DamagedError("not a folder")
    manifest = _opened(_read_file(folder, MANIFEST))
    if folder.name != folder_name(manifest["step"]):
        raise DamagedError(f"{MANIFEST}: is that of step {manifest['step']}")
    there, named = set(_listed(folder)), {MANIFEST, *manifest["files"]}
    if there != named:
        odd = min(there ^ named)
        raise DamagedError(f"{odd}: {'missing' if odd in named else 'does not belong here'}")
    files = {}
    for name, expected in manifest["files"].items():
        files[name] = _read_file(folder, name)
        if (actual := _described(files[name])) != expected:
            raise DamagedError(f"{name}: {actual} instead of {expected}")
    return Stored(folder, manifest["facts"], files)


def newest(parent: Path) -> tuple[Stored | None, dict[Path, str]]:
    """(newest stored folder that is whole or None, why those newer than it were passed over)."""
    rejected: dict[Path, str] = {}
    for folder in reversed(stored(parent)):
        try:
            return read(folder), rejected
        except DamagedError as error:
            rejected[folder] = str(error)
    return None, rejected


def stored(parent: Path) -> list[Path]:
    """Everything that bears the name of a stored folder, whole or not, oldest first.

    Raises StorageError.
    """
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, parent) from None
    steps = {name: int(found[1]) for name in names if (found := NAME.fullmatch(name))}
    return [parent / name for name in sorted(steps, key=lambda name: (steps[name], name))]


def prune(parent: Path, *, keep: int, also: int | None = None) -> None:
    """Delete all but the newest `keep` and step `also`. Raises StorageError."""
    spared = {parent / folder_name(also)} if also is not None else set()
    for folder in stored(parent)[:-keep]:
        if folder not in spared:
            try:
                going = parent / f".tmp-old-{folder.name}"
                discard(going)
                os.rename(folder, going)  # half of it must not be taken for a damaged one
                discard(going)
            except OSError as error:
                raise storage_error(error, parent) from None


def set_aside(folder: Path) -> None:
    """Move a damaged folder out of the way, if it is there. Raises OSError."""
    taken = set(os.listdir(folder.parent))
    if folder.name in taken:
        number = next(n for n in count() if f".bad-{folder.name}-{n}" not in taken)
        os.rename(folder, folder.with_name(f".bad-{folder.name}-{number}"))


def clean(parent: Path, *, everything: bool = False) -> None:
    """Remove what a killed process left half-written; or all stored folders too.

    Foreign files stay. Raises StorageError.
    """
    ours = (".tmp-", ".bad-step-", "step-") if everything else (".tmp-",)
    try:
        for name in os.listdir(parent):
            if name.startswith(ours):
                discard(parent / name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, parent) from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _described(data: bytes) -> str:
    return f"{len(data)} bytes, SHA-256 {_sha256(data)}"


def _sealed(content: Json) -> bytes:
    return canonical({**content, "sha256": _sha256(canonical(content))})


def _opened(data: bytes) -> Json:
    """The content of a sealed manifest; DamagedError if any byte is not as it was written."""
    try:
        content = json.loads(data)
        whole = content.pop("sha256") and _sealed(content) == data
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamagedError(f"{MANIFEST}: is not as it was written")
    if content.get("format") != FORMAT:
        raise DamagedError(f"{MANIFEST}: format {content.get('format')}, this code reads {FORMAT}")
    if {name: type(value) for name, value in content.items()} != KINDS:
        raise DamagedError(f"{MANIFEST}: is no manifest of ours")
    return content


def _read_file(folder: Path, name: str) -> bytes:
    """A regular file's bytes; no link is followed, no pipe waited for."""
    if not stat.S_ISREG(_mode(folder / name)):
        raise DamagedError(f"{name}: not a file")
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            return file.read()
    except OSError as error:
        raise DamagedError(f"{name}: {error.strerror}") from None


def _mode(path: Path) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror}") from None


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DamagedError(f"{folder.name}: {error.strerror}") from None


def _ask_for_room(parent: Path, size: int) -> None:
    disk = os.statvfs(parent)
    free = disk.f_bavail * disk.f_frsize
    if free < ROOM * size:
        told = f"{ROOM * size:,} bytes are needed, {free:,} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({told})")
