"""mapped.py: written in pieces, read whole or counted as absent; one writer; its owner's only."""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from report2impression.batching import mapped
from report2impression.batching.mapped import Growing, GrowingRows, Strings, arrays_of, encode

DTYPES = {"ids": np.int32, "ends": np.int64, "text": np.uint8}
FILES = ("ids.npy", "ends.npy", "text.npy", "SHA256SUMS")


def fill(arrays: Mapping[str, Growing]) -> None:
    for name, array in arrays.items():
        for size in (3, 0, 40):
            array.append(np.arange(size, dtype=DTYPES[name]))


def expected() -> list[int]:
    return [0, 1, 2, *range(40)]


def never(_: Mapping[str, Growing]) -> None:
    raise AssertionError("written again")


def test_pieces_become_one_array(tmp_path: Path) -> None:
    written = arrays_of(tmp_path / "set", DTYPES, fill)
    read = arrays_of(tmp_path / "set", DTYPES, never)
    for arrays in (written, read):
        for name, dtype in DTYPES.items():
            array = arrays[name]
            assert array.tolist() == expected() and array.dtype == dtype
            assert type(array) is np.ndarray and not array.flags.writeable
            base: Any = array.base
            assert isinstance(base, np.memmap)  # on disk, not in memory


def test_numpy_reads_the_files(tmp_path: Path) -> None:
    arrays_of(tmp_path / "set", DTYPES, fill)
    assert np.load(tmp_path / "set" / "ids.npy", allow_pickle=False).tolist() == expected()


@pytest.mark.parametrize("length", [0, 1, 9, 10, 2**31, 2**62])
def test_any_length_fits_into_the_header(tmp_path: Path, length: int) -> None:
    """It is written before the length is known, and again afterwards."""
    with open(tmp_path / "array.npy", "wb") as file:
        array = Growing(file, np.int32)
        begin = file.tell()
        array.length = length
        file.seek(0)
        array._write_header()
        assert file.tell() == begin and begin % 64 == 0


def test_nothing_at_all_is_an_array_too(tmp_path: Path) -> None:
    arrays = arrays_of(tmp_path / "set", {"ids": np.int32}, lambda _: None)
    assert arrays["ids"].tolist() == [] and arrays["ids"].dtype == np.int32
    arrays_of(tmp_path / "set", {"ids": np.int32}, never)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=4), max_size=4))
def test_rows_of_any_length_come_back(tmp_path: Path, pieces: list[list[list[int]]]) -> None:
    def write(arrays: Mapping[str, Growing]) -> None:
        rows = GrowingRows(arrays["values"], arrays["offsets"])
        for piece in pieces:
            values = np.array([value for row in piece for value in row], dtype=np.int32)
            rows.append(values, np.array([len(row) for row in piece], dtype=np.int64))

    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    arrays = arrays_of(tmp_path / "set", {"values": np.int32, "offsets": np.int64}, write)
    values, offsets = arrays["values"], arrays["offsets"]
    found = [values[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert found == [row for piece in pieces for row in piece]


def flipped(place: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        file.write_bytes(data)

    return damage


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "torn": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "no text": lambda file: file.write_bytes(b"\xff\xfe" + file.read_bytes()),
    "a folder": as_folder,
    **{f"flipped at {place}": flipped(place) for place in (0.0, 0.3, 0.7, 1.0)},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_found_and_mended(tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "set"
    mapped_before = arrays_of(folder, DTYPES, fill)
    DAMAGES[damage](folder / file)
    calls: list[int] = []

    def again(arrays: Mapping[str, Growing]) -> None:
        calls.append(1)
        fill(arrays)

    mended = arrays_of(folder, DTYPES, again)
    assert calls and all(mended[name].tolist() == expected() for name in DTYPES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert mapped_before.keys() == mended.keys()  # a map of what is gone hurts nobody


def test_a_set_that_was_written_otherwise_is_written_anew(tmp_path: Path) -> None:
    arrays_of(tmp_path / "set", {"ids": np.int64}, lambda _: None)
    with pytest.raises(AssertionError, match="written again"):
        arrays_of(tmp_path / "set", {"ids": np.int32}, never)
    with pytest.raises(AssertionError, match="written again"):
        arrays_of(tmp_path / "set", {"more": np.int64}, never)


def test_what_cannot_be_read_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_read", lambda *_: None)
    with pytest.raises(OSError, match="does not read back"):
        arrays_of(tmp_path / "set", DTYPES, fill)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mode & 0o777 for p in folder.rglob("*")}


@pytest.mark.usefixtures("no_umask")
def test_only_the_owner_reads_them(tmp_path: Path) -> None:
    during: dict[str, int] = {}

    def spy(arrays: Mapping[str, Growing]) -> None:
        fill(arrays)
        during.update(modes(tmp_path))

    folder = tmp_path / "a" / "cache"
    arrays_of(folder / "set", DTYPES, spy)
    after = modes(tmp_path)
    del during["a"], after["a"]  # made on the way, and empty but for the cache
    assert {m for name, m in during.items() if name.endswith(("npy", ".lock"))} == {0o600}
    assert during["a/cache/set.partial"] == 0o700
    assert after == {
        "a/cache": 0o700,
        "a/cache/.lock": 0o600,
        "a/cache/set": 0o700,
        **{f"a/cache/set/{name}": 0o600 for name in FILES},
    }


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("text")]
)
def test_a_failed_write_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def half(arrays: Mapping[str, Growing]) -> None:
        arrays["ids"].append(np.arange(9, dtype=np.int32))
        raise failure

    with pytest.raises(type(failure)):
        arrays_of(tmp_path / "set", DTYPES, half)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert arrays_of(tmp_path / "set", DTYPES, fill)["ids"].tolist() == expected()


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    for name in ("set.partial", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.npy").write_bytes(b"half")
    arrays_of(tmp_path / "set", DTYPES, fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "set"]


def test_one_writes_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, found = threading.Event(), []
    lock = fcntl.flock

    def telling(handle: int, how: int) -> None:
        waits.set()
        lock(handle, how)

    def second() -> None:
        found.append(arrays_of(tmp_path / "set", DTYPES, never))

    thread = threading.Thread(target=second)
    with mapped._locked(tmp_path):
        monkeypatch.setattr(mapped.fcntl, "flock", telling)
        thread.start()
        assert waits.wait(60)  # it has seen that nothing is there
        mapped._write(tmp_path / "set", DTYPES, fill)
    thread.join(60)
    assert found and found[0]["ids"].tolist() == expected()


texts = st.lists(st.text(st.characters(exclude_categories=())), max_size=9)


@given(texts, st.slices(9))
def test_strings_are_a_list_of_texts(items: list[str], part: slice) -> None:
    data, lengths = encode(items)
    strings = Strings(data, np.concatenate([[0], np.cumsum(lengths)]))
    assert len(strings) == len(items) and list(strings) == items
    assert strings[part] == items[part]
    for i in range(-len(items), len(items)):
        assert strings[i] == items[i]
    for i in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            strings[i]
