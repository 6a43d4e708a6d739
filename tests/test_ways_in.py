"""Every way in: packed files, .tok pairs, folders of reports, named columns, streams, mixtures, and
the dry run that shows what would be read."""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluation
import train_loop
from report2impression.audit.audit import AuditSource, read_splits
from report2impression.corpora.pair_files import PublishedSplit
from report2impression.corpora.radsum23 import tables
from report2impression.program.config import load, parse, save
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading import rows as reading_rows
from report2impression.reading.options import DataConfig, PairSource, SourceConfig
from report2impression.reading.pairs import (
    BadRow,
    Pair,
    Split,
    has_split,
    open_pairs,
    read_split,
)
from report2impression.reading.sources import mix, read_pairs
from report2impression.runs.evaluation import EvalData, as_trained
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run_folder import open_run_folder
from tests.tiny import Tiny

CANARY = "zebrafish Ωmega 4711 opacity"


def put(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def texts(split: Split) -> list[tuple[str, str]]:
    return [(pair.prompt, pair.impression) for pair in split.pairs]


def refused(path: Path, *words: str, split: str = "train", kind: Any = DataError) -> None:
    with pytest.raises(kind) as caught:
        read_split(str(path), split)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not any(word in message for word in CANARY.split()) and "\n" not in message


# ---- files


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz", "csv.gz", "csv.zst", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_packed_and_tabbed_files(tmp_path: Path, ending: str, split: str) -> None:
    kind, _, packing = ending.partition(".")
    mark = "\t" if kind == "tsv" else ","
    text = f'findings{mark}impression{mark}group\n"a{mark} ""b""\nc"{mark}d{mark}x\n'
    if kind == "jsonl":
        row = {"findings": f'a{mark} "b"\nc', "impression": "d", "group": "x"}
        text = json.dumps(row) + "\n"
    packs: dict[str, Any] = {"gz": gzip.compress, "zst": zstandard.compress, "": bytes}
    put(tmp_path / f"{split}.{ending}", packs[packing](text.encode()))
    found = read_split(str(tmp_path), split)
    assert found.pairs == [Pair(f"{split}-0", f'a{mark} "b"\nc', "d", "x")]


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", "")
    put(tmp_path / "train.csv.gz", "")
    refused(tmp_path, "train.jsonl", "train.csv.gz", "keep one", kind=ConfigError)
    put(tmp_path / "test" / "a.txt", "")
    put(tmp_path / "test.findings.tok", "")
    refused(tmp_path, "test.findings.tok and test are", split="test", kind=ConfigError)


def test_the_first_row_with_known_columns_names_them(tmp_path: Path) -> None:
    rows = [{"x": 1}, {"text": "a", "summary": "b"}, {"prompt": "c", "impressions": "d"}]
    put(tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    split = read_split(str(tmp_path), "train", on_bad_row="skip")
    assert texts(split) == [("a", "b")]
    assert [bad.row for bad in split.skipped] == [0, 2]


# ---- .tok pairs


def put_tok(folder: Path, findings: str, impression: str, name: str = "train") -> None:
    put(folder / f"{name}.findings.tok", findings)
    put(folder / f"{name}.impression.tok", impression)


@pytest.mark.parametrize("end", ["", "\n"])
def test_tok_lines_belong_together_and_blank_ones_are_data(tmp_path: Path, end: str) -> None:
    put_tok(tmp_path, f"one\n\nthree{end}", f"first\nsecond\nthird{end}")
    refused(tmp_path, "train.findings.tok line 2", "`findings` is empty", "1 bad row")
    split = read_split(str(tmp_path), "train", on_bad_row="skip")
    assert texts(split) == [("one", "first"), ("three", "third")]
    assert [pair.id for pair in split.pairs] == ["train-0", "train-2"]


@pytest.mark.parametrize(
    ("findings", "impression", "n_rows"),
    [
        ("a\nb\n", "c\nd", 2),  # a LF behind each text, or between them
        ("a\nb", "c\nd\n", 2),
        ("a\n", "c\nd", 2),  # an empty text at the end
        ("a\nb", "c\n", 2),
        ("a\nb", "c\nd\ne", None),
        ("a\nb\n\n", "c\nd\n", 3),
        ("a\nb\n\n\n", "c\nd\n", None),
        ("a\nb", "c", None),
        ("a\nb\nc\n", "c\nd", None),
    ],
)
def test_tok_files_of_unequal_length(
    tmp_path: Path, findings: str, impression: str, n_rows: int | None
) -> None:
    put_tok(tmp_path, findings, impression)
    if n_rows is None:
        refused(tmp_path, "train.findings.tok and train.impression.tok differ")
    else:
        assert read_split(str(tmp_path), "train", on_bad_row="skip").n_rows == n_rows


def test_tok_damage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "train.findings.tok", "a")
    refused(tmp_path, "train.impression.tok is not a regular file")
    put(tmp_path / "train.impression.tok", f"{CANARY} \udcff".encode(errors="surrogateescape"))
    refused(tmp_path, "train.findings.tok line 1", "not UTF-8")
    monkeypatch.setattr(reading_rows, "MAX_LINE_BYTES", 10)
    put_tok(tmp_path, CANARY + "\nb", "a\nb")
    assert texts(read_split(str(tmp_path), "train", on_bad_row="skip")) == [("b", "b")]


def test_validation_has_two_names_and_groups_their_folders(tmp_path: Path) -> None:
    put_tok(tmp_path / "CT_head", f"{CANARY}\nb", "c\n", "validate")
    put_tok(tmp_path / "MR_neck", "d", "e", "validate")
    split = read_split(str(tmp_path), "validation", on_bad_row="skip")
    assert [pair.group for pair in split.pairs] == ["CT_head", "MR_neck"]
    assert [pair.id for pair in split.pairs] == ["validation-0", "validation-2"]
    where = "CT_head/validate.findings.tok line 2"
    assert split.skipped == [BadRow(1, where, "`impression` is empty")]
    assert not has_split(str(tmp_path), "train")
    put_tok(tmp_path, "x", "y", "validation")  # beside it, the groups do not count
    assert texts(read_split(str(tmp_path), "validation")) == [("x", "y")]


def test_groups_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"{letter}{n}" for n in (2, 0, 1) for letter in "hbdzakq"]
    for name in names:
        put_tok(tmp_path / name, "a", "b")
    split = read_split(str(tmp_path), "train")
    assert [pair.group for pair in split.pairs] == sorted(names)


def test_what_the_builder_of_the_published_split_writes_is_read(tmp_path: Path) -> None:
    """Its .tok files and its JSON lines hold the same pairs in the same order."""
    split = PublishedSplit(tmp_path, "plain")
    group = tables().split_groups[0]
    for number in range(40):
        built = Pair(str(number), f"lung {number}", f"clear {number}", group, "")
        assert not split.add(built)
    split.finish()
    for name, n_pairs in (("train", 32), ("validation", 4), ("test", 4)):
        by_json = read_split(str(tmp_path), name)
        (tmp_path / f"{name}.jsonl").unlink()
        by_tok = read_split(str(tmp_path), name)
        assert texts(by_tok) == texts(by_json) and len(by_tok.pairs) == n_pairs
        assert {pair.group for pair in by_tok.pairs} == {group}


# ---- folders of reports


REPORT = "CLINICAL HISTORY: cough\nFINDINGS: {}\nIMPRESSION:\n{}\n"


def test_reports_with_headings(tmp_path: Path) -> None:
    put(tmp_path / "train" / "b.txt", "\ufeffFINDINGS: lungs\r\nclear\r\nIMPRESSION: normal")
    put(tmp_path / "train" / "a.txt", REPORT.format("heart large", "cardiomegaly"))
    put(tmp_path / "train" / "notes.md", "not a report")
    put(tmp_path / "train" / "c.txt", REPORT.format("c", "d"))
    split = read_split(str(tmp_path), "train")
    assert split.pairs == [
        Pair("a", "heart large", "cardiomegaly"),
        Pair("b", "lungs\r\nclear", "normal"),
        Pair("c", "c", "d"),
    ]
    (tmp_path / "train" / "b.txt").unlink()  # has no history
    history = read_split(str(tmp_path), "train", source_column="history")
    assert history.pairs[0] == Pair("a", "cough", "cardiomegaly")


def test_reports_that_lack_a_section_are_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("report2impression.reading.report_files.MAX_LINE_BYTES", 200)
    folder = tmp_path / "test"
    put(folder / "a.txt", f"IMPRESSION: {CANARY}")
    put(folder / "b.txt", f"FINDINGS: {CANARY}\nIMPRESSION:")
    put(folder / "c.txt", CANARY)
    put(folder / "d.txt", "")
    put(folder / "e.txt", b"FINDINGS: \xff")
    put(folder / "f.txt", REPORT.format(CANARY * 20, CANARY))
    (folder / "g.txt").mkdir()
    put(folder / "z.txt", REPORT.format(CANARY, "normal"))
    refused(tmp_path, "test/a.txt (in ", "`findings` is missing", "7 bad rows", split="test")
    split = read_split(str(tmp_path), "test", on_bad_row="skip")
    assert [pair.id for pair in split.pairs] == ["z"]
    assert [(bad.where, bad.reason) for bad in split.skipped] == [
        ("test/a.txt", "`findings` is missing"),
        ("test/b.txt", "`impression` is missing"),
        ("test/c.txt", "`findings` is missing"),
        ("test/d.txt", "`findings` is missing"),
        ("test/e.txt", "the report is not UTF-8"),
        ("test/f.txt", "the report is longer than 100 MB"),
        ("test/g.txt", "not a regular file"),
    ]


def test_the_audit_takes_every_way_in(tmp_path: Path) -> None:
    put_tok(tmp_path / "CT_head", "a", "b")
    put(tmp_path / "test" / "a.txt", REPORT.format("c", "d"))
    splits = read_splits(AuditSource(str(tmp_path)))
    assert {split.name: texts(split) for split in splits} == {
        "train": [("a", "b")],
        "test": [("c", "d")],
    }


# ---- columns by name


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_marks_by_name(tmp_path: Path, ending: str) -> None:
    row = {"prompt": "a", "impressions": "b", "id": "no", "key": "k7", "modality": "ct", "mrn": "9"}
    line = json.dumps(row) if ending == "jsonl" else ",".join(row) + "\n" + ",".join(row.values())
    put(tmp_path / f"train.{ending}", line)
    names: dict[str, Any] = {
        "id_column": "key",
        "group_column": "modality",
        "patient_column": "mrn",
    }
    config = SourceConfig(path=str(tmp_path), **names)
    assert read_pairs(config, "train").pairs == [Pair("k7", "a", "b", "ct", "9")]
    assert read_splits(AuditSource(str(tmp_path), **names))[0].pairs[0].patient == "9"
    assert read_split(str(tmp_path), "train").pairs == [Pair("no", "a", "b")]


def test_a_mark_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "prompt,impressions,id\na,b,c\n")
    with pytest.raises(DataError, match="no column key; found: prompt, impressions, id"):
        read_split(str(tmp_path), "train", id_column="key")
    put(tmp_path / "test.jsonl", '{"prompt": "a", "impressions": "b", "id": "c"}')
    with pytest.raises(DataError, match="test.jsonl line 1.*`key` is missing"):
        read_split(str(tmp_path), "test", id_column="key")


# ---- streams


def test_a_stream_is_lazy_and_gives_what_a_list_gives(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * (i % 3), "impressions": str(i)} for i in range(30)]
    put(tmp_path / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "\n" * 5)
    split = read_split(str(tmp_path), "train", on_bad_row="skip")
    found = open_pairs(PairSource(str(tmp_path)), "train", on_bad_row="skip")
    items = list(found.stream())
    assert [i for i in items if isinstance(i, Pair)] == split.pairs and len(split.pairs) == 20
    assert [i for i in items if isinstance(i, BadRow)] == split.skipped
    assert list(found.stream()) == items


def test_a_strict_stream_counts_all_bad_rows_and_gives_no_row_behind_the_first(
    tmp_path: Path,
) -> None:
    rows = ['{"prompt": "a", "impressions": "b"}', "{", '{"prompt": "c", "impressions": "d"}', "{"]
    put(tmp_path / "train.jsonl", "\n".join(rows))
    given_out = []
    with pytest.raises(DataError, match="train.jsonl line 2.*2 bad rows in all"):
        for item in open_pairs(PairSource(str(tmp_path)), "train").stream():
            given_out.append(item)
    assert given_out == [Pair("train-0", "a", "b")]
    with pytest.raises(DataError):  # at the call, not at the first row
        open_pairs(PairSource(str(tmp_path)), "test")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "tok"])
def test_a_stream_needs_no_more_memory_for_more_rows(tmp_path: Path, ending: str) -> None:
    import tracemalloc

    n_rows, text = 20_000, "the lung is clear " * 20
    line = {"jsonl": json.dumps({"prompt": text, "impressions": "b"}), "csv": f"{text},b"}
    data = (line.get(ending.split(".")[0], text) + "\n").encode() * n_rows
    if ending == "tok":
        put(tmp_path / "train.impression.tok", b"b\n" * n_rows)
        put(tmp_path / "train.findings.tok", data)
    else:
        data = (b"prompt,impressions\n" if ending == "csv" else b"") + data
        put(tmp_path / f"train.{ending}", gzip.compress(data, 1) if "gz" in ending else data)
    assert len(data) > 7_000_000
    tracemalloc.start()
    assert sum(1 for _ in open_pairs(PairSource(str(tmp_path)), "train").stream()) == n_rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 700_000


# ---- several sources


def numbered(name: str, n: int) -> Split:
    return Split("train", [Pair(f"{name}{i}", f"{name} {i}", "x") for i in range(n)], n, [])


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.5, 3.4), min_size=3, max_size=3),
    seed=st.integers(0, 5),
)
def test_a_weight_is_how_often_the_pairs_are_seen(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    weights = weights[: len(sizes)]
    sources = [numbered("abc"[i], n) for i, n in enumerate(sizes)]
    if any(w < 1 and round(w * n) == 0 for w, n in zip(weights, sizes, strict=True)):
        with pytest.raises(ConfigError, match="none of its 1 pairs"):
            mix(sources, weights, seed)
        return
    mixed = mix(sources, weights, seed)
    assert mixed == mix(sources, weights, seed)
    ids = [pair.id for pair in mixed.pairs]
    assert len(set(ids)) == len(ids)
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True), start=1):
        own = [pair for pair in mixed.pairs if pair.id.startswith(f"{number}:")]
        assert abs(len(own) - weight * len(source.pairs)) <= 0.5
        counts = [sum(p.prompt == pair.prompt for p in own) for pair in source.pairs]
        assert set(counts) <= {int(weight), int(weight) + 1}
        assert all(re.fullmatch(rf"{number}:[abc]\d+(#\d)?", pair.id) for pair in own)


def test_another_seed_draws_other_pairs() -> None:
    halves = [
        [pair.prompt for pair in mix([numbered("a", 40)], [0.5], seed).pairs] for seed in range(3)
    ]
    assert [len(half) for half in halves] == [20] * 3
    assert halves[0] != halves[1] != halves[2]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """A hub with one row in every data set, the second of two bad; notes what is asked."""
    asked = []

    def answer(path: str, *, revision: str | None, split: str) -> datasets.Dataset:
        asked.append((path, revision, split))
        rows = [{"text": f"{path} {split}", "summary": "x"}, {"text": "", "summary": "x"}]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", answer)
    return asked


def test_sources_are_mixed_for_training_only(
    tmp_path: Path, hub: list[tuple[str, str | None, str]]
) -> None:
    for split in ("train", "validation"):
        put(tmp_path / f"{split}.csv", f"prompt,impressions\n{split},y\n")
    config = SourceConfig(
        path=str(tmp_path), mix=("owner/name", "owner/other@v2"), weights=(2.0, 1.0, 1.0)
    )
    mixed = read_pairs(config, "train")
    assert [(pair.id, pair.prompt) for pair in mixed.pairs] == [
        ("1:train-0", "train"),
        ("1:train-0#2", "train"),
        ("2:train-0", "owner/name train"),
        ("3:train-0", "owner/other train"),
    ]
    assert hub == [("owner/name", None, "train"), ("owner/other", "v2", "train")]
    assert (mixed.n_rows, len(mixed.skipped)) == (5, 2)
    assert mixed.skipped[1].where == "owner/other train row 2 of source 3"
    assert texts(read_pairs(config, "validation")) == [("validation", "y")]
    assert len(hub) == 2


@pytest.mark.parametrize(
    ("weights", "words"),
    [((1.0,), "1 numbers for 2"), ((1.0, 0.0), "more than 0"), ((1.0, float("nan")), "more than")],
)
def test_weights_that_cannot_be_meant(weights: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SourceConfig(mix=("a/b",), weights=weights)


def test_the_mixture_is_a_setting_like_others(tmp_path: Path) -> None:
    config = parse(TrainConfig, ['--data.mix=["a/b","c"]', "--data.weights=[1,0.5,2]"])
    assert (config.data.mix, config.data.weights) == (("a/b", "c"), (1.0, 0.5, 2.0))
    save(config, tmp_path / "config.toml")
    assert load(TrainConfig, tmp_path / "config.toml") == config


def test_training_on_a_mixture(tiny: Tiny, tmp_path: Path) -> None:
    mixture = json.dumps([str(tiny.data)])
    flags = tiny.flags(tmp_path / "run", data__mix=mixture, data__weights="[0.2,0.1]", max_steps=2)
    train_loop.main(flags)
    trained = load(TrainConfig, tmp_path / "run" / "adapter" / "training.toml")
    assert len(read_pairs(trained.data, "train").pairs) == 17  # 11 + 6 of 57
    given_path = as_trained(EvalData(path="a/b"), trained.data)
    assert (given_path.mix, given_path.weights) == ((), ())
    assert as_trained(EvalData(), trained.data) == trained.data


def test_a_run_never_removes_a_source_of_the_mixture(tmp_path: Path) -> None:
    put(tmp_path / "run" / "evaluation" / "train.jsonl", "")
    data = DataConfig(path="a/b", mix=(str(tmp_path / "run" / "evaluation"),))
    with pytest.raises(ConfigError, match="would remove"):
        open_run_folder(tmp_path / "run", TrainConfig(data=data))


# ---- dry run


def shown(
    capfd: pytest.CaptureFixture[str], main: Callable[..., None], flags: Sequence[str]
) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--dry_run"])
    assert not ended.value.code
    out, err = capfd.readouterr()
    assert not err and not any(word in out for word in CANARY.split())
    return out


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in ((train_loop, "open_run"), (evaluation, "Accelerator")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a model was asked for"))
    yield


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_shows_counts_columns_and_reasons_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    rows = f"findings,impression,mrn,age\n{CANARY},x,7,30\n,{CANARY},8,40\n{CANARY},,9,5\n,y,1,2\n"
    put(data / "train.csv.gz", gzip.compress(rows.encode()))
    put_tok(data / "CT_head", f"{CANARY}\nb", "c\nd e", "validate")
    put_tok(other, "one two", "three")
    flags = [f"--data.path={data}", "--data.patient_column=mrn", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as caught:  # the groups have no patients
        train_loop.main([*flags, "--dry_run"])
    assert caught.value.code == 3 and "no column mrn" in capfd.readouterr().err
    mixture = ["--data.mix", json.dumps([str(other)]), "--data.weights=[1,0.5]"]
    out = shown(capfd, train_loop.main, [flags[0], flags[2], *mixture])
    assert [re.sub(r"[\s│]+", " ", row) for row in out.splitlines() if "│" in row] == [
        " train train.csv.gz csv.gz 4 3 4.0 4 1.0 1 ",
        " train train.findings.tok tok 1 0 2.0 2 1.0 1 ",
        " validation */validate.findings.tok tok 2 0 2.5 4 1.5 2 ",
    ]
    columns = "prompt = findings, impression = impression; not used: mrn, age"
    assert f"train of {data} (weight 1): {columns}\n" in out
    assert "(weight 0.5)" in out and "group = group" in out
    assert "2 bad: `findings` is empty (first: train.csv.gz line 3; stops the run)" in out
    assert "1 bad: `impression` is empty (first: train.csv.gz line 4; stops the run)" in out
    assert "left out)" in shown(
        capfd, train_loop.main, [flags[0], flags[2], "--data.on_bad_row=skip"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other"]


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_refuses_what_the_run_would_refuse(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "data" / "train.jsonl", '{"prompt": "a", "impressions": "b"}')
    with pytest.raises(SystemExit) as caught:
        train_loop.main(["--dry_run", f"--data.path={tmp_path / 'data'}"])
    assert caught.value.code == 3
    assert "none of validation.jsonl" in capfd.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_of_the_evaluation_reads_the_test_split_as_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "data" / "test.jsonl", json.dumps({"f": CANARY, "i": "x"}))
    trained = parse(
        TrainConfig,
        [
            f"--data.path={tmp_path / 'data'}",
            "--data.source_column=f",
            "--data.target_column=i",
        ],
    )
    save(trained, tmp_path / "adapter" / "training.toml")
    put(tmp_path / "adapter" / "adapter_config.json", "{}")
    out = shown(capfd, evaluation.main, [f"--adapter={tmp_path / 'adapter'}"])
    assert "test of" in out and "prompt = f, impression = i" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "data"]
