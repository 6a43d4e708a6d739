"""Files and folders that are whole or not there: written aside, flushed, renamed.

Every operation on a file is a call of this module's `os`: the tests put one in its place that
kills, tears or fails at the n-th (runs/durable.py builds on it).
"""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from report2impression.program.errors import ConfigError, StorageError


def storage_error(error: OSError, folder: Path) -> StorageError:
    """What the disk did, told in one line."""
    reason = error.strerror or type(error).__name__
    return StorageError(
        f"cannot use {folder}: {reason}; make room or mend it, then run the same command "
        "again: it goes on from the last checkpoint"
    )


def make_folder(folder: Path) -> None:
    """With its parents, for the owner only, flushed to the disk. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        os.mkdir(folder, 0o700)
        flush(folder.parent)


def write_file(file: Path, data: bytes) -> None:
    """Replace a file by one that is whole and on the disk. Raises OSError."""
    temporary = file.with_name(f".tmp-{file.name}-{os.getpid()}")
    discard(temporary)
    try:
        write_new(temporary, data)
        os.rename(temporary, file)
        flush(file.parent)
    except OSError:
        discard(temporary, quietly=True)
        raise


def discard_unfinished(*files: Path) -> None:
    """Remove what killed processes left of them, NAME.partial by older versions. Raises OSError."""
    for file in files:
        left = re.compile(rf"\.tmp-{re.escape(file.name)}-\d+|{re.escape(file.name)}\.partial")
        for name in filter(left.fullmatch, os.listdir(file.parent)):
            discard(file.parent / name)


def flush(path: Path) -> None:
    """Get a file's bytes, or a folder's names, onto the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """The same for a folder, all in it and its own name. Raises OSError."""
    _flush_all(folder)
    flush(folder.parent)


def _flush_all(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            _flush_all(path / name)
    flush(path)


def write_new(file: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(file, flags, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(path: Path, *, quietly: bool = False) -> None:
    """Remove a file, a link or a folder with all in it; no link is followed."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        for name in os.listdir(path):
            discard(path / name)
        os.rmdir(path)
    except OSError as error:
        if not (quietly or isinstance(error, FileNotFoundError)):
            raise


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to that becomes `target` when the block ends, and goes if it fails.

    Only its owner may read it. ConfigError: `target` is there and not empty, or cannot be written.
    """
    partial = None
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} is there and not empty; choose another --output_dir")
        target.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        partial = Path(name)
        yield partial
        flush_tree(partial)
        os.rename(partial, target)
        flush(target.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror}; make room or choose another --output_dir"
        ) from None
    finally:
        if partial:
            discard(partial, quietly=True)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `folder` when the block ends, on the disk.

    Only its owner may read it. Wherever a kill strikes, the one before or the new one is whole
    under its name, or under NAME.old, where `restore` finds it. Raises OSError.
    """
    partial, old = _beside(folder, ".partial"), _beside(folder, ".old")
    restore(folder)
    discard(partial)  # what a kill left
    try:
        os.mkdir(partial, 0o700)
        yield partial
        flush_tree(partial)
        if os.path.lexists(folder):
            os.rename(folder, old)
        os.rename(partial, folder)
        flush(folder.parent)
    finally:
        discard(partial, quietly=True)
        with contextlib.suppress(OSError):
            restore(folder)


def restore(folder: Path) -> None:
    """Set right what a kill within `replaced` left: the one before gets its name back where no new
    one took it, else it goes. Raises OSError."""
    partial, old = _beside(folder, ".partial"), _beside(folder, ".old")
    if os.path.lexists(old) and os.path.lexists(folder):
        discard(partial)
        os.rename(old, partial)  # half of it must not be taken for a whole one
        discard(partial)
    elif os.path.lexists(old):
        os.rename(old, folder)
        flush(folder.parent)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)
