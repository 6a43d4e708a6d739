"""Arrays larger than memory: written as a stream, whole or not at all, and read through maps.

    FOLDER/NAME/           *.npy, one flat array each, and SHA256SUMS of them (`sha256sum -c`)
    FOLDER/NAME.partial/   being written, or left by a process that was killed
    FOLDER/.lock           held by the process that writes

A map costs address space, not memory: a page is in memory while somebody looks at it and there is
room. Folders and files are readable by their owner only, whatever the umask. A set of arrays that
is incomplete or not as it was written, to the bit, counts as absent.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from report2impression.program.files import discard, replaced, write_file

SUMS, LOCK, PARTIAL = "SHA256SUMS", ".lock", ".partial"
BUFFER = 1 << 20  # bytes: one write for many short arrays

Arrays = dict[str, NDArray[Any]]


class Growing:
    """A flat array on disk, written from front to back."""

    def __init__(self, file: BinaryIO, dtype: DTypeLike) -> None:
        self.file, self.dtype, self.length = file, np.dtype(dtype), 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def finish(self) -> None:
        """The header again, with the true length: numpy leaves room in it for any number."""
        end = self.file.tell()
        self.file.seek(0)
        self._write_header()
        assert end == self.file.tell() + self.length * self.dtype.itemsize
        self.file.flush()

    def _write_header(self) -> None:
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self.file, shape)


class GrowingRows:
    """Rows of any length on disk: all their values, and where each row begins and ends."""

    def __init__(self, values: Growing, offsets: Growing) -> None:
        self.values, self.offsets = values, offsets
        offsets.append(np.zeros(1, dtype=np.int64))

    def append(self, values: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Several rows, one after the other in `values`."""
        self.offsets.append(self.values.length + np.cumsum(lengths))
        self.values.append(values)


Writer = Callable[[Mapping[str, Growing]], None]


def arrays_of(folder: Path, dtypes: Mapping[str, DTypeLike], write: Writer) -> Arrays:
    """The arrays of these names, mapped; where they are not there, `write` fills them first.

    One process writes, all others that want the same wait for it. Raises OSError, and what `write`
    raises; either leaves nothing behind.
    """
    found = _read(folder, dtypes)
    if found is None:
        with _locked(folder.parent):
            found = _read(folder, dtypes)  # another process may have been faster
            if found is None:
                _write(folder, dtypes, write)
                found = _read(folder, dtypes)
    if found is None:
        raise OSError(f"{folder.name} does not read back as it was written")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The only process that writes there; the kernel gives the lock back however it ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(f"*{PARTIAL}"):  # by a process that was killed
            discard(left, quietly=True)
        yield
    finally:
        os.close(handle)


def _write(folder: Path, dtypes: Mapping[str, DTypeLike], write: Writer) -> None:
    with replaced(folder) as partial:
        with ExitStack() as opened:
            files = {n: opened.enter_context(_create(partial / f"{n}.npy")) for n in dtypes}
            arrays = {name: Growing(files[name], dtype) for name, dtype in dtypes.items()}
            write(arrays)
            for array in arrays.values():
                array.finish()
        write_file(partial / SUMS, _sums(partial, dtypes))


def _create(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return open(handle, "wb", buffering=BUFFER)


def _read(folder: Path, dtypes: Mapping[str, DTypeLike]) -> Arrays | None:
    """Mapped, each byte checked; None if one is missing or is not as it was written."""
    arrays: Arrays = {}
    try:
        if (folder / SUMS).read_bytes() != _sums(folder, dtypes):
            return None
        for name, dtype in dtypes.items():
            # A plain view: slices of numpy's own memmap class are slow to make.
            arrays[name] = np.asarray(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r"))
            if arrays[name].dtype != dtype:
                return None
    except (OSError, ValueError):
        return None
    return arrays


def _sums(folder: Path, names: Iterable[str]) -> bytes:
    lines = []
    for name in names:
        with open(folder / f"{name}.npy", "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}.npy\n")
    return "".join(lines).encode()


class Strings(Sequence[str]):
    """Texts in one array of UTF-8 bytes: 10 million names take 0.2 GB on disk, not 1 GB of
    memory."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        """Text i is data[offsets[i] : offsets[i + 1]]."""
        self.data, self.offsets = data, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # a negative one counts from the end
        text = self.data[self.offsets[place] : self.offsets[place + 1]]
        return text.tobytes().decode("utf-8", "surrogatepass")


def encode(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(their UTF-8 bytes one after the other, the length of each)."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), lengths
