"""Where people's data lie: copies of hub sets, shards, saved sets, JSON arrays, other names of
splits, other separators, reports in subfolders; and what a refusal tells of what was found."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from report2impression.program.errors import ConfigError, DataError, UserError
from report2impression.program.terminal import tell_once
from report2impression.reading.options import PairSource
from report2impression.reading.pairs import Pair, has_split, open_pairs, read_split
from tests.test_ways_in import put

ROWS = [{"findings": f"lungs {i}", "impression": f"clear {i}"} for i in range(5)]
REPORT = "FINDINGS: {}\nIMPRESSION: {}\n"


def parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def comma(rows: list[dict[str, str]]) -> bytes:
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]).encode()


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "parquet": parquet,
    "jsonl": jsonl,
    "csv": comma,
    "json": lambda rows: json.dumps(rows).encode(),
}


def found(folder: Path, split: str = "train") -> list[tuple[str, str]]:
    pairs = read_split(str(folder), split, on_bad_row="error").pairs
    assert len({pair.id for pair in pairs}) == len(pairs)
    return [(pair.prompt, pair.impression) for pair in pairs]


ALL = [(row["findings"], row["impression"]) for row in ROWS]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002-0a1b2c3d4e5f6a7b.parquet",) * 2,
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("data/train_0.csv", "data/train_1.csv"),
        ("default/train/0000.parquet", "default/train/0001.parquet"),
        ("train/a.jsonl", "train/b.jsonl"),
        ("data/train/part-0.csv", "data/train/part-1.csv"),
        ("data/train.jsonl", "data/train.jsonl"),
        ("data/train-0.json", "data/train-1.json"),
    ],
)
def test_shards_and_copies_of_hub_sets(tmp_path: Path, first: str, second: str) -> None:
    second = second.replace("00000-of-00002-", "00001-of-00002-") if first == second else second
    write = WRITERS[first.rpartition(".")[2]]
    if first == second:
        put(tmp_path / first, write(ROWS))
    else:
        put(tmp_path / first, write(ROWS[:2]))
        put(tmp_path / second, write(ROWS[2:]))
    put(tmp_path / "README.md", "---\nconfigs: []\n---\n")
    assert found(tmp_path) == ALL


def test_shards_that_are_not_all_there(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train-00001-of-00003.parquet", parquet(ROWS))
    with pytest.raises(DataError, match=r"train-\*.parquet: 1 of 3 files are there"):
        read_split(str(tmp_path), "train")
    put(tmp_path / "test-0.csv", comma(ROWS))
    put(tmp_path / "test-1.csv", "findings,answer\na,b\n")
    with pytest.raises(DataError, match="test-1.csv has other columns than test-0.csv"):
        read_split(str(tmp_path), "test")
    put(tmp_path / "test.jsonl", jsonl(ROWS))
    with pytest.raises(ConfigError, match=r"test.jsonl and test-\*.csv are both there"):
        read_split(str(tmp_path), "test")


def test_saved_sets_and_names_of_classes(tmp_path: Path) -> None:
    names = ["CT_head", "MR_neck"]
    features = datasets.Features(
        findings=datasets.Value("string"),
        impression=datasets.Value("string"),
        group=datasets.ClassLabel(names=names),
    )
    rows = [row | {"group": names[i % 2]} for i, row in enumerate(ROWS)]
    for row, number in zip(rows, (0, 1, 0, 1, -1), strict=True):
        row["group"] = number  # type: ignore[assignment]
    one = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=one, validation=one).save_to_disk(tmp_path / "saved")
    one.to_parquet(tmp_path / "file" / "train.parquet")
    for folder in (tmp_path / "saved", tmp_path / "file"):
        assert found(folder) == ALL
        groups = [pair.group for pair in read_split(str(folder), "train").pairs]
        assert groups == ["CT_head", "MR_neck", "CT_head", "MR_neck", ""]
    one.save_to_disk(tmp_path / "single")
    with pytest.raises(DataError, match="saved set without splits: save a DatasetDict"):
        read_split(str(tmp_path / "single"), "train")
    state = tmp_path / "saved" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../x.arrow"}]}))
    with pytest.raises(DataError, match="lists no .arrow files beside it"):
        read_split(str(tmp_path / "saved"), "train")


@pytest.mark.parametrize("folder", ["", "data/"])
@pytest.mark.parametrize("ending", [*WRITERS, "JSONL"])
@pytest.mark.parametrize("name", ["val", "valid", "dev", "validate", "Validation", "VAL"])
def test_names_of_the_validation_split(tmp_path: Path, folder: str, ending: str, name: str) -> None:
    put(tmp_path / f"{folder}{name}.{ending}", WRITERS[ending.lower()](ROWS))
    assert found(tmp_path, "validation") == ALL
    put(tmp_path / f"{folder}validation.csv", comma(ROWS))
    if folder or name != "Validation":
        with pytest.raises(ConfigError, match="both there; keep one"):
            read_split(str(tmp_path), "validation")


@pytest.mark.parametrize("separator", [";", "|", "\t", ","])
@pytest.mark.parametrize("above", ["", "sep={}\n", '"sep={}"\r\n', "\ufeffSEP={}\n"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_separators(tmp_path: Path, separator: str, above: str, ending: str) -> None:
    rows = [["Impression", "findings", "impression"], ["x", "a; b, c | d", "e"]]
    lines = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    put(tmp_path / f"train.{ending}", above.format(separator) + "\n".join(lines))
    assert found(tmp_path) == [("a; b, c | d", "e")]
    put(tmp_path / f"train.{ending}", above.format(separator) + "\n".join([*lines, "z"]))
    with pytest.raises(DataError, match=f"line {4 if above else 3} .*1 bad row in all: mend it,"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (json.dumps(ROWS), None),
        (json.dumps(ROWS, indent=2), None),
        ("\ufeff \n" + json.dumps(ROWS), None),
        (jsonl(ROWS).decode(), None),
        ("[]", "no rows"),
        ("", "no rows"),
        (json.dumps([*ROWS, 3, "x"]), "row 6 .*the row is not a JSON object; 2 bad rows"),
        (json.dumps(ROWS)[:-9], "row 5: the JSON array cannot be parsed"),
        (json.dumps(ROWS) + "]", "row 6: the JSON array cannot be parsed"),
        ('[{"findings": "a", "findings": "b"}]', "row 1: .*a key twice"),
        (json.dumps({"train": ROWS}), "no columns"),
        (json.dumps({"train": ROWS}, indent=1), "not valid JSON"),
    ],
)
def test_json(tmp_path: Path, text: str, outcome: str | None) -> None:
    put(tmp_path / "train.json", text)
    if outcome is None:
        assert found(tmp_path) == ALL
    else:
        with pytest.raises(DataError, match=outcome):
            found(tmp_path)


def test_an_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    import tracemalloc

    text = "the lung is clear " * 20
    rows = ",\n".join([json.dumps({"prompt": text, "impressions": "b"})] * 20_000)
    put(tmp_path / "train.json", f"[{rows}]")
    tracemalloc.start()
    items = open_pairs(PairSource(str(tmp_path)), "train").stream()
    assert sum(1 for _ in items) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (["p10/s0.txt", "p10/s1.TXT", "p2/s0.txt"], ["p10/s0", "p10/s1", "p2/s0"]),
        (["b.TXT", "a.txt"], ["a", "b"]),
        (["x.txt", "deep/er/y.txt"], ["x", "deep/er/y"]),
    ],
)
def test_reports_in_subfolders(tmp_path: Path, files: list[str], pairs: list[str]) -> None:
    for name in files:
        put(tmp_path / "test" / name, REPORT.format("a", "b"))
    assert read_split(str(tmp_path), "test").pairs == [Pair(name, "a", "b") for name in pairs]


def test_folders_of_patients_name_the_patient(tmp_path: Path) -> None:
    for name in ("p10/p10000032/s1", "p10/p10000032/s2", "p11/p11000001/s1"):
        put(tmp_path / "train" / f"{name}.txt", REPORT.format("a", "b"))
    patients = [pair.patient for pair in read_split(str(tmp_path), "train").pairs]
    assert patients == ["p10000032", "p10000032", "p11000001"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "the folder is empty"),
        (["train.xlsx", "notes.md"], "found notes.md, train.xlsx;"),
        (["p10/p10000032/s50414267.txt"], "found p10/; reports (.txt) belong in folders train/"),
        (["12345678.txt", "Roe_Jane.txt"], "found 2 .txt; reports (.txt) belong in folders"),
        (["10000032/x.bin", "0001.zip"], "found 1 .zip, 1 folders;"),
        (["train/readme.md"], "found train/;"),
    ],
)
def test_a_refusal_tells_what_lies_there(tmp_path: Path, files: list[str], told: str) -> None:
    for name in files:
        put(tmp_path / name, "x")
    assert not has_split(str(tmp_path), "train")
    with pytest.raises(DataError) as caught:
        read_split(str(tmp_path), "train")
    message = str(caught.value)
    assert told in message and "\n" not in message and "add one, or point" in message


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_unknown_headings_are_named_if_they_recur(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_bad_row: str
) -> None:
    tell_once.cache_clear()
    folder = tmp_path / "train"
    put(folder / "good.txt", REPORT.format("a", "b"))
    for i in range(5):
        put(folder / f"{i}.txt", f"LAUSUNTO: geen\nOordeel - z\n{'SECRET: x' * (i > 0)}\n")
    try:
        read_split(str(tmp_path), "train", on_bad_row=on_bad_row)
        told = capsys.readouterr().err
    except UserError as error:
        told = str(error)
    assert "5 of 6 reports lack findings or impression" in told
    assert "headings that are not known: LAUSUNTO (5), OORDEEL (5); rename" in told
    assert "SECRET" not in told and "geen" not in told and "\n" not in told.strip()


def test_reports_with_several_impressions_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once.cache_clear()
    put(tmp_path / "train" / "a.txt", "IMPRESSION: x\nFINDINGS: a\nIMPRESSION: b\n")
    put(tmp_path / "train" / "b.txt", REPORT.format("a", "b"))
    for _ in range(2):
        assert found(tmp_path) == [("a", "b")] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "train/*.txt: 1 of 2 reports have several impressions; the last one counts"
