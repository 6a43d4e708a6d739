"""Files and folders that are whole or not there: written aside, flushed, renamed.

Every operation on a file is a call of this module's `os`: the tests put one in its place that
kills, tears or fails at the n-th (runs/durable.py builds on it).
"""

import contextlib
import os
import shutil
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


def flush(path: Path) -> None:
    """Get a file's bytes, or a folder's names, onto the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """The same for a flat folder, all its files and its own name. Raises OSError."""
    for name in os.listdir(folder):
        flush(folder / name)
    flush(folder)
    flush(folder.parent)


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
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror}; make room or choose another --output_dir"
        ) from None
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
