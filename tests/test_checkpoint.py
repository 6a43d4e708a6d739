"""durable.py: whole or not there, whatever happens, and damage found before use."""

import contextlib
import errno
import hashlib
import json
import os
import random
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reliability.disk_faults import (
    ERRNOS,
    Fault,
    Journal,
    damage,
    faulty,
    in_a_child,
    journal,
    kills,
    operations,
)
from report2impression.program import files
from report2impression.program.errors import StorageError
from report2impression.runs import durable
from report2impression.runs.durable import DamagedError, commit, newest, prune, read, stored


def contents(step: int) -> dict[str, bytes]:
    draw = random.Random(step)
    return {
        "a.safetensors": draw.randbytes(3000),
        "b.safetensors": draw.randbytes(99),
        "c.json": b"{}",
    }


def keep_one_more(parent: Path, step: int) -> None:
    """What a run does when a checkpoint is due."""
    files.make_folder(parent)
    commit(parent, step, contents(step), {"run": "x", "n": step})
    prune(parent, keep=2, also=1)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3):
        keep_one_more(folder, step)
    return folder


def whole(parent: Path) -> int:
    """Step of the newest whole folder, whose bytes are the right ones."""
    found, _ = newest(parent)
    assert found
    step = found.facts["n"]
    assert found.files == contents(step) and found.folder.name == durable.folder_name(step)
    return step


def names(parent: Path) -> set[str]:
    return {entry.name for entry in os.scandir(parent)}


def test_what_is_stored_is_read_back(parent: Path) -> None:
    assert whole(parent) == 3
    assert [path.name for path in stored(parent)] == [f"step-0000000{n}" for n in (1, 2, 3)]
    for path in (parent.parent, parent, *parent.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0


def test_numbers_count_not_names(parent: Path) -> None:
    steps = (99_999_999, 100_000_000, 4)
    for step in steps:
        commit(parent, step, contents(step), {"n": step})
    assert [int(path.name[5:]) for path in stored(parent)] == [1, 2, 3, *sorted(steps)]
    assert whole(parent) == 100_000_000


def test_one_spelling_of_a_value() -> None:
    assert durable.canonical({"b": [1, 2.5], "a": {"é": None}}) == (
        b'{"a":{"\\u00e9":null},"b":[1,2.5]}'
    )


def test_the_last_and_the_best_stay(parent: Path) -> None:
    for step in (4, 5, 120_000_000):
        keep_one_more(parent, step)
    assert names(parent) == {"step-00000001", "step-00000005", "step-120000000"}
    prune(parent, keep=1)
    assert names(parent) == {"step-120000000"}


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") == (None, {}) and stored(tmp_path / "none") == []
    durable.clean(tmp_path / "none")
    for name in (".tmp-00000004-1", "step-4", "step-0000000x", "latest"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path) == (None, {})  # a save that never came to its end is no checkpoint


# --- killed --------------------------------------------------------------------------------------


def test_killed_anywhere_in_a_save(parent: Path) -> None:
    """Before, after and inside every file operation: the folder before or the new one is whole, and
    the next save succeeds."""
    calls = operations(partial(keep_one_more, parent, 4))
    assert {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"} <= set(calls)
    # After an operation is before the next one.
    faults = [fault for fault in kills(calls) if fault.kind != "kill before" or fault.at == 0]
    for step, fault in zip(range(5, 10_000, 2), faults, strict=False):

        def save(step: int = step, fault: Fault = fault) -> None:
            with faulty(fault):
                keep_one_more(parent, step)

        before = whole(parent)
        assert in_a_child(save) == -9
        assert whole(parent) in (before, step), fault
        durable.clean(parent)  # as the next start does
        assert not any(name.startswith(".") for name in names(parent))
        assert len(stored(parent)) <= 4 and (parent / "step-00000001").is_dir()
        keep_one_more(parent, step + 1)
        assert whole(parent) == step + 1 and len(stored(parent)) == 3


def test_power_lost_anywhere_in_a_save(parent: Path, tmp_path: Path) -> None:
    """Whatever of the unconfirmed names and bytes got onto the disk: never garbage, never nothing,
    and the new one once the save has returned."""
    draw, disks = random.Random(0), tmp_path / "disks"
    disks.mkdir()
    n_tried = 0

    def cut_power(kept: Journal, *, at_least: int = 3) -> None:
        nonlocal n_tried
        for share in (0.0, 0.3, 0.7, 1.0):
            disk = disks / str(n_tried)
            kept.after_power_loss(disk, draw, share)
            assert whole(disk) >= at_least
            n_tried += 1

    with journal(parent, cut_power) as kept:
        commit(parent, 4, contents(4), {"n": 4})
    cut_power(kept, at_least=4)
    with journal(parent, partial(cut_power, at_least=4)):
        prune(parent, keep=2)
    assert n_tried > 100


@pytest.mark.parametrize("left_out", ["names of the parent", "names in the folder", "bytes"])
def test_a_flush_that_is_left_out_would_be_found(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    flush, confirmed = files.flush, Journal._fsync

    def some_names(path: Path) -> None:
        if (path == parent) != (left_out == "names of the parent"):
            flush(path)

    def no_bytes(self: Journal, result: None, handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            confirmed(self, result, handle)

    if left_out == "bytes":
        monkeypatch.setattr(Journal, "_fsync", no_bytes)
    else:
        monkeypatch.setattr(durable, "flush", some_names)
    with pytest.raises(AssertionError):
        test_power_lost_anywhere_in_a_save(parent, tmp_path)


# --- disk errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(ERRNOS))
def test_an_error_of_the_disk_at_every_operation(parent: Path, kind: str) -> None:
    """StorageError or no harm at all; what was whole stays whole, nothing half-written stays."""
    calls = operations(partial(keep_one_more, parent, 4))
    n_told = 0
    for at in range(len(calls)):
        before, step = whole(parent), 5 + at
        with faulty(Fault(at, kind)):
            try:
                keep_one_more(parent, step)
            except StorageError as error:
                n_told += 1
                assert str(parent) in str(error) and "\n" not in str(error)
        assert whole(parent) in (before, step)
        durable.clean(parent)
        if whole(parent) != step:
            keep_one_more(parent, step)
    assert n_told > len(calls) / 2


@pytest.mark.parametrize("everything", [False, True])
def test_what_cannot_be_removed_is_told(parent: Path, everything: bool) -> None:
    (parent / ".tmp-half").mkdir()
    calls = operations(partial(durable.clean, parent, everything=everything))
    for at in range(len(calls)):
        (parent / ".tmp-half").mkdir(exist_ok=True)
        if everything:
            (parent / "step-00000001").mkdir(exist_ok=True)
        with faulty(Fault(at, "read-only")) as disk:
            try:
                durable.clean(parent, everything=everything)
                assert len(disk.calls) <= at  # less to remove than the first time
            except StorageError as error:
                assert f"cannot use {parent}: Read-only" in str(error)


@pytest.mark.parametrize("kind", sorted(ERRNOS))
def test_a_disk_that_is_gone_for_good(parent: Path, kind: str) -> None:
    """Then what is half-written cannot be removed either: still one StorageError."""
    calls = operations(partial(keep_one_more, parent, 4))
    for at in range(len(calls)):
        with faulty(Fault(at, kind, for_good=True)), contextlib.suppress(StorageError):
            keep_one_more(parent, 5 + at)
        assert newest(parent)[0]
        durable.clean(parent)


def test_what_the_disk_did_is_told(tmp_path: Path) -> None:
    again = "make room or mend it, then run the same command again: it goes on from the last "
    told = str(files.storage_error(OSError(28, "No space left on device"), tmp_path))
    assert told == f"cannot use {tmp_path}: No space left on device; {again}checkpoint"
    told = str(files.storage_error(TimeoutError(), tmp_path))
    assert told == f"cannot use {tmp_path}: TimeoutError; {again}checkpoint"


def test_room_is_asked_for_all_that_is_written(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(durable, "_ask_for_room", lambda _, size: asked.append(size))
    folder = commit(parent, 4, contents(4), {"n": 4})
    assert asked == [sum(file.stat().st_size for file in folder.iterdir())]


def test_a_full_disk_is_noticed_before(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "ROOM", 10**15)
    with pytest.raises(StorageError, match=r"No space left.*bytes are needed, [\d,]+ are free"):
        keep_one_more(parent, 4)
    assert whole(parent) == 3


def test_a_disk_that_writes_other_bytes(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = files.write_new
    monkeypatch.setattr(durable, "write_new", lambda file, data: written(file, data[:-1]))
    with pytest.raises(StorageError) as caught:
        commit(parent, 4, contents(4), {"n": 4})
    assert str(caught.value) == (
        f"{parent / 'step-00000004'} does not read back as it was written (manifest.json: is not "
        "as it was written): look at the disk; the checkpoint before it is whole, run the same "
        "command again to go on from there"
    )
    assert whole(parent) == 3


@pytest.mark.parametrize("at", range(8))
def test_a_file_is_replaced_or_left(tmp_path: Path, at: int) -> None:
    file = tmp_path / "status.json"
    files.write_file(file, b"old")
    with faulty(Fault(at, "broken")) as disk:
        try:
            files.write_file(file, b"new")
        except OSError:
            assert len(disk.calls) > at
    assert file.read_bytes() in (b"old", b"new") and names(tmp_path) == {"status.json"}


# --- folders whose files others write -------------------------------------------------------------


def replace(folder: Path, text: bytes) -> None:
    with files.replaced(folder) as new:
        files.make_folder(new / "inner")
        for name in ("a", "inner/b"):
            files.write_new(new / name, text)


def replaced_text(folder: Path) -> bytes:
    """What the next start finds; one text in both files, or it is no whole folder."""
    files.restore(folder)
    (text,) = {(folder / name).read_bytes() for name in ("a", "inner/b")}
    assert names(folder) == {"a", "inner"} and names(folder / "inner") == {"b"}
    return text


def test_killed_anywhere_while_a_folder_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    replace(folder, b"0")
    found = b"0"
    for number, fault in enumerate(kills(operations(partial(replace, folder, b"0"))), 1):

        def killed(text: bytes = b"%d" % number, fault: Fault = fault) -> None:
            with faulty(fault):
                replace(folder, text)

        assert in_a_child(killed) == -9
        assert (before := found, found := replaced_text(folder))[1] in (before, b"%d" % number)
        assert folder.stat().st_mode & 0o777 == 0o700
    replace(folder, b"last")
    assert replaced_text(folder) == b"last" and names(tmp_path) == {"adapter"}


def test_the_one_before_comes_back_before_another_is_begun(tmp_path: Path) -> None:
    replace(tmp_path / "adapter", b"old")
    (tmp_path / "adapter").rename(tmp_path / "adapter.old")  # killed between the renames
    with files.replaced(tmp_path / "adapter"):
        assert (tmp_path / "adapter" / "a").read_bytes() == b"old"


def test_power_lost_while_a_folder_is_replaced(tmp_path: Path) -> None:
    draw, disks, root = random.Random(0), tmp_path / "disks", tmp_path / "run"
    disks.mkdir()
    root.mkdir()
    replace(root / "adapter", b"old")

    def cut_power(kept: Journal, wanted: tuple[bytes, ...] = (b"old", b"new")) -> None:
        for share in (0.0, 0.3, 0.5, 0.7, 1.0):
            disk = disks / str(len(names(disks)))
            kept.after_power_loss(disk, draw, share)
            assert replaced_text(disk / "adapter") in wanted

    with journal(root, cut_power) as kept:
        replace(root / "adapter", b"new")
    cut_power(kept, (b"new",))
    assert len(names(disks)) > 60


@pytest.mark.parametrize("kind", sorted(ERRNOS))
def test_an_error_of_the_disk_while_a_folder_is_replaced(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "adapter"
    replace(folder, b"old")
    for at in range(len(operations(partial(replace, folder, b"old")))):
        with faulty(Fault(at, kind)), contextlib.suppress(OSError):
            replace(folder, b"new")
        assert replaced_text(folder) in (b"old", b"new")
        replace(folder, b"old")
    assert names(tmp_path) == {"adapter"}


# --- damaged -------------------------------------------------------------------------------------


def test_every_damage_is_found_and_the_one_before_taken(parent: Path) -> None:
    draw = random.Random(0)
    newest_folder = parent / "step-00000003"
    fresh = {path.name: path.read_bytes() for path in newest_folder.iterdir()}
    for _ in range(500):
        done = damage(newest_folder, draw, [parent / "step-00000001", parent / "step-00000002"])
        with pytest.raises(DamagedError) as caught:
            read(newest_folder)
        found, rejected = newest(parent)
        assert found and found.facts["n"] == 2, done
        assert rejected == {newest_folder: str(caught.value)}
        files.discard(newest_folder)
        newest_folder.mkdir()
        for name, data in fresh.items():
            (newest_folder / name).write_bytes(data)
    assert whole(parent) == 3


def test_a_damaged_folder_makes_way(parent: Path) -> None:
    for number in range(2):
        (parent / "step-00000003" / "a.safetensors").write_bytes(b"")
        assert whole(parent) == 2
        commit(parent, 3, contents(3), {"n": 3})
        assert whole(parent) == 3
        assert f".bad-step-00000003-{number}" in names(parent)
    durable.clean(parent)
    assert ".bad-step-00000003-0" in names(parent)  # to be looked at
    durable.clean(parent, everything=True)
    assert names(parent) == set()


def test_what_is_wrong_is_told(parent: Path) -> None:
    folder = parent / "step-00000003"

    def told() -> str:
        with pytest.raises(DamagedError) as caught:
            read(folder)
        return str(caught.value)

    size, digest = 3000, hashlib.sha256(contents(3)["a.safetensors"]).hexdigest()
    (folder / "a.safetensors").write_bytes(b"7")
    assert told() == (
        f"a.safetensors: 1 bytes, SHA-256 {hashlib.sha256(b'7').hexdigest()} instead of {size} "
        f"bytes, SHA-256 {digest}"
    )
    (folder / "more").write_bytes(b"")
    assert told() == "more: does not belong here"
    (folder / "more").unlink()
    (folder / "b.safetensors").unlink()
    assert told() == "b.safetensors: missing"
    files.discard(folder)
    folder.write_bytes(b"")
    assert told() == "not a folder"


def test_a_manifest_vouches_for_itself(parent: Path) -> None:
    """Nothing else would notice another fact."""
    manifest = parent / "step-00000003" / "manifest.json"
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"run":"x"', b'"run":"y"'))
    assert manifest.read_bytes() != data
    with pytest.raises(DamagedError, match=r"^manifest\.json: is not as it was written$"):
        read(manifest.parent)
    manifest.write_bytes(sealed(format=2))
    with pytest.raises(DamagedError, match=r"^manifest\.json: format 2, this code reads 1$"):
        read(manifest.parent)


class Spy:
    """os, and what it was asked."""

    def __init__(self, free: int = 10**12) -> None:
        self.flags: list[int] = []
        self.flushed: list[str] = []
        self.free = free

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self.flags.append(flags)
        return os.open(path, flags, mode)

    def fsync(self, handle: int) -> None:
        self.flushed.append(os.readlink(f"/proc/self/fd/{handle}"))

    def statvfs(self, _: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)


def test_how_files_are_opened(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No link is followed, nothing there is overwritten, no child inherits a handle."""
    spy = Spy()
    for module in (files, durable):
        monkeypatch.setattr(module, "os", spy)
    commit(parent, 4, contents(4), {"n": 4})
    writing = [flags for flags in spy.flags if flags & os.O_WRONLY]
    assert len(writing) == 4 and len(spy.flags) == 10  # two folders flushed, four files read
    assert all(flags & os.O_CLOEXEC for flags in spy.flags)
    assert all(flags & os.O_EXCL and flags & os.O_CREAT for flags in writing)
    assert sum(bool(flags & os.O_NOFOLLOW) for flags in spy.flags) == 8


def test_a_folder_of_files_is_flushed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"")
    spy = Spy()
    for module in (files, durable):
        monkeypatch.setattr(module, "os", spy)
    files.flush_tree(folder)
    assert sorted(spy.flushed[:2]) == [str(folder / "a"), str(folder / "b")]
    assert spy.flushed[2:] == [str(folder), str(tmp_path)]


def test_room_for_three_is_enough(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "os", Spy(free=3000))
    durable._ask_for_room(parent, 1000)
    with pytest.raises(OSError, match=r"3,003 bytes are needed, 3,000 are free") as caught:
        durable._ask_for_room(parent, 1001)
    assert caught.value.errno == errno.ENOSPC


def test_all_that_is_ours_can_be_removed(parent: Path) -> None:
    for name in (".tmp-00000004-1", ".bad-step-00000003-0", "notes", ".tmp", "bad-step-1"):
        (parent / name).mkdir()
    durable.clean(parent)
    assert names(parent) == {"notes", ".tmp", "bad-step-1", ".bad-step-00000003-0"} | {
        f"step-0000000{n}" for n in (1, 2, 3)
    }
    (parent / ".tmp-00000004-1").mkdir()
    durable.clean(parent, everything=True)
    assert names(parent) == {"notes", ".tmp", "bad-step-1"}


def sealed(**changes: object) -> bytes:
    content = {"format": 1, "step": 3, "facts": {}, "files": {}, **changes}
    return durable._sealed({k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"{}", b"[]", b"null", b"7", b"\xff", b"[" * 100_000, b'{"sha256":"x"}', b"NaN"),
        sealed(format=2),
        sealed(format=None),
        sealed(step=4),
        sealed(step=None),
        sealed(step="3"),
        sealed(files=None),
        sealed(files=[]),
        sealed(files={"../x": "1 bytes", "a.safetensors": "1 bytes"}),
        sealed(facts=None),
        sealed(more=1),
        sealed() + b"\n",
    ],
)
def test_manifests_that_are_none(parent: Path, manifest: bytes) -> None:
    (parent / "step-00000003" / "manifest.json").write_bytes(manifest)
    with pytest.raises(DamagedError, match="manifest.json|x: missing|does not belong"):
        read(parent / "step-00000003")


def test_links_and_pipes_are_refused_and_nothing_outside_is_touched(
    parent: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = parent / "step-00000003"
    (outside / "copy").write_bytes((folder / "c.json").read_bytes())
    (folder / "c.json").unlink()
    (folder / "c.json").symlink_to(outside / "copy")  # the right bytes, but elsewhere
    with pytest.raises(DamagedError, match="c.json: not a file"):
        read(folder)
    (folder / "c.json").unlink()
    os.mkfifo(folder / "c.json")
    with pytest.raises(DamagedError, match="c.json: not a file"):
        read(folder)
    (parent / "step-00000009").symlink_to(parent / "step-00000002")
    (parent / "step-00000008").write_bytes(b"")
    (parent / ".tmp-link").symlink_to(outside)
    assert whole(parent) == 2
    durable.clean(parent)
    prune(parent, keep=1)
    assert (outside / "precious").read_text() == "x" and (outside / "copy").exists()


def test_what_cannot_be_read_is_damaged(parent: Path) -> None:
    folder = parent / "step-00000003"
    for at, call in enumerate(operations(partial(read, folder))):
        with faulty(Fault(at, "broken")), pytest.raises(DamagedError, match="Input/output"):
            read(folder)
        assert call in ("lstat", "open", "listdir")
    with pytest.raises(DamagedError, match="No such file"):
        read(parent / "step-00000099")


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.integers()
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_facts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, facts: dict
) -> None:
    parent = tmp_path_factory.mktemp("facts")
    commit(parent, 0, {}, facts)
    assert read(parent / "step-00000000").facts == json.loads(json.dumps(facts))


def test_no_infinity_in_a_manifest(parent: Path) -> None:
    with pytest.raises(ValueError):
        commit(parent, 4, {}, {"loss": float("inf")})


@pytest.fixture(autouse=True)
def the_real_disk() -> Iterator[None]:
    yield
    assert durable.os is os and files.os is os
