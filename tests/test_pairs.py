"""Reading report pairs: formats, columns, bad rows, the hub. No message may hold report text."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from report2impression.program.errors import ConfigError, DataError, UserError
from report2impression.reading.pairs import SPLITS, BadRow, Pair, Split, read_split
from report2impression.reading.split_files import find_split
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[1]
IU_XRAY = ROOT.parent / "shared" / "data" / "iu_xray"
CANARY = "zebrafish Ωmega 4711 opacity"
GOOD = {"id": "a", "prompt": CANARY, "impressions": f"{CANARY} impression"}
FORMATS = ("jsonl", "csv", "parquet")

Rows = list[dict[str, Any]]


def encode(rows: Rows, ending: str) -> bytes:
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in rows[0]}), sink)
    return sink.getvalue().to_pybytes()


def put(folder: Path, content: bytes | Rows, ending: str = "jsonl", split: str = "train") -> str:
    data = content if isinstance(content, bytes) else encode(content, ending)
    (folder / f"{split}.{ending}").write_bytes(data)
    return str(folder)


def fails(
    kind: type[UserError], path: str, *words: str, split: str = "train", **options: Any
) -> None:
    """The reading fails with one line that has all the words and no canary."""
    with pytest.raises(kind) as caught:
        read_split(path, split, **options)
    message = str(caught.value)
    assert caught.value.exit_code == {ConfigError: 2, DataError: 3}[kind]
    assert "\n" not in message
    for secret in (CANARY, *CANARY.split()):
        assert secret not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    for word in words:
        assert word in message, message


# ---- good data


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    "names", [("prompt", "impressions"), ("findings", "impression"), ("text", "summary")]
)
def test_known_columns_in_every_format(tmp_path: Path, ending: str, names: tuple[str, str]) -> None:
    rows: Rows = [
        {names[0]: " lungs clear\n", names[1]: "\tnormal ", "group": "x", "patient": number}
        for number in (7, 8)
    ]
    split = read_split(put(tmp_path, rows, ending), "train")
    assert split == Split(
        "train",
        [
            Pair("train-0", "lungs clear", "normal", "x", "7"),
            Pair("train-1", "lungs clear", "normal", "x", "8"),
        ],
        2,
        [],
    )


@pytest.mark.parametrize("ending", FORMATS)
def test_preference_and_overrides(tmp_path: Path, ending: str) -> None:
    names = ("text", "summary", "impression", "findings", "prompt", "impressions", "mine")
    path = put(tmp_path, [{name: f"the {name}" for name in names}], ending)

    def columns(**options: str) -> list[str]:
        pair = read_split(path, "train", **options).pairs[0]
        return [pair.prompt, pair.impression]

    assert columns() == ["the prompt", "the impressions"]
    assert columns(source_column="mine", target_column="summary") == ["the mine", "the summary"]
    assert columns(source_column="mine") == ["the mine", "the impressions"]
    assert columns(target_column="mine") == ["the prompt", "the mine"]
    fails(DataError, path, "gone", "--data.source_column", source_column="gone")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("given_id", "kept"), [("x7", "x7"), (12, "12"), ("", "test-1")])
def test_ids(tmp_path: Path, ending: str, given_id: str | int, kept: str) -> None:
    first: str | int = 1 if isinstance(given_id, int) else "1"
    rows = [GOOD | {"id": first}, GOOD | {"id": given_id}, GOOD | {"id": first}]
    split = read_split(put(tmp_path, rows, ending, "test"), "test")
    assert [pair.id for pair in split.pairs] == ["1", kept, "1"]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("change", ["bom", "crlf", "no_end", "blank_end"])
def test_harmless_encodings(tmp_path: Path, ending: str, change: str) -> None:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "bom": lambda data: b"\xef\xbb\xbf" + data,
        "crlf": lambda data: data.replace(b"\n", b"\r\n"),
        "no_end": lambda data: data.rstrip(b"\n"),
        "blank_end": lambda data: data + b"\n\r\n\n",
    }
    path = put(tmp_path, changes[change](encode([GOOD, GOOD], ending)), ending)
    split = read_split(path, "train")
    assert split.n_rows == 2
    assert split.pairs == [Pair("a", CANARY, f"{CANARY} impression")] * 2


def test_long_csv_field_and_unchanged_global_limit(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    text = "long " * 100_000
    split = read_split(put(tmp_path, [GOOD | {"prompt": text}], "csv"), "train")
    assert split.pairs[0].prompt == text.strip()
    fails(DataError, put(tmp_path, b'prompt,impressions\n"a', "csv"), "line 2")
    assert csv.field_size_limit() == 131_072


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, [GOOD])
    assert len(read_split("~", "train").pairs) == 1


@pytest.mark.skipif(not IU_XRAY.is_dir(), reason="the shared iu_xray data are not here")
def test_real_data() -> None:
    splits = [read_split(str(IU_XRAY), name) for name in SPLITS]
    assert [len(split.pairs) for split in splits] == [1819, 262, 1000]
    assert [split.n_rows for split in splits] == [1819, 262, 1000]


# ---- bad rows


@pytest.mark.parametrize("cells", [[1, 2], [1.5, None], [True, False], [["a"], None], [" ", None]])
def test_bad_cells_parquet(tmp_path: Path, cells: list[Any]) -> None:
    path = put(tmp_path, [GOOD | {"prompt": cell} for cell in cells], "parquet")
    fails(DataError, path, "train.parquet row 1", "`prompt`")
    fails(DataError, path, "no row is usable", "2 bad rows", on_bad_row="skip")


@pytest.mark.parametrize("name", ["id", "group", "patient"])
@pytest.mark.parametrize("cell", [1.5, True, ["a"], "\udfff"])
def test_bad_optional_cells(tmp_path: Path, name: str, cell: Any) -> None:
    path = put(tmp_path, [GOOD, GOOD | {name: cell}])
    check_bad_row(path, 1, "train.jsonl line 2", f"`{name}`")


@pytest.mark.parametrize("cell", [None, float("nan"), "", "  "])
def test_missing_optional_cells(tmp_path: Path, cell: Any) -> None:
    path = put(tmp_path, [GOOD | {"id": cell, "group": cell, "patient": cell}])
    assert read_split(path, "train").pairs[0] == Pair("train-0", CANARY, f"{CANARY} impression")


ONE = encode([GOOD], "jsonl")


def test_blank_lines_in_a_row_are_numbered(tmp_path: Path) -> None:
    path = put(tmp_path, ONE + b"\n\n \n" + ONE + b"\n\n")
    split = read_split(path, "train", on_bad_row="skip")
    assert [(bad.row, bad.where) for bad in split.skipped] == [
        (row, f"train.jsonl line {row + 1}") for row in (1, 2, 3)
    ]
    assert split.n_rows == 5


def test_csv_counts_physical_lines(tmp_path: Path) -> None:
    """Records over several lines, CRLF in a cell: the line where the bad record starts is named."""
    data = (
        b'prompt,impressions\r\n"one\r\ntwo\nthree",four\r\n"\r\n \n",x\r\n'
        b'a,b,c\r\n"multi\nline"\r\n\r\n"a ""quoted"" word","b, c"\r\n'
    )
    path = put(tmp_path, data, "csv")
    fails(DataError, path, "train.csv line 5", "`prompt` is empty", "4 bad rows")
    split = read_split(path, "train", on_bad_row="skip")
    assert [(bad.row, bad.where) for bad in split.skipped] == [
        (1, "train.csv line 5"),
        (2, "train.csv line 8"),
        (3, "train.csv line 9"),
        (4, "train.csv line 11"),
    ]
    assert split.skipped[1].reason == "the row has 3 fields, the header 2"
    assert split.skipped[2].reason == "the row has 1 fields, the header 2"
    assert split.skipped[3].reason == "the line is blank"
    assert [pair.id for pair in split.pairs] == ["train-0", "train-5"]
    assert split.pairs[0].prompt == "one\r\ntwo\nthree"
    assert split.pairs[1].prompt == 'a "quoted" word'
    assert split.n_rows == 6


def check_bad_row(path: str, row: int, where: str, reason: str) -> None:
    """One bad row: refused by default, left out and recorded when asked for."""
    for mode in ("auto", "error"):
        fails(DataError, path, where, reason, "--data.on_bad_row skip", on_bad_row=mode)
    split = read_split(path, "train", on_bad_row="skip")
    assert [(bad.row, bad.where) for bad in split.skipped] == [(row, where)]
    assert reason in split.skipped[0].reason
    assert CANARY not in split.skipped[0].reason
    assert split.n_rows == len(split.pairs) + 1


# ---- files, folders and calls that cannot be used

HEADER = b"prompt,impressions\n"
SECRET = CANARY.encode()


@pytest.mark.parametrize("mode", ["auto", "skip"])
@pytest.mark.parametrize(
    ("ending", "data", "words"),
    [
        ("csv", b"\n" + HEADER, ["header"]),
        ("csv", b" , \na,b\n", ["header"]),
        ("csv", HEADER + b"a,b\n" + SECRET + b",\xff\n", ["train.csv line 3", "UTF-8"]),
        ("csv", (HEADER + b"a,b\n").decode().encode("utf-16"), ["train.csv line 1", "UTF-8"]),
        ("csv", HEADER + b'a,b\n"' + SECRET + b"\n,c\nd,e\n", ["train.csv line 3", "quote"]),
        ("csv", HEADER + b'a,b\n"x" ' + SECRET + b",c\n", ["train.csv line 3", "quote"]),
        ("csv", HEADER[:-1] + b"\ra,b\r", ["train.csv line 1", "CR"]),
        ("csv", b"id,report\n1," + SECRET, ["id, report", "--data.target_column", "prompt"]),
        ("jsonl", b'{"id": 1, "prompt": "x"}', ["id, prompt", "--data.source_column"]),
    ],
    ids=range(9),
)
def test_unusable_files(
    tmp_path: Path, ending: str, data: bytes, words: list[str], mode: str
) -> None:
    fails(DataError, put(tmp_path, data, ending), *words, on_bad_row=mode)


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    twice = pa.table([["a"], ["b"], ["c"]], names=["prompt", "prompt", "impressions"])
    pq.write_table(twice, tmp_path / "train.parquet")
    fails(DataError, str(tmp_path), "same name")


@pytest.mark.parametrize("ending", FORMATS)
def test_file_that_cannot_be_read(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, [GOOD], ending)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(CANARY)

    with monkeypatch.context() as patch:  # root may read all, so that chmod would prove nothing
        patch.setattr(
            "builtins.open" if ending != "parquet" else pq.ParquetFile,
            *([refuse] if ending != "parquet" else ["__init__", refuse]),
        )
        fails(DataError, path, f"train.{ending}", "PermissionError")


def test_find_split(tmp_path: Path) -> None:
    names = [f"test.{ending}" for ending in FORMATS]
    fails(DataError, str(tmp_path), str(tmp_path), *names, "--data.path", split="test")
    put(tmp_path, [GOOD], "csv", "test")
    assert find_split(tmp_path, "test").path == tmp_path / "test.csv"
    put(tmp_path, [GOOD], "jsonl", "test")
    fails(ConfigError, str(tmp_path), "test.jsonl", "test.csv", split="test")


@pytest.mark.parametrize(
    "path",
    ["./gone/x", "/gone", "~gone/x", "~/gone", "a/b/c", "a\\b", "", "gone", "csv", "a/", "../x"]
    + ["a/b\n", "é/b", "hf://datasets/a/b", "x" * 5000, "a\0/b"],
)
def test_paths_that_are_neither_folder_nor_hub_id(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("hub asked"))
    fails(ConfigError, path, "--data.path")


def test_wrong_calls(tmp_path: Path) -> None:
    path = put(tmp_path, [GOOD])
    fails(ConfigError, str(tmp_path / "train.jsonl"), "not a folder")
    fails(ConfigError, path, "--data.target_column", source_column="a", target_column="a")


# ---- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rows | Exception], dict[str, Any]]:
    """Replace the hub by the given rows or failure; the asked call lands in the returned dict."""

    def answer_with(answer: Rows | Exception) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def load(path: str, **options: Any) -> datasets.Dataset:
            asked.update(path=path, **options)
            if isinstance(answer, Exception):
                raise answer
            return datasets.Dataset.from_list(answer)

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return answer_with


def test_hub_rows_and_skipping(hub: Callable[..., dict[str, Any]]) -> None:
    asked = hub([GOOD, GOOD | {"impressions": None}, GOOD | {"id": "c"}])
    split = read_split("owner/name", "validation", revision="abc")
    assert asked == {"path": "owner/name", "revision": "abc", "split": "validation"}
    assert [pair.id for pair in split.pairs] == ["a", "c"]
    missing = BadRow(1, "owner/name validation row 2", "`impressions` is missing")
    assert split.skipped == [missing]
    fails(DataError, "owner/name", "train row 2", on_bad_row="error")


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError(CANARY),
        ValueError(f"Unknown split {CANARY}"),
        datasets.exceptions.DatasetNotFoundError(CANARY),
        datasets.exceptions.DatasetGenerationError(f"{CANARY}\nsecond line"),
    ],
)
def test_hub_failures(hub: Callable[..., dict[str, Any]], failure: Exception) -> None:
    hub(failure)
    name = type(failure).__name__
    fails(DataError, "owner/name", "train", "owner/name", name, "make demo", "--model.path DIR")


def test_hub_without_columns_or_rows(hub: Callable[..., dict[str, Any]]) -> None:
    hub([{"report": CANARY}])
    fails(DataError, "owner/name", "report", "--data.source_column")
    hub([])
    fails(DataError, "owner/name", "no rows")


@pytest.mark.parametrize("fail", [True, False])
def test_hub_is_quiet_only_during_the_call(monkeypatch: pytest.MonkeyPatch, fail: bool) -> None:
    libraries: list[Any] = [datasets.utils, huggingface_hub.utils]
    states: list[list[Any]] = []

    def note(*_: object, **__: object) -> datasets.Dataset:
        bars = [library.are_progress_bars_disabled() for library in libraries]
        states.append([library.logging.get_verbosity() for library in libraries] + bars)
        if fail:
            raise ConnectionError
        return datasets.Dataset.from_list([GOOD])

    for library in libraries:
        library.logging.set_verbosity_warning()
        library.enable_progress_bars()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", note)
    with pytest.raises(DataError) if fail else contextlib.nullcontext():
        read_split("owner/name", "train")
    with contextlib.suppress(ConnectionError):
        note()
    assert states == [[50, 50, True, True], [30, 30, False, False]]


def test_unreachable_hub_is_told_quickly_and_in_one_line(tmp_path: Path) -> None:
    code = (
        "import time\nslept, time.sleep = [], lambda s: slept.append(s)\n"
        "from report2impression.program.errors import exits_cleanly\n"
        "from report2impression.reading.pairs import read_split\n"
        "try:\n    exits_cleanly(lambda: read_split('owner/name', 'train'))()\n"
        "finally:\n    print(sum(slept))"
    )
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "RANK"}
    environment = {name: text for name, text in os.environ.items() if name not in offline} | hub
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 3
    assert done.stdout == "0\n"  # no sleep between attempts
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "make demo" in done.stderr
    assert "127.0.0.1" not in done.stderr


def test_import_is_light() -> None:
    code = "import sys, report2impression.reading.pairs as _; "
    code += "print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"
