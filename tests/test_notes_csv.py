"""The CSV reader gives what Python's csv module gives, wherever the blocks are cut."""

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report2impression.corpora import notes_csv
from report2impression.corpora.notes_csv import Layout, NotesFile, unquote
from report2impression.program.errors import ConfigError, DataError

HEADER = "A,B,C\n"
# Quotes, separators and newlines in every order, with text between.
texts = st.lists(
    st.sampled_from(
        ['"', '""', ",", "\n", "\r\n", "\r", "a", " b", "\u00e9", '"x\n y"', "1,2,3\n"]
    ),
    max_size=40,
).map("".join)

Record = tuple[str, ...] | int


def ours(data: bytes, block_bytes: int, numeric: Sequence[str] = ()) -> list[Record]:
    """(C, A) of each record, or what is told of a malformed one."""
    found: list[Record] = []
    old, notes_csv.BLOCK_BYTES = notes_csv.BLOCK_BYTES, block_bytes
    try:
        with Stream(data) as path, NotesFile(path, ["C", "A"], numeric) as notes:
            for block in notes.blocks():
                for fields in notes.layout.records(block):
                    if isinstance(fields, int):
                        found.append(fields)
                    else:
                        found.append(tuple(unquote(field).decode() for field in fields))
    finally:
        notes_csv.BLOCK_BYTES = old
    return found


class Stream:
    """Bytes as a file on a disk."""

    folder: Path

    def __init__(self, data: bytes) -> None:
        self.path = self.folder / "notes.csv"
        self.path.write_bytes(data)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink()


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    Stream.folder = tmp_path_factory.mktemp("notes")


cells = st.text(st.sampled_from('ab1",\n\r \u00e9\u2028'), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=1, max_size=4)),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([1, 2, 3, 7, 64, 2**20]),
    st.booleans(),
)
def test_reads_what_the_csv_module_writes(
    rows: list[list[str]], quoting: Literal[0, 1, 2], newline: str, block_bytes: int, is_cut: bool
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, quoting=quoting, lineterminator=newline).writerows([["A", "B", "C"], *rows])
    text = file.getvalue()
    if is_cut and rows:
        text = text.removesuffix(newline)  # the last line may lack its end
    # Read again: the module leaves a lone CR without quotes, where it ends a record.
    again = list(csv.reader(io.StringIO(text, newline="")))[1:]
    expected = [(row[2], row[0]) if len(row) == 3 else len(row) for row in again if row]
    assert ours(text.encode(), block_bytes) == expected


@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from([1, 2, 3, 7, 64]), st.sampled_from([(), ["A"]]))
def test_any_bytes_give_the_same_wherever_they_are_cut(
    text: str, block_bytes: int, numeric: Sequence[str]
) -> None:
    data = (HEADER + text).encode()
    assert ours(data, block_bytes, numeric) == ours(data, 2**20, numeric)


@given(texts)
def test_what_is_cut_is_whole(text: str) -> None:
    """No byte is lost or doubled between the blocks."""
    data = (HEADER + text).encode()
    with Stream(data) as path, NotesFile(path, ["A"]) as notes:
        blocks = b"".join(notes.blocks())
    rest = data.removeprefix(HEADER.encode())
    assert blocks in (rest, rest + b"\n")


def test_ends_within_quotes() -> None:
    assert ours(b'A,B,C\n1,2,3\n4,5,"a\n', 4) == [("3", "1"), 0]


@pytest.mark.parametrize(
    "bad",
    [
        '5,x,"no end\n',
        '5,x,no "begin"\n",x\n',
        '5,x,y,"one too many\n"\n',
        '5,"one too few\n"\n',
        '5,x,"a quote" in between"\n',
        '5,x,"cut off',
        "5\n",
    ],
)
@pytest.mark.parametrize("block_bytes", [16, 2**20])
def test_a_malformed_row_costs_only_itself(bad: str, block_bytes: int) -> None:
    rows = [f'{i},x,"text {i}\nmore, ""quoted""\n"\n' for i in range(20)]
    good: list[Record] = [(f'text {i}\nmore, "quoted"\n', str(i)) for i in range(20)]
    rows[5] = bad
    found = ours((HEADER + "".join(rows)).encode(), block_bytes, ["A"])
    lost = good[5:7] if not bad.endswith("\n") else good[5:6]  # `cut off` ends in the next row
    assert [record for record in found if record in good] == [r for r in good if r not in lost]


def test_byte_order_mark_lower_case_and_quoted_header() -> None:
    assert ours(b'\xef\xbb\xbf"a",b,"C"\r\n1,2,"3"\r\n', 8) == [("3", "1")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header"),
        (b"A,B\n1,2\n", "does not name the column C"),
        (b"A,B,C,C\n", "does not name the column C"),
        ("A,B,C\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"A,B,C\n" + b"1,2,3\n" * 9999)[:-9], "cut short"),
        (b"\x1f\x8bnonsense", "cut short"),
    ],
)
def test_refuses(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ours(data, 64)


def test_refuses_a_record_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_csv, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match="record over"):
        ours(b'A,B,C\n1,2,"' + b"text " * 1000, 64)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        NotesFile(tmp_path / "none.csv", ["A"])


def test_gzip_is_known_by_its_bytes() -> None:
    """Members one after the other too, as some tools write them."""
    data = gzip.compress(b"A,B,C\n1,2,3\n") + gzip.compress(b"4,5,6\n")
    assert ours(data, 8) == [("3", "1"), ("6", "4")]


def test_position_ends_at_the_size() -> None:
    with Stream(gzip.compress(b"A,B,C\n" + b"1,2,3\n" * 10_000)) as path:
        notes = NotesFile(path, ["A"])
        assert list(notes.blocks())
        assert notes.position() == notes.n_bytes == path.stat().st_size


def test_time_is_linear_in_a_long_record() -> None:
    """Each block of a record of many blocks is not scanned from the record's start again."""
    n_scanned = 0
    scan = NotesFile._end_of_last_record

    def counted(notes: NotesFile) -> int:
        nonlocal n_scanned
        n_scanned += len(notes._rest)
        return scan(notes)

    data = b'A,B,C\n1,2,"' + b"x" * 100_000 + b'"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NotesFile, "_end_of_last_record", counted)
        assert len(ours(data, 64)) == 1
    assert n_scanned < 5 * len(data)


def test_layout_travels_between_processes() -> None:
    assert Layout(3, (2, 0), ()) == Layout(3, (2, 0), ())
    assert list(Layout(3, (2, 0), ()).records(b"1,2,3\n\r\n4,5\n")) == [(b"3", b"1"), 2]
