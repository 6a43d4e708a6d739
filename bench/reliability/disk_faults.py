"""A disk that kills, tears, fails or forgets: put in the place of `os` in files.py and durable.py.

    with faulty(Fault(at=7, kind="kill before")):    in a forked child
        durable.commit(...)

Every call of a function of WATCHED is one operation, counted from 0. `Journal` records them
instead, and `states_after_power_loss` gives the disks that a power cut may leave behind: names that
no folder flush confirmed and bytes that no file flush confirmed are there, gone or torn.
"""

import errno
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from report2impression.program import files
from report2impression.runs import durable

CHANGES = ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir")
WATCHED = (*CHANGES, "listdir", "lstat", "statvfs")
TEARS = ("torn 0", "torn 50", "torn 99")
ERRNOS = {
    "full": errno.ENOSPC,
    "broken": errno.EIO,
    "read-only": errno.EROFS,
    "quota": errno.EDQUOT,
}


@dataclass
class Fault:
    """What happens at the at-th operation: "kill before|after", "torn PERCENT" (a write of a part,
    then a kill), or one of ERRNOS; `for_good`, at every change after it, too."""

    at: int
    kind: str
    for_good: bool = False


@dataclass
class Disk:
    """The module `os`, with a fault in it."""

    fault: Fault | None = None
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return partial(self._call, name, real) if name in WATCHED else real

    def _call(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        if not self.fault or not self._is_struck(number, name):
            return real(*args)
        kind = self.fault.kind
        if kind in ERRNOS:
            if name == "close":
                real(*args)  # the handle is gone all the same
            raise OSError(ERRNOS[kind], os.strerror(ERRNOS[kind]))
        if kind.startswith("torn") and name == "write":
            handle, data = args
            real(handle, data[: len(data) * int(kind[5:]) // 100])
        try:
            if kind == "kill after":
                real(*args)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_struck(self, number: int, name: str) -> bool:
        assert self.fault
        later = self.fault.for_good and number > self.fault.at and name in CHANGES
        return number == self.fault.at or later


@contextmanager
def faulty(fault: Fault | None = None) -> Iterator[Disk]:
    disk = Disk(fault)
    with _in_place(disk):
        yield disk


def install(fault: Fault) -> None:
    """For good: in a forked process."""
    _put(Disk(fault))


@contextmanager
def _in_place(disk: Any) -> Iterator[None]:
    before = durable.os
    _put(disk)
    try:
        yield
    finally:
        _put(before)


def _put(disk: Any) -> None:
    durable.os = files.os = disk


@contextmanager
def journal(root: Path, after: Callable[["Journal"], None]) -> Iterator["Journal"]:
    """What durable does below root is recorded; `after` is called after every change."""
    kept = Journal(root, after)
    with _in_place(kept):
        yield kept


def start(action: Callable[[], object], *, quiet: bool = True) -> int:
    """Run it in a forked process; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        own_progress_bars()
        if quiet:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def own_progress_bars() -> None:
    """tqdm's lock is shared by all forks: one that is killed while it holds it stops the rest."""
    tqdm.set_lock(threading.RLock())


def ended(child: int) -> int:
    """Wait for its end: exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_child(action: Callable[[], object]) -> int:
    return ended(start(action))


def operations(action: Callable[[], object]) -> list[str]:
    """The operations of an undisturbed action."""
    with faulty() as disk:
        action()
    return disk.calls


def kills(calls: list[str]) -> list[Fault]:
    """Every way to be killed: before and after each operation, inside each write."""
    around = [Fault(at, f"kill {when}") for at in range(len(calls)) for when in ("before", "after")]
    inside = [Fault(at, tear) for at, name in enumerate(calls) if name == "write" for tear in TEARS]
    return around + inside


# --- power loss ----------------------------------------------------------------------------------


@dataclass
class _File:
    written: bytes = b""
    flushed: bytes = b""


@dataclass
class _Folder:
    """Names as the running system sees them, as they are on the disk, and the changes between."""

    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    flushed: dict[str, "_File | _Folder"] = field(default_factory=dict)
    changes: list[dict[str, "_File | _Folder | None"]] = field(default_factory=list)

    def change(self, names: dict[str, "_File | _Folder | None"]) -> None:
        self.changes.append(names)
        _apply(self.names, names)


def _apply(names: dict[str, _File | _Folder], change: dict[str, "_File | _Folder | None"]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Journal(Disk):
    """Passes everything on, and keeps a model of what is on the disk for certain."""

    def __init__(self, root: Path, after: Callable[["Journal"], None]) -> None:
        super().__init__()
        self.root, self.after = root, after
        self.top = _read_tree(root)
        self.handles: dict[int, _File | _Folder] = {}

    def _node(self, path: Path) -> "_File | _Folder":
        node: _File | _Folder = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, _Folder)
            node = node.names[part]
        return node

    def _folder(self, path: Path) -> _Folder:
        node = self._node(path)
        assert isinstance(node, _Folder)
        return node

    def _call(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        result = real(*args)
        if name in CHANGES:
            getattr(self, f"_{name}")(result, *args)
            with _in_place(os):
                self.after(self)
        return result

    def _open(self, handle: int, path: Path, flags: int, mode: int = 0) -> None:
        if flags & os.O_CREAT:
            self._folder(path.parent).change({path.name: _File()})
        self.handles[handle] = self._node(path)

    def _write(self, count: int, handle: int, data: bytes) -> None:
        node = self.handles[handle]
        assert isinstance(node, _File)
        node.written += bytes(data[:count])

    def _fsync(self, result: None, handle: int) -> None:
        node = self.handles[handle]
        if isinstance(node, _File):
            node.flushed = node.written
        else:
            node.flushed, node.changes = dict(node.names), []

    def _close(self, result: None, handle: int) -> None:
        del self.handles[handle]

    def _mkdir(self, result: None, path: Path, mode: int = 0) -> None:
        self._folder(path.parent).change({path.name: _Folder()})

    def _rename(self, result: None, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        parent = self._folder(old.parent)
        parent.change({old.name: None, new.name: parent.names[old.name]})

    def _unlink(self, result: None, path: Path) -> None:
        self._folder(path.parent).change({path.name: None})

    _rmdir = _unlink

    def after_power_loss(self, target: Path, draw: random.Random, share: float) -> None:
        """Write one of the possible disks: each unconfirmed change happened with that chance."""
        _write_tree(self.top, target, draw, share)


def _read_tree(folder: Path) -> _Folder:
    made = _Folder()
    for entry in os.scandir(folder):
        path = folder / entry.name
        if entry.is_dir():
            made.flushed[entry.name] = _read_tree(path)
        else:
            data = path.read_bytes()
            made.flushed[entry.name] = _File(data, data)
    made.names = dict(made.flushed)
    return made


def _write_tree(folder: _Folder, target: Path, draw: random.Random, share: float) -> None:
    target.mkdir()
    names = dict(folder.flushed)
    for change in folder.changes:
        if draw.random() < share:
            _apply(names, change)
    for name, node in names.items():
        if isinstance(node, _Folder):
            _write_tree(node, target / name, draw, share)
            continue
        data = node.flushed
        if node.written != node.flushed and draw.random() < share:  # some of it, or other bytes
            cut = draw.randrange(len(node.written) + 1)
            zeros = bytes(len(node.written) - cut) if draw.random() < 0.5 else b""
            data = node.written[:cut] + zeros
        (target / name).write_bytes(data)


# --- damage --------------------------------------------------------------------------------------


def damage(folder: Path, draw: random.Random, others: list[Path]) -> str:
    """Spoil one stored folder in one random way; what was done."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    file = draw.choice(files)
    data = file.read_bytes()
    kind = draw.choice(
        ("bit", "bit", "bit", "cut", "missing", "empty", "swapped", "longer", "foreign", "folder")
    )
    if kind == "bit":
        bit = draw.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
    elif kind == "cut":
        file.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "swapped":
        other = (draw.choice(others) / file.name).read_bytes()
        file.write_bytes(other if other != data else data + b"\0")
    elif kind == "longer":
        file.write_bytes(data + bytes(draw.randrange(1, 100)))
    elif kind == "foreign":
        (folder / f"{file.name}.pkl").write_bytes(b"cos\nsystem\n")
    else:
        file.unlink()
        file.mkdir()
    return f"{kind} {file.name}"
