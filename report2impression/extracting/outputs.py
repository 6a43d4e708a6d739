"""Where results go: whole lines, appended and on the disk block by block.

A line is one report in every format, so that a file can be cut after any of them. Several processes
may append to one file: each holds its lock for as long as it writes, and first cuts off what a
process that died left of a line. Whatever kills the writing, `done_ids` finds what is whole.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from report2impression.extracting.fhir import diagnostic_report
from report2impression.extracting.impressions import Impression
from report2impression.extracting.options import NAMES, ExtractConfig, Format
from report2impression.program.errors import ConfigError, DataError, StorageError
from report2impression.program.files import flush, make_folder
from report2impression.program.privacy import for_spreadsheet
from report2impression.reading.rows import lines

COLUMNS = (
    *("id", "group", "status", "reason", "impression", "urgency", "confidence", "supported"),
    *("unsupported", "findings"),
)
TAIL = 2**16  # bytes looked at for the end of the last whole line


def writer(config: ExtractConfig) -> Callable[[Impression], bytes]:
    """Impression -> its line, newline included."""
    kind = config.kind()
    if kind == "json":
        return lambda found: _json(found.as_json())
    if kind == "fhir":
        version, urgency = config.fhir_version, config.fhir_urgency
        return lambda found: _json(diagnostic_report(found.as_json(), version, urgency=urgency))
    if kind == "csv":
        return lambda found: _csv(_cells(found))
    return lambda found: f"{_flat(found.id)}\t{_flat(found.text)}\n".encode()


def header(kind: Format) -> bytes:
    """What a file begins with."""
    return _csv(COLUMNS) if kind == "csv" else b""


def output_file(config: ExtractConfig) -> Path | None:
    """None: standard output. A name without an ending is a folder."""
    if config.output == "-":
        return None
    path = Path(config.output).expanduser()
    is_folder = path.is_dir() or config.output.endswith("/") or not path.suffix
    return path / NAMES[config.kind()] if is_folder else path


def _json(plain: Any) -> bytes:
    return json.dumps(plain, ensure_ascii=False).encode() + b"\n"


def _csv(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _flat(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def _cells(found: Impression) -> list[str]:
    plain = found.as_json()
    stated = [finding for item in plain["items"] for finding in item["findings"]]
    told = [
        " ".join(filter(None, (f["presence"], f["laterality"], f["severity"], f["term"])))
        for f in stated
    ]
    confidence = plain["checks"]["confidence"]
    cells = [found.id, found.group or "", found.status, found.reason or "", found.text]
    cells += [found.urgency, "" if confidence is None else str(confidence)]
    cells += [str(found.supported).lower(), "; ".join(found.unsupported), "; ".join(told)]
    return [for_spreadsheet(_flat(cell)) for cell in cells]


class Lines:
    """A file of results, open for appending. Raises ConfigError where it cannot be used."""

    def __init__(self, file: Path, begin: bytes = b"") -> None:
        self.file = file
        try:
            make_folder(file.parent.absolute())
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(file, flags, 0o600)
            os.fchmod(self._handle, 0o600)
            flush(file.parent)
        except OSError as error:
            raise ConfigError(f"--output {file} cannot be written: {error.strerror}") from None
        if begin and not os.fstat(self._handle).st_size:
            self.append([begin])

    def append(self, parts: Iterable[bytes]) -> None:
        """Whole lines, on the disk when this returns. Raises StorageError."""
        data = memoryview(b"".join(parts))
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX)
            try:
                self._cut_torn_line()
                while data:
                    data = data[os.write(self._handle, data) :]
                os.fsync(self._handle)
            finally:
                fcntl.lockf(self._handle, fcntl.LOCK_UN)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.file}: {error.strerror}; make room, then the same command "
                "with --resume goes on"
            ) from None

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._handle).st_size
        end = size
        while end:
            start = max(0, end - TAIL)
            newline = os.pread(self._handle, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._handle, end)

    def close(self) -> None:
        os.close(self._handle)


class StandardOutput:
    """The same for a terminal or a pipe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, parts: Iterable[bytes]) -> None:
        for part in parts:
            self._stream.write(part)
        self._stream.flush()

    def close(self) -> None:
        pass


class Done:
    """Which ids a file of results holds already, each as often as it stands there: 16 bytes an
    id."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        digests = np.fromiter((_digest(one) for one in ids), dtype=np.uint64)
        self._known: NDArray[np.uint64]
        self._known, self._left = np.unique(digests, return_counts=True)

    def __len__(self) -> int:
        return int(self._left.sum())

    def take(self, one: str) -> bool:
        """Whether it is there; each place in the file stands for one report."""
        if not len(self._known):
            return False
        digest = _digest(one)
        place = int(np.searchsorted(self._known, np.uint64(digest)))
        there = place < len(self._known) and int(self._known[place]) == digest
        if not there or not self._left[place]:
            return False
        self._left[place] -= 1
        return True


def _digest(one: str) -> int:
    data = one.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def done_ids(file: Path, kind: Format) -> Iterator[str]:
    """Of the whole lines of a file of results. DataError: it is none."""
    for number, line in lines(file):
        if line is None or not line.endswith(b"\n"):
            return  # torn: it will be cut off
        if kind == "csv" and number == 1:
            continue
        try:
            yield _id_of(line.decode(), kind)
        except (ValueError, KeyError, IndexError, TypeError):
            raise DataError(
                f"{file} line {number} is no result in the format {kind}: give another --output"
            ) from None


def _id_of(line: str, kind: Format) -> str:
    if kind == "json":
        return str(json.loads(line)["id"])
    if kind == "fhir":
        return str(json.loads(line)["identifier"][0]["value"])
    if kind == "csv":
        (cells,) = csv.reader([line])
        return cells[0]
    return line.split("\t")[0]


def as_written(one: str, kind: Format) -> str:
    """An id as `done_ids` gives it back."""
    if kind == "text":
        return _flat(one)
    return for_spreadsheet(_flat(one)) if kind == "csv" else one
