"""Every kind of bad row and bad file that we know, in every format, with its documented outcome.

One generator writes a clean file with one row of a kind in first, middle or last place. The oracle
of a kind and a format is one of

    OK           accepted, the text unchanged but for white space around it
    Bad(words)   a bad row: stops the reading by default, is left out and counted by "skip"
    Refuse(words)  the file is refused, also by "skip": what follows the damage cannot be told
    CANNOT       the format cannot hold it

Rows always add up to those of the file, every message is one line without report text, and no
exception is ever another one.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as evaluation
import train_loop
from report2impression.audit.checks import prepare, run_checks
from report2impression.program.config import save
from report2impression.program.errors import DataError, UserError
from report2impression.reading import rows as reading_rows
from report2impression.reading.options import DataConfig, PairSource
from report2impression.reading.pairs import Pair, Split, open_pairs, read_split
from report2impression.reading.rows import ENDINGS
from report2impression.runs.recipe import TrainConfig
from tests.tiny import Tiny

CANARY = "zebrafish Ωmega 4711 opacity"
GOOD: dict[str, Any] = {"id": "a", "prompt": f"{CANARY} seen", "impressions": f"{CANARY} read"}
FORMATS = ("jsonl", "csv", "parquet")
PLACES = ("first", "middle", "last")
MARKS = ("id", "group", "patient")


@dataclass(frozen=True)
class Bad:
    words: str


@dataclass(frozen=True)
class Refuse:
    words: str


OK = "accepted"
CANNOT = "the format cannot hold it"
Outcome = Bad | Refuse | str


@dataclass(frozen=True)
class Kind:
    """A row: changed cells of a good one (`bytes` as they are), or lines of the text formats."""

    name: str
    cells: dict[str, Any]
    jsonl: Outcome
    csv: Outcome
    parquet: Outcome
    lines: dict[str, bytes] | None = None


def cell(name: str, value: Any, *outcomes: Outcome, column: str = "prompt") -> Kind:
    """One cell; a single outcome holds for all formats."""
    first, second, third = outcomes if len(outcomes) == 3 else outcomes * 3
    return Kind(name, {column: value}, first, second, third)


def line(
    name: str, jsonl: bytes | None, outcome: Outcome, csv: bytes | None, other: Outcome
) -> Kind:
    lines = {key: value for key, value in (("jsonl", jsonl), ("csv", csv)) if value is not None}
    return Kind(name, {}, outcome, other, CANNOT, lines)


EMPTY, NO_TEXT = Bad("`prompt` is empty"), Bad("`prompt` is not text")
CONTROL = Bad("`prompt` holds the control character")
NOT_UTF8 = (Bad("not UTF-8"), Refuse("not UTF-8"), Bad("`prompt` is not UTF-8"))
NOT_JSON, QUOTE = Bad("not valid JSON"), Refuse("cannot be parsed")
C = CANARY.encode()

CELLS = [
    # nothing to read
    cell("empty", "", EMPTY),
    cell("white space", " \t\n ", EMPTY),
    cell("no-break spaces", "\u00a0\u2003\u3000", EMPTY),
    cell("zero-width spaces", "\u200b\u2060\ufeff", EMPTY),
    cell("null", None, Bad("is missing"), EMPTY, Bad("is missing")),
    cell("empty impression", "", Bad("`impressions` is empty"), column="impressions"),
    # no text
    cell("integer", 7, NO_TEXT, OK, CANNOT),
    cell("fraction", 1.5, NO_TEXT, OK, CANNOT),
    cell("NaN", float("nan"), NO_TEXT, OK, CANNOT),
    cell("infinity", float("inf"), NO_TEXT, OK, CANNOT),
    cell("truth value", True, NO_TEXT, OK, CANNOT),
    cell("list", [CANARY], NO_TEXT, OK, CANNOT),
    cell("object", {"text": CANARY}, NO_TEXT, OK, CANNOT),
    # lengths
    cell("one sign", "x", OK),
    cell("1 MB", f"{CANARY} " * 36_000, OK),
    cell("impression longer than findings", f"{CANARY} " * 9, OK, column="impressions"),
    cell("impression equal to findings", GOOD["prompt"], OK, column="impressions"),
    # what has a meaning elsewhere, and none here
    cell("special tokens", f"</s> <pad> <extra_id_0> {CANARY} <unk>", OK),
    cell("only a special token", "</s>", OK),
    cell("task prefix", f"extract: {CANARY}", OK),
    cell("formula", '=cmd|"/c calc"!A1', OK),
    cell("formula signs", "+1-2@SUM(A1)", OK),
    cell("markup", f"<script>alert(1)</script>{CANARY}", OK),
    cell("template", "{{7*7}} ${x} %s {0}", OK),
    cell("prototype", "__proto__", OK),
    cell("the word null", "NULL", OK),
    cell("the word NA", "N/A", OK),
    cell("placeholders", "____ ___ [**Name**]", OK),
    cell("quotes", f'"{CANARY}" ""quoted""', OK),
    cell("separators", f"{CANARY}, a; b\tc | d", OK),
    cell("backslashes", r"C:\new\table \u0041 \"", OK),
    # signs
    cell("white space around", f"\n\t {CANARY} \r\n", OK),
    cell("line feed", f"{CANARY}\n\nsecond", OK),
    cell("CRLF within", f"{CANARY}\r\nsecond", OK),
    cell("lone CR within", f"{CANARY}\rsecond", OK),
    cell("form feed and VT", f"{CANARY}\f\vsecond", OK),
    cell("NEL", f"{CANARY}\x85second", OK),
    cell("line separators", f"{CANARY}\u2028second\u2029third", OK),
    cell("NUL", f"{CANARY}\x00 b", CONTROL),
    cell("C0", f"{CANARY}\x01 b", CONTROL),
    cell("backspace", f"{CANARY}\b b", CONTROL),
    cell("escape sequence", f"\x1b[31m{CANARY}", CONTROL),
    cell("file separator", f"{CANARY}\x1c b", CONTROL),
    cell("delete", f"{CANARY}\x7f b", CONTROL),
    cell("C1", f"{CANARY}\x9b31m b", CONTROL),
    cell("Windows-1252 read as Latin-1", f"{CANARY} patient\x92s", CONTROL),
    cell("emoji", "👩‍⚕️🫁 seen", OK),
    cell("right to left", "לא נראה ממצא صورة طبيعية", OK),
    cell("bidi override", f"\u202e{CANARY}\u202c", OK),
    cell("bidi isolate", f"\u2066{CANARY}\u2069", OK),
    cell("10,000 combining marks", "a" + "\u0301" * 10_000, OK),
    cell("full-width marks", "＿＿＿ ［＊＊Name＊＊］", OK),
    cell("homoglyphs", "lυng ореn", OK),
    cell("beyond the BMP", "𝔩𝔲𝔫𝔤 \U0010fffd", OK),
    cell("noncharacter", f"{CANARY}\uffff", OK),
    cell("replacement character", f"{CANARY}\ufffd", OK),
    cell("BOM within", f"{CANARY}\ufeff b", OK),
    cell("not decomposed", "e\u0301 é ﬁ", OK),
    # encodings
    cell("0xFF", C + b" \xff", *NOT_UTF8),
    cell("cut sign", C + b" \xc3", *NOT_UTF8),
    cell("overlong", C + b" \xc0\xaf", *NOT_UTF8),
    cell("encoded surrogate", C + b" \xed\xa0\x80", *NOT_UTF8),
    cell("Latin-1", CANARY.replace("Ω", "ö").encode("latin-1"), *NOT_UTF8),
    cell("half a surrogate pair", f"{CANARY} \ud800", Bad("half a surrogate"), CANNOT, CANNOT),
    # ids, groups, patients
    cell("no id", None, OK, column="id"),
    cell("id twice", "a", OK, column="id"),
    cell("id of a path", "../../x", OK, column="id"),
    cell("id of 5,000 signs", "x" * 5000, OK, column="id"),
    cell("integer id", 12, OK, OK, CANNOT, column="id"),
    cell("fraction as id", 1.5, Bad("`id` is not text"), OK, CANNOT, column="id"),
    cell("truth value as id", True, Bad("`id` is not text"), OK, CANNOT, column="id"),
    cell("list as patient", [1], Bad("`patient` is not text"), OK, CANNOT, column="patient"),
    cell("NUL in the id", "a\x00b", Bad("`id` holds the control"), column="id"),
    cell("escape in the group", "a\x1b[2J", Bad("`group` holds the control"), column="group"),
    cell("another column", {"a": [1]}, OK, column="__proto__"),
]
LINES = [
    line("blank line", b"", Bad("blank"), b"", Bad("blank")),
    line("line of spaces", b"  \r", Bad("blank"), b"   ", Bad("has 1 fields")),
    line("half a row", b'{"id": "a", "prompt": "' + C, NOT_JSON, b"a," + C, Bad("has 2 fields")),
    line("a field too many", None, CANNOT, b"a,b,c,d,e,f,g", Bad("has 7 fields")),
    line(
        "header again",
        None,
        CANNOT,
        b"id, prompt,impressions,group,patient,__proto__",
        Bad("repeats the header"),
    ),
    line("quote that never ends", b'{"prompt": "' + C + b"}", NOT_JSON, b'a,"' + C, QUOTE),
    line("text behind a quote", b'{"prompt": "a" b}', NOT_JSON, b'a,"b" ' + C + b",c,,,", QUOTE),
    line("lone CR between rows", None, CANNOT, b"a," + C + b",c,,,\rb,c,d,,,", QUOTE),
    line(
        "UTF-16",
        CANARY.encode("utf-16"),
        Bad("UTF-8"),
        CANARY.encode("utf-16"),
        Refuse("not UTF-8"),
    ),
    line("raw NUL", b'{"prompt": "\x00", "impressions": "b"}', NOT_JSON, b"a,\x00,c,,,", CONTROL),
    line("JSON null", b"null", Bad("not a JSON object"), None, CANNOT),
    line("JSON text", b'"' + C + b'"', Bad("not a JSON object"), None, CANNOT),
    line("JSON list", b'["' + C + b'"]', Bad("not a JSON object"), None, CANNOT),
    line("two objects", b'{"prompt": "a"} {"prompt": "b"}', NOT_JSON, None, CANNOT),
    line("comma behind", b'{"prompt": "a", "impressions": "b"},', NOT_JSON, None, CANNOT),
    line("single quotes", b"{'prompt': 'a', 'impressions': 'b'}", NOT_JSON, None, CANNOT),
    line("comment", b"// " + C, NOT_JSON, None, CANNOT),
    line(
        "a key twice",
        b'{"prompt": "a", "prompt": "b", "impressions": "c"}',
        Bad("a key twice"),
        None,
        CANNOT,
    ),
    line("a key missing", b'{"impressions": "b"}', Bad("`prompt` is missing"), None, CANNOT),
    line("nested 100,000 deep", b'{"a":' * 100_000, NOT_JSON, None, CANNOT),
    line("5,000 digits", b'{"prompt": ' + b"9" * 5000 + b"}", NOT_JSON, None, CANNOT),
    line(
        "BOM of a joined file",
        b"\xef\xbb\xbf" * 2 + b'{"prompt": "a", "impressions": "b"}',
        NOT_JSON,
        None,
        CANNOT,
    ),
]
KINDS = CELLS + LINES


def test_there_are_enough_kinds() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 60
    tried = [o for kind in KINDS for o in (kind.jsonl, kind.csv, kind.parquet) if o != CANNOT]
    assert len(tried) >= 180


# ---- the generator


def encode(rows: list[dict[str, Any] | bytes], ending: str) -> bytes:
    """A file of the rows; bytes are a line as it stands."""
    if ending == "parquet":
        return _parquet([row for row in rows if isinstance(row, dict)])
    names = list(GOOD) + [*MARKS[1:], "__proto__"]
    write = _json_line if ending == "jsonl" else _csv_line
    header = [] if ending == "jsonl" else [",".join(names).encode()]
    lines = [row if isinstance(row, bytes) else write(row, names) for row in rows]
    return b"".join(line + b"\n" for line in header + lines)


def _json_line(row: dict[str, Any], names: list[str]) -> bytes:
    raw = {name: value for name, value in row.items() if isinstance(value, bytes)}
    text = json.dumps(row | dict.fromkeys(raw, "@@")).encode()
    for value in raw.values():
        text = text.replace(b"@@", value)
    return text


def _csv_line(row: dict[str, Any], names: list[str]) -> bytes:
    stream = io.StringIO()
    cells = [row.get(name) for name in names]
    writer = csv.writer(stream, lineterminator="", quoting=csv.QUOTE_ALL)
    writer.writerow(["@@" if isinstance(c, bytes) else c for c in cells])
    text = stream.getvalue().encode()
    for value in (c for c in cells if isinstance(c, bytes)):
        text = text.replace(b"@@", value)
    return text


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    columns: dict[str, pa.Array] = {}
    for name in [*GOOD, *MARKS[1:]]:
        values = [row.get(name) for row in rows]
        raw = [v.encode() if isinstance(v, str) else v for v in values]
        columns[name] = pa.array(raw, pa.binary()).view(pa.string())  # bytes may be no UTF-8
    columns["__proto__"] = pa.array([json.dumps(row.get("__proto__")) for row in rows])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def expected(rows: list[dict[str, Any] | bytes]) -> list[Pair]:
    pairs = []
    for index, row in enumerate(rows):
        assert isinstance(row, dict)
        texts = {k: "" if v is None else str(v).strip() for k, v in row.items()}
        marks = [texts.get(name, "") for name in MARKS]
        marks[0] = marks[0] or f"train-{index}"
        pairs.append(Pair(marks[0], texts["prompt"], texts["impressions"], *marks[1:]))
    return pairs


def read(folder: Path, mode: str) -> Split | str:
    """The split, or the message of the DataError; never anything else."""
    try:
        return read_split(str(folder), "train", on_bad_row=mode)
    except DataError as error:
        message = str(error)
        assert error.exit_code == 3
        assert error.__cause__ is None and (error.__suppress_context__ or not error.__context__)
        assert "\n" not in message
        assert_no_text(message)
        return message


def assert_no_text(message: str) -> None:
    for word in CANARY.split():
        assert word not in message


CASES = [
    pytest.param(kind, ending, id=f"{kind.name}-{ending}")
    for kind in KINDS
    for ending in FORMATS
    if getattr(kind, ending) != CANNOT
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "ending"), CASES)
def test_a_row_has_its_outcome(tmp_path: Path, kind: Kind, ending: str, place: str) -> None:
    others = [GOOD | {"id": "x"}, GOOD | {"id": "y"}]
    index = PLACES.index(place)
    row = kind.lines[ending] if kind.lines else GOOD | kind.cells
    rows: list[dict[str, Any] | bytes] = [*others]
    rows.insert(index, row)
    (tmp_path / f"train.{ending}").write_bytes(encode(rows, ending))
    where = f"train.{ending} {_where(ending, index)}"
    strict, skipping = read(tmp_path, "error"), read(tmp_path, "skip")
    assert read(tmp_path, "auto") == strict
    outcome = getattr(kind, ending)
    if isinstance(outcome, Bad) and outcome.words == "blank" and place == "last":
        outcome, rows = OK, rows[:2]  # nothing but more white space at the end
    if outcome == OK:
        assert strict == skipping == Split("train", expected(rows), len(rows), [])
    elif isinstance(outcome, Refuse):
        assert strict == skipping
        assert isinstance(strict, str) and outcome.words in strict
        assert f"train.{ending} line " in strict
    else:
        assert isinstance(strict, str) and isinstance(skipping, Split)
        assert where in strict and outcome.words in strict and "1 bad row in all" in strict
        assert [(bad.row, bad.where) for bad in skipping.skipped] == [(index, where)]
        assert outcome.words in skipping.skipped[0].reason
        assert_no_text(skipping.skipped[0].reason)
        assert [pair.id for pair in skipping.pairs] == ["x", "y"]
        assert skipping.n_rows == 3


def _where(ending: str, index: int) -> str:
    number = index + (2 if ending == "csv" else 1)  # after the header; the clean rows have a line
    return f"row {number}" if ending == "parquet" else f"line {number}"


BAD_CELLS = [k for k in CELLS if all(isinstance(o, Bad) for o in (k.jsonl, k.csv, k.parquet))]


@pytest.mark.parametrize("ending", FORMATS)
def test_all_bad_rows_together_are_counted(tmp_path: Path, ending: str) -> None:
    rows: list[dict[str, Any] | bytes] = []
    for kind in BAD_CELLS:
        rows += [GOOD | kind.cells, GOOD]
    (tmp_path / f"train.{ending}").write_bytes(encode(rows, ending))
    split, message = read(tmp_path, "skip"), read(tmp_path, "error")
    assert isinstance(split, Split) and isinstance(message, str)
    assert (len(split.pairs), len(split.skipped)) == (len(BAD_CELLS), len(BAD_CELLS)) > (10, 10)
    assert [bad.row for bad in split.skipped] == list(range(0, split.n_rows, 2))
    assert f"{len(BAD_CELLS)} bad rows in all" in message


# ---- files

JSON_ROW = encode([GOOD], "jsonl")
CSV_ROWS = encode([GOOD, GOOD], "csv")
PARQUET = encode([GOOD] * 9, "parquet")
Content = bytes | Callable[[Path], object]


def _text_column(kind: pa.DataType, values: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"prompt": pa.array(values, kind), "impressions": ["a"] * len(values)})
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


FILES: list[tuple[str, str, Content, Outcome]] = [
    ("empty", "jsonl", b"", Refuse("no rows")),
    ("empty", "csv", b"", Refuse("no header")),
    ("empty", "parquet", b"", Refuse("Parquet")),
    ("empty", "jsonl.gz", b"", Refuse("empty, not even gzip")),
    ("blank lines", "jsonl", b"\n \r\n\n", Refuse("no rows")),
    ("blank lines", "csv", b"\n\n", Refuse("no header")),
    ("header only", "csv", CSV_ROWS.split(b"\n")[0], Refuse("no rows")),
    ("header only", "parquet", _text_column(pa.string(), []), Refuse("no rows")),
    ("no header", "csv", C + b"," + C + b"2\nx,y\n", Refuse("2 names, not shown")),
    ("a column missing", "csv", b"prompt,id\na,b\n", Refuse("found: prompt, id;")),
    ("a column missing", "jsonl", b'{"prompt": "a"}\n', Refuse("found: prompt;")),
    ("a column renamed", "csv", b"report,answer\na,b\n", Refuse("found: report, answer;")),
    ("a column twice", "csv", b"prompt,prompt,impressions\na,b,c\n", Refuse("same name")),
    ("colons", "csv", b"prompt:impressions\na:b\n", Refuse("no columns")),
    ("two separators", "csv", b"prompt;impressions,id|x\na;b\n", Refuse("no columns")),
    ("UTF-16", "csv", CSV_ROWS.decode().encode("utf-16"), Refuse("not UTF-8")),
    ("UTF-16", "jsonl", JSON_ROW.decode().encode("utf-16"), Refuse("not UTF-8")),
    ("UTF-16, no BOM", "jsonl", JSON_ROW.decode().encode("utf-16-le"), Refuse("not valid JSON")),
    ("UTF-32", "csv", CSV_ROWS.decode().encode("utf-32"), Refuse("not UTF-8")),
    ("lone CR", "csv", CSV_ROWS.replace(b"\n", b"\r"), Refuse("lone CR")),
    ("lone CR", "jsonl", (JSON_ROW * 2).replace(b"\n", b"\r"), Refuse("not valid JSON")),
    ("JSON array", "jsonl", json.dumps([GOOD, GOOD]).encode(), Refuse("not a JSON object")),
    ("indented JSON", "jsonl", json.dumps(GOOD, indent=1).encode(), Refuse("not valid JSON")),
    ("BOM", "jsonl", b"\xef\xbb\xbf" + JSON_ROW, OK),
    ("BOM", "csv", b"\xef\xbb\xbf" + CSV_ROWS, OK),
    ("BOM twice", "jsonl", b"\xef\xbb\xbf" * 2 + JSON_ROW, Refuse("not valid JSON")),
    ("CRLF", "jsonl", JSON_ROW.replace(b"\n", b"\r\n"), OK),
    ("CRLF", "csv", CSV_ROWS.replace(b"\n", b"\r\n"), OK),
    ("no LF at the end", "jsonl", JSON_ROW.rstrip(), OK),
    ("no LF at the end", "csv", CSV_ROWS.rstrip(), OK),
    ("blank lines at the end", "jsonl", JSON_ROW + b"\n\r\n\n", OK),
    ("blank lines at the end", "csv", CSV_ROWS + b"\n\r\n\n", OK),
    ("gzip with a wrong name", "jsonl", gzip.compress(JSON_ROW), Refuse("name it .gz")),
    ("gzip with a wrong name", "csv", gzip.compress(CSV_ROWS), Refuse("name it .gz")),
    ("zstd with a wrong name", "csv", zstandard.compress(CSV_ROWS), Refuse("name it .zst")),
    ("Parquet with a wrong name", "csv", PARQUET, Refuse("name it .parquet")),
    ("spreadsheet", "csv", b"PK\x03\x04" + C, Refuse("save it as CSV")),
    ("text with a wrong name", "parquet", JSON_ROW * 9, Refuse("Parquet")),
    ("text with a wrong name", "jsonl.gz", JSON_ROW, Refuse("no gzip file")),
    ("zstd with a wrong name", "jsonl.gz", zstandard.compress(JSON_ROW), Refuse("no gzip file")),
    ("gzip with a wrong name", "csv.zst", gzip.compress(CSV_ROWS), Refuse("no zstd file")),
    ("gzip in gzip", "jsonl.gz", gzip.compress(gzip.compress(JSON_ROW)), Refuse("not UTF-8")),
    ("two gzip members", "jsonl.gz", gzip.compress(JSON_ROW) * 2, OK),
    ("gzip", "csv.gz", gzip.compress(CSV_ROWS), OK),
    ("zstd", "csv.zst", zstandard.compress(CSV_ROWS), OK),
    ("zstd", "jsonl.zst", zstandard.compress(JSON_ROW), OK),
    ("text behind the end", "jsonl.gz", gzip.compress(JSON_ROW) + C, Refuse("no gzip file")),
    ("cut", "parquet", PARQUET[:-40], Refuse("Parquet")),
    ("bytes behind the end", "parquet", PARQUET + C, Refuse("Parquet")),
    ("no footer", "parquet", PARQUET[:400], Refuse("Parquet")),
    ("numbers", "parquet", _text_column(pa.int64(), [1, 2]), Refuse("not text but int")),
    ("truth values", "parquet", _text_column(pa.bool_(), [True]), Refuse("not text but bool")),
    ("lists", "parquet", _text_column(pa.list_(pa.string()), [[CANARY]]), Refuse("text but list")),
    ("bytes", "parquet", _text_column(pa.binary(), [C]), Refuse("not text but bytes")),
    ("nulls", "parquet", _text_column(pa.null(), [None]), Refuse("is missing")),
    ("years", "parquet", _text_column(pa.timestamp("ms"), [2**60]), Refuse("cannot be read")),
    ("large text", "parquet", _text_column(pa.large_string(), [CANARY]), OK),
    ("folder", "jsonl", lambda file: file.mkdir(), Refuse("not a regular file")),
    ("folder", "parquet", lambda file: file.mkdir(), Refuse("not a regular file")),
    ("folder", "csv.gz", lambda file: file.mkdir(), Refuse("not a regular file")),
    ("FIFO", "csv", os.mkfifo, Refuse("not a regular file")),
    ("device", "jsonl", lambda file: file.symlink_to("/dev/zero"), Refuse("not a regular file")),
    ("link loop", "csv", lambda file: file.symlink_to(file), Refuse("not a regular file")),
    ("lost link", "parquet", lambda file: file.symlink_to("gone"), Refuse("not a regular file")),
]


@pytest.mark.parametrize(
    ("name", "ending", "content", "outcome"),
    [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in FILES],
)
def test_a_file_has_its_outcome(
    tmp_path: Path, name: str, ending: str, content: Content, outcome: Outcome
) -> None:
    file = tmp_path / f"train.{ending}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    found = [read(tmp_path, mode) for mode in ("auto", "error", "skip")]
    if isinstance(outcome, Refuse):
        for message in found:
            assert isinstance(message, str) and outcome.words in message
            assert f"train.{ending}" in message
    else:
        split = found[0]
        assert found == [split] * 3
        assert isinstance(split, Split) and split.pairs and not split.skipped


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("content", [JSON_ROW * 500, CSV_ROWS * 1], ids=FORMATS[:2])
def test_an_archive_that_is_cut_or_changed_anywhere_is_never_taken_for_whole(
    tmp_path: Path, pack: Callable[[bytes], bytes], content: bytes
) -> None:
    ending = "jsonl" if content[:1] == b"{" else "csv"
    whole = pack(content)
    file = tmp_path / f"train.{ending}.{'gz' if pack is gzip.compress else 'zst'}"
    file.write_bytes(whole)
    rows = read(tmp_path, "skip")
    assert isinstance(rows, Split)
    for length in range(0, len(whole), 1 + len(whole) // 60):
        file.write_bytes(whole[:length])
        assert isinstance(read(tmp_path, "skip"), str)
    has_sum = pack is gzip.compress  # zstandard.compress writes no checksum
    for place in range(0, len(whole), 1 + len(whole) // 60) if has_sum else ():
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        assert isinstance(found := read(tmp_path, "skip"), str) or found == rows


def test_a_bom_counts_only_at_the_start_of_a_file(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    (tmp_path / "train.jsonl").write_bytes(bom + JSON_ROW + bom + JSON_ROW)
    split = read(tmp_path, "skip")
    assert isinstance(split, Split) and len(split.pairs) == 1
    assert [bad.where for bad in split.skipped] == ["train.jsonl line 2"]


# ---- size


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "csv.gz", "csv.zst"])
def test_a_line_is_bounded_so_that_no_archive_fills_the_memory(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 MB in one line out of 50 kB; with a bound of 1 MB the rest of the line is not kept."""
    monkeypatch.setattr(reading_rows, "MAX_LINE_BYTES", 10**6)
    pack = gzip.compress if ending.endswith("gz") else zstandard.compress
    kind = ending.split(".")[0]
    clean = encode([GOOD, GOOD], kind)
    bomb = pack(clean + b" " * 50_000_000 + b"\n" + clean)
    assert len(bomb) < 51_000
    (tmp_path / f"train.{ending}").write_bytes(bomb)
    peak, found = peak_memory(lambda: read(tmp_path, "skip"))
    assert peak < 8_000_000
    if kind == "jsonl":
        assert isinstance(found, Split) and (len(found.pairs), found.n_rows) == (4, 5)
        assert found.skipped[0].reason == reading_rows.TOO_LONG
    else:
        assert isinstance(found, str) and f"train.{ending} line 4" in found


@pytest.mark.parametrize("ending", FORMATS)
def test_a_cell_is_bounded_in_every_format(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("report2impression.reading.pairs.MAX_LINE_BYTES", 1000)
    rows: list[dict[str, Any] | bytes] = [GOOD, GOOD | {"prompt": f"{CANARY} " * 40}]
    (tmp_path / f"train.{ending}").write_bytes(encode(rows, ending))
    split = read(tmp_path, "skip")
    assert isinstance(split, Split) and len(split.pairs) == 1
    assert [bad.reason for bad in split.skipped] == ["`prompt` is longer than 100 MB"]


def peak_memory(call: Callable[[], Any]) -> tuple[int, Any]:
    """(bytes that Python held at once, the result)."""
    import tracemalloc

    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def test_a_dictionary_of_one_long_text_is_not_unpacked_at_once(tmp_path: Path) -> None:
    """Parquet stores a text that repeats once: 200 MB in a file of some kB."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 200), pa.array([CANARY * 36_000]))
    short = pa.array(["a"] * 200)
    table = pa.table({"prompt": text, "impressions": short})
    pq.write_table(table, tmp_path / "train.parquet", store_schema=False)  # read as plain text
    del text, table
    assert (tmp_path / "train.parquet").stat().st_size < 1_000_000
    rows = open_pairs(PairSource(str(tmp_path)), "train")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() for _ in rows.stream()]
    assert len(held) == 200 and max(held) - before < 150_000_000


# ---- end to end


def start_of_file(row: Kind, ending: str) -> bytes:
    return encode([GOOD, row.lines[ending] if row.lines else GOOD | row.cells, GOOD], ending)


END_TO_END = [
    ("csv", "empty", "train.csv line 3"),
    ("jsonl", "NUL", "train.jsonl line 2"),
    ("csv", "quote that never ends", "train.csv line 3"),
    ("parquet", "0xFF", "train.parquet row 2"),
]


@pytest.mark.parametrize(("ending", "name", "where"), END_TO_END)
def test_training_says_so_in_one_line_and_writes_nothing(
    tiny: Tiny,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    ending: str,
    name: str,
    where: str,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny.data, data)
    (data / "train.jsonl").unlink()
    kind = next(kind for kind in KINDS if kind.name == name)
    (data / f"train.{ending}").write_bytes(start_of_file(kind, ending))
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        train_loop.main(tiny.flags(folder, data__path=data, data__cache_dir=tmp_path / "cache"))
    told = capfd.readouterr()
    (message,) = told.err.splitlines()
    assert caught.value.code == 3
    assert message.startswith("error: ") and where in message
    assert_no_text(told.out + told.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_the_evaluation_says_so_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "check_trained", lambda found: None)  # there is no adapter
    data, adapter = tmp_path / "data", tmp_path / "adapter"
    data.mkdir()
    (data / "test.jsonl").write_bytes(JSON_ROW + b"{" + JSON_ROW)
    save(TrainConfig(data=DataConfig(path=str(data))), adapter / "training.toml")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit) as caught:
        evaluation.main(["--cpu", f"--adapter={adapter}"])
    told = capfd.readouterr()
    (message,) = told.err.splitlines()
    assert caught.value.code == 3
    assert message.startswith("error: test.jsonl line 2") and "not valid JSON" in message
    assert_no_text(told.out + told.err)
    assert not list((tmp_path / "evaluation").iterdir())


@pytest.mark.parametrize("ending", FORMATS)
def test_an_id_in_two_splits_is_read_and_the_audit_tells(tmp_path: Path, ending: str) -> None:
    """Whether that is a mistake depends on the data: reading accepts it, the audit judges."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.{ending}").write_bytes(encode([GOOD], ending))
    splits = [read_split(str(tmp_path), split) for split in ("train", "test")]
    assert splits[0].pairs == splits[1].pairs
    flags = run_checks(prepare(splits))
    assert flags["repeated_id"]["test"].all() and flags["shared_input"]["test"].all()


# ---- fuzz


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"train.{ending}").write_bytes(data)
    for mode in ("error", "skip"):
        with contextlib.suppress(UserError):
            split = read_split(str(folder), "train", on_bad_row=mode)
            assert split.n_rows == len(split.pairs) + len(split.skipped)
    shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), new=st.binary(max_size=4), gone=st.integers(0, 4))
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, ending: str, place: float, new: bytes, gone: int
) -> None:
    whole = packed([GOOD] * 20, ending)
    start = int(place * len(whole))
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"train.{ending}").write_bytes(whole[:start] + new + whole[start + gone :])
    for mode in ("error", "skip"):
        with contextlib.suppress(UserError):
            split = read_split(str(folder), "train", on_bad_row=mode)
            assert split.n_rows == len(split.pairs) + len(split.skipped)
    shutil.rmtree(folder)


def packed(rows: list[dict[str, Any]], ending: str) -> bytes:
    kind, _, compression = ending.partition(".")
    if kind == "json":
        data = json.dumps(rows, indent=1).encode()
    else:
        data = encode([*rows], kind) if kind != "tsv" else _tsv(rows)
    if not compression:
        return data
    return gzip.compress(data) if compression == "gz" else zstandard.compress(data)


def _tsv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


signs = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\v\f\r\x85,;\"'")
texts = st.text(signs, max_size=30).map(lambda text: text + ".")


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    named: list[dict[str, Any]] = [dict(zip(GOOD, row, strict=True)) for row in rows]
    (folder / f"train.{ending}").write_bytes(packed(named, ending))
    assert read(folder, "error") == Split("train", expected([*named]), len(named), [])
    shutil.rmtree(folder)
