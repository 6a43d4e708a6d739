"""extract.py and Extractor: the tokens of eval.py, a status for whatever comes in, nothing lost."""

import csv
import io
import json
import pickle
import random
import stat
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

import eval as evaluation
import extract
from report2impression import Extractor
from report2impression.batching.tokens import tokenise
from report2impression.decoding.generate import generate, to_text
from report2impression.decoding.options import DecodingConfig
from report2impression.extracting import extraction, outputs
from report2impression.extracting.reports import Columns, Report, findings_of
from report2impression.program.errors import ConfigError, DataError
from report2impression.program.privacy import for_spreadsheet
from report2impression.reading.licence import MIMIC_III, write_mark
from report2impression.reading.sections import places_of, texts_of
from report2impression.runs.evaluation import BaseConfig, EvalConfig
from report2impression.scoring.faithfulness.claims import read
from report2impression.weights.loading import load_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.leaks import FIELDS, Canaries, canaries
from tests.programs import forked
from tests.tiny import ROOT, Tiny, one_line, rows_of
from tests.valid import check_record

SHORT: dict[str, Any] = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def extractor(trained: Path) -> Extractor:
    return Extractor(trained / "adapter", device="cpu", **SHORT)


def run(trained: Path, given: Path, output: Path, *flags: object) -> None:
    """The program, in this process."""
    short = ["--cpu", "--max_new_tokens=12", f"--input={given}", f"--output={output}"]
    extract.main([f"--adapter={trained / 'adapter'}", *short, *map(str, flags)])


def records(file: Path) -> list[dict[str, Any]]:
    """Its lines but for when they were made."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    for record in found:
        del record["provenance"]["generated_at"]
    return found


# --- the same tokens


@pytest.mark.parametrize("form", ["adapter", "model"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=str)
def test_the_texts_are_those_of_the_evaluation(
    tiny: Tiny, trained: Path, form: str, search: dict[str, Any]
) -> None:
    folder = trained / form
    recipe = tiny.recipe(trained, model=ModelConfig(path=str(tiny.talkative)))
    config = EvalConfig(adapter=str(folder), n=0, cpu=True, **SHORT, **search)
    generated = evaluation.generate_both(config, recipe)
    extractor = Extractor(folder, device="cpu", confidence=not search, **SHORT, **search)
    found = extractor([{"prompt": pair.prompt} for pair in generated.sample.pairs])
    assert [one.text for one in found] == generated.texts["lora"]
    assert generated.texts["lora"] != generated.texts["base"]
    n_cut = sum(one.truncated_source for one in found)
    assert n_cut == generated.sample.source.n_truncated > 0
    if form == "model":
        with pytest.raises(ConfigError, match="no adapter"):
            Extractor(folder, untrained=True)
        return
    before = Extractor(folder, device="cpu", untrained=True, confidence=False, **SHORT, **search)
    found = before([{"prompt": pair.prompt} for pair in generated.sample.pairs])
    assert [one.text for one in found] == generated.texts["base"]


@pytest.mark.parametrize("engine", ["hf", "ctranslate2"])
def test_the_engines_agree(tiny: Tiny, trained: Path, extractor: Extractor, engine: str) -> None:
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")
    other = Extractor(trained / "adapter", device="cpu", engine=engine, **SHORT)
    for ours, theirs in zip(extractor(rows_of(tiny)), other(rows_of(tiny)), strict=True):
        assert ours.text == theirs.text
        assert ours.confidence == pytest.approx(theirs.confidence, rel=1e-3)


def test_the_batch_changes_nothing(tiny: Tiny, extractor: Extractor) -> None:
    rows = rows_of(tiny)
    together = extractor(rows)
    for one, row in zip(together, rows, strict=True):
        (alone,) = extractor([row])
        assert (alone.text, alone.items) == (one.text, one.items)
        assert alone.confidence == pytest.approx(one.confidence, rel=1e-4)
    assert len({one.text for one in together}) > 5


# --- what comes in

WHOLE = "EXAM: CT CHEST\nFINDINGS: The lungs are clear.\n  No effusion.\nIMPRESSION: Normal."


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        (WHOLE, "auto", "The lungs are clear.\n  No effusion."),
        (WHOLE, "cut", "The lungs are clear.\n  No effusion."),
        (WHOLE, "keep", WHOLE),
        ("  The lungs are clear. \n", "auto", "The lungs are clear."),
        ("The lungs are clear.", "cut", None),
        ("LUNGS: clear. HEART: normal.", "auto", "LUNGS: clear. HEART: normal."),
        ("IMPRESSION: Normal.", "auto", None),
        ("INDICATION: Cough.\nTECHNIQUE: PA and lateral.\n", "auto", None),
        ("FINDINGS:\nIMPRESSION: Normal.", "auto", None),
        ("FINDINGS: a (Over) page 2 (Cont) b\nNOTE: x\nFINDINGS: c", "auto", "a  b\nc"),
        *[(empty, how, None) for empty in ("", " \n\t", "\u200b") for how in ("auto", "keep")],
    ],
)
def test_findings_are_cut_out_and_never_made_up(text: str, how: Any, expected: str | None) -> None:
    found = findings_of(Report("x", text), how)
    assert (found[0] if found else None) == expected
    if found:
        places = found[1]()
        assert len(places) == len(found[0])
        same = [text[p] == sign or sign == "\n" for p, sign in zip(places, found[0], strict=True)]
        assert all(same)


def test_a_column_of_findings_is_taken_as_it_is() -> None:
    row = {"prompt": "IMPRESSION: x", "text": "y"}
    report = Columns().report(row, "0")
    assert report.as_is and findings_of(report, "auto")[0] == "IMPRESSION: x"  # type: ignore[index]
    assert Columns(asked="text").report(row, "0").text == "y"
    assert "no column z" in Columns(asked="z").report(row, "0").problem


@pytest.mark.parametrize(
    "report", [WHOLE, "FINDINGS: a (Over) page 2 (Cont) b\nNOTE: x\nFINDINGS: c", "no heading", ""]
)
def test_every_character_of_a_section_has_its_place(report: str) -> None:
    for name in ("findings", "impression"):
        text, places = texts_of(report).get(name, ""), places_of(report, name)
        assert len(text) == len(places)
        assert all(report[p] == s for p, s in zip(places, text, strict=True) if s != "\n")


def test_evidence_stands_in_the_report_as_it_was_given() -> None:
    from report2impression.extracting.options import ExtractorConfig
    from report2impression.extracting.structuring import Structurer

    text = "EXAM: CT\nFINDINGS: There is a 5 mm nodule in the left lung.\nIMPRESSION: left nodule."
    (found,) = Structurer(ExtractorConfig()).extract([Report("a", text)])
    ((finding,),) = [item.findings for item in found.items]
    (span,) = finding.evidence
    assert "nodule in the left lung" in text[span.start : span.end]
    assert found.text == "left nodule." and found.supported


def test_no_text_is_kept(extractor: Extractor, tiny: Tiny) -> None:
    from report2impression.extracting.options import ExtractorConfig
    from report2impression.extracting.structuring import Structurer

    extractor(rows_of(tiny))
    assert not read.cache_info().currsize
    Structurer(ExtractorConfig()).extract([Report("a", WHOLE)])
    assert not read.cache_info().currsize


HOSTILE: list[tuple[Any, str]] = [
    ("", "no_findings"),
    ("\ufeff \u200b", "no_findings"),
    ("IMPRESSION: none", "no_findings"),
    (None, "error"),
    (float("nan"), "error"),
    (3, "error"),
    (["a"], "error"),
    ("a\x07b", "error"),
    ("\ud800", "error"),
    ("x" * (2**20 + 1), "error"),
    ("the lungs are clear " * 50_000, "truncated"),
    ("<script>alert(1)</script> {{7*7}} %s </s> <pad> <extra_id_0>", "any"),
    ("\u202eclear are lungs the\u202c \u05d0\u05d1\u05d2", "any"),
    ("\u2028".join(["the", "lungs", "are", "clear"]), "any"),
    ("=1+1", "any"),
]


@pytest.mark.parametrize(("text", "status"), HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_comes_in_gets_a_status(extractor: Extractor, text: Any, status: str) -> None:
    bad, good = extractor([{"text": text}, {"text": "the lungs are clear"}])
    assert status in (bad.status, "any")
    assert bool(bad.text) == (bad.status in ("draft", "truncated"))
    assert bad.text or bad.reason
    assert good.text == extractor(["the lungs are clear"])[0].text
    plain = json.loads(json.dumps(bad.as_json()))
    assert plain["status"] == bad.status and plain["id"] == "0"
    for item in plain["items"]:
        assert plain["impression"][item["span"]["start"] : item["span"]["end"]] == item["text"]


# --- what is kept, flagged and withheld


def test_an_unsure_model_abstains(tiny: Tiny, trained: Path, extractor: Extractor) -> None:
    rows = rows_of(tiny)
    written = [one for one in extractor(rows) if one.text]
    sure = sorted(one.confidence for one in written)
    limit = sure[len(sure) // 2]
    strict = Extractor(trained / "adapter", device="cpu", min_confidence=limit, **SHORT)
    found = strict(rows)
    assert {one.status for one in found if one.confidence < limit or not one.text} == {"abstained"}
    assert all(not one.text and not one.items for one in found if one.status == "abstained")
    assert sum(one.status != "abstained" for one in found) == len(sure) - len(sure) // 2


def test_unsupported_impressions_are_kept_flagged_or_withheld(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from report2impression.extracting import extractor as module

    monkeypatch.setattr(module, "to_text", lambda _, ids: ["12 mm nodule on the left"] * len(ids))
    row = {"prompt": "there is a nodule on the right", "id": "a"}
    found = {}
    for how in ("keep", "flag", "abstain"):
        (found[how],) = Extractor(
            trained / "adapter", device="cpu", on_unsupported=how, **{"max_new_tokens": 60}
        )([row])
    kinds = found["keep"].unsupported
    assert {"laterality", "measurement"} <= {*kinds} and not found["keep"].supported
    assert "laterality" not in (found["keep"].reason or "")
    assert "laterality" in found["flag"].reason and found["flag"].text
    assert found["abstain"].status == "abstained" and not found["abstain"].text
    assert "12" not in json.dumps(found["abstain"].as_json()["reason"])


@pytest.mark.parametrize("asked", [False, True])
def test_fhir_tells_how_urgent_it_is_only_if_asked(asked: bool, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"impression": "volvulus"}\n')
    flags = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.ndjson'}"]
    extract.main(["--structure_only", *flags, f"--fhir_urgency={str(asked).lower()}"])
    assert ("RID49480" in (tmp_path / "out.ndjson").read_text()) == asked


@pytest.mark.parametrize(("n_german", "is_told"), [(2, True), (1, False)])
def test_the_summary_says_that_most_reports_are_not_english(
    n_german: int, is_told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["Kein Nachweis einer frischen Fraktur."] * n_german
    texts += ["There is no acute fracture of the left wrist."] * (3 - n_german)
    rows = [json.dumps({"id": str(i), "impression": text}) for i, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    flags = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    extract.main(["--structure_only", *flags])
    told = f"note: {n_german} of 3 reports are not in English"
    assert (told in capsys.readouterr().out) == is_told
    extract.main(["--structure_only", *flags, "--resume"])  # all are there: nothing to note
    assert "not in English" not in capsys.readouterr().out


def test_nothing_written_is_no_draft(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    from report2impression.extracting import extractor as module

    monkeypatch.setattr(module, "to_text", lambda _, ids: [" \u200b"] * len(ids))
    (found,) = extractor(["the lungs are clear"])
    assert (found.status, found.text, found.supported) == ("abstained", "", False)
    assert found.reason == "the model wrote nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"min_confidence": 2.0},
        {"min_confidence": 0.5, "confidence": False},
        {"engine": "ctranslate2", "min_confidence": 0.5, "no_repeat_ngram": 3},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(trained: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Extractor(trained / "adapter", **options)


# --- columns


def test_columns_in_columns_out(tiny: Tiny, extractor: Extractor) -> None:
    rows = rows_of(tiny, 5)
    batch = {name: [row[name] for row in rows] for name in ("id", "prompt")}
    found = extractor(batch)
    assert found["id"] == batch["id"] and found["generated"] == [o.text for o in extractor(rows)]
    table = datasets.Dataset.from_list(rows).map(extractor, batched=True, batch_size=2)
    assert table["generated"] == found["generated"]
    assert [json.loads(line)["id"] for line in table["record"]] == batch["id"]


def test_a_call_does_not_call_itself(tiny: Tiny, trained: Path) -> None:
    """Ray wraps the call so that a second one would wait for the first for ever."""

    class Wrapped(Extractor):
        is_busy = False

        def __call__(self, batch: Any) -> Any:
            assert not self.is_busy
            self.is_busy = True
            return super().__call__(batch)

    wrapped = Wrapped(trained / "adapter", device="cpu", **SHORT)
    assert wrapped({"prompt": [row["prompt"] for row in rows_of(tiny, 2)]})["generated"]


def test_it_is_sent_by_its_name_not_its_weights(tiny: Tiny, extractor: Extractor) -> None:
    sent = pickle.dumps(extractor)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert [o.text for o in again(rows_of(tiny, 3))] == [
        o.text for o in extractor(rows_of(tiny, 3))
    ]


# --- the program


@pytest.fixture(scope="module")
def whole(tiny: Tiny, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run over the test split, four reports at a time."""
    file = tmp_path_factory.mktemp("whole") / "out" / "all.jsonl"
    run(trained, tiny.data, file, "--block_size=4")
    return file


def test_results_are_for_their_owner(whole: Path, tiny: Tiny, extractor: Extractor) -> None:
    assert stat.S_IMODE(whole.stat().st_mode) == 0o600
    assert stat.S_IMODE(whole.parent.stat().st_mode) == 0o700
    found, rows = records(whole), rows_of(tiny)
    assert [record["id"] for record in found] == [row["id"] for row in rows]
    assert [record["impression"] for record in found] == [o.text for o in extractor(rows)]


def test_parts_joined_are_the_whole(whole: Path, tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        run(trained, tiny.data, tmp_path / f"{i}.jsonl", "--block_size=4", f"--shard={i}/3")
    found = [record for i in (1, 2, 3) for record in records(tmp_path / f"{i}.jsonl")]
    assert len(found) == 13 and sorted(found, key=str) == sorted(records(whole), key=str)


def test_a_cut_at_any_byte_is_gone_on_from(
    whole: Path, tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Extractor(trained / "adapter", device="cpu", **SHORT)
    monkeypatch.setattr(extraction, "_extractor", lambda *_: ready)
    data, draw = whole.read_bytes(), random.Random(0)
    for size in [0, 1, len(data) - 1, len(data), *draw.sample(range(len(data)), 12)]:
        file = tmp_path / f"{size}.jsonl"
        file.write_bytes(data[:size])
        run(trained, tiny.data, file, "--block_size=4", "--resume")
        assert records(file) == records(whole), size


def test_ids_that_come_twice_are_all_answered(
    trained: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Extractor(trained / "adapter", device="cpu", **SHORT)
    monkeypatch.setattr(extraction, "_extractor", lambda *_: ready)
    rows = [row | {"id": "same"} for row in rows_of(tiny, 6)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(trained, tmp_path / "in.jsonl", tmp_path / "a.jsonl", "--block_size=2")
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines[:3]))
    run(trained, tmp_path / "in.jsonl", tmp_path / "b.jsonl", "--block_size=2", "--resume")
    assert records(tmp_path / "b.jsonl") == records(tmp_path / "a.jsonl")


def test_a_dead_peers_half_line_is_cut_off(tmp_path: Path) -> None:
    ours, theirs = (outputs.Lines(tmp_path / "x.jsonl") for _ in range(2))
    ours.append([b"1\n", b"2\n"])
    with (tmp_path / "x.jsonl").open("ab") as torn:
        torn.write(b'{"id": "3' + b"x" * 2 * outputs.TAIL)
    theirs.append([b"4\n"])
    assert (tmp_path / "x.jsonl").read_bytes() == b"1\n2\n4\n"


@pytest.mark.parametrize("kind", ["json", "csv", "text", "fhir"])
def test_every_format_is_a_line_a_report_and_resumes(
    kind: str, tiny: Tiny, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Extractor(trained / "adapter", device="cpu", **SHORT)
    monkeypatch.setattr(extraction, "_extractor", lambda *_: ready)
    rows = [row | {"id": f"=cmd \u00fc {i}"} for i, row in enumerate(rows_of(tiny, 5))]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(trained, tmp_path / "in.jsonl", tmp_path / "out", f"--format={kind}", "--block_size=2")
    (file,) = (tmp_path / "out").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    n_head = int(kind == "csv")
    assert len(lines) == 5 + n_head
    file.write_bytes(b"".join(lines[: 3 + n_head]) + lines[-1][:5])
    run(
        trained,
        tmp_path / "in.jsonl",
        tmp_path / "out",
        f"--format={kind}",
        "--block_size=2",
        "--resume",
    )
    assert [*outputs.done_ids(file, kind)] == [outputs.as_written(r["id"], kind) for r in rows]  # type: ignore[arg-type]
    if kind == "csv":
        cells = list(csv.DictReader(file.open()))
        assert all(row["id"].startswith("'=cmd") for row in cells)
        texts = [draft.text for draft in ready([row["prompt"] for row in rows])]
        # Which of them say nothing is up to the CPU's rounding of random weights.
        assert [row["impression"] for row in cells] == [*map(for_spreadsheet, texts)]
        assert any(texts)


def separated(rows: list[dict[str, Any]], mark: str) -> str:
    cells = [["id", "findings"], *([row["id"], row["prompt"]] for row in rows)]
    return "\n".join(map(mark.join, cells))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("in.csv", partial(separated, mark=",")),
        ("in.tsv", partial(separated, mark="\t")),
        ("in.jsonl", lambda rows: "\n".join(json.dumps(row) for row in rows)),
    ],
)
def test_every_way_in_is_the_same(
    name: str, write: Any, whole: Path, tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(write(rows_of(tiny)) + "\n")
    run(trained, tmp_path / name, tmp_path / "out.jsonl")
    texts = [record["impression"] for record in records(whole)]
    assert [record["impression"] for record in records(tmp_path / "out.jsonl")] == texts


def test_a_folder_of_reports(tiny: Tiny, trained: Path, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    for row in rows_of(tiny, 3):
        (folder / f"{row['id']}.txt").write_text(f"FINDINGS: {row['prompt']}\nIMPRESSION: none")
    (folder / "z1.txt").write_bytes(b"\xff")
    (folder / "z2.txt").write_text("IMPRESSION: nothing else")
    run(trained, folder, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    texts = [record["impression"] for record in records(whole)[:3]]
    assert [record["impression"] for record in found] == [*texts, "", ""]
    assert [record["status"] for record in found[3:]] == ["error", "no_findings"]
    nested = tmp_path / "nested" / "p10"
    folder.rename(nested.parent)
    nested.mkdir()
    for file in nested.parent.glob("*.txt"):
        file.rename(nested / f"{file.stem}.TXT")
    run(trained, nested.parent, tmp_path / "nested.jsonl")
    again = records(tmp_path / "nested.jsonl")
    assert [record["id"] for record in again] == [f"p10/{record['id']}" for record in found]
    assert [record["impression"] for record in again] == [*texts, "", ""]


def test_one_report_on_standard_input(
    trained: Path,
    extractor: Extractor,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(WHOLE.encode())))
    extract.main([f"--adapter={trained / 'adapter'}", "--cpu", "--max_new_tokens=12"])
    assert capfd.readouterr().out == extractor([WHOLE])[0].text + "\n"


def test_json_lines_on_standard_input(
    trained: Path,
    tiny: Tiny,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = "\n\n".join(map(json.dumps, rows_of(tiny)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    flags = [f"--adapter={trained / 'adapter'}", "--cpu", "--max_new_tokens=12", "--format=json"]
    extract.main([*flags, "--block_size=4"])
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    texts = [record["impression"] for record in records(whole)]
    assert [record["impression"] for record in found] == texts


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--structure_only", "--adapter=x"], 2),
        ([], 2),
        (["--structure_only", "--input=x.jsonl", "--shard=4/3"], 2),
        (["--structure_only", "--input=x.jsonl", "--shard=a"], 2),
        (["--structure_only", "--resume"], 2),
        (["--structure_only", "--input=nothing.jsonl", "--output={tmp}/x.jsonl"], 3),
        (["--structure_only", "--input=what", "--output={tmp}/x.jsonl"], 3),
        (["--adapter={tmp}"], 2),
        (["--structure_only", "--input={tmp}/in.csv", "--output={tmp}/x.jsonl"], 3),
        (["--structure_only", "--input={tmp}/in.jsonl", "--output={tmp}/in.jsonl"], 2),
        (["--structure_only", "--input={tmp}/in.jsonl", "--output={tmp}/in.jsonl", "--resume"], 3),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(flags: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    (tmp_path / "in.jsonl").write_text('{"impression": "normal"}\n')
    done = forked("extract.py", *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == code, done.stderr
    one_line(done.stderr)
    assert (tmp_path / "in.jsonl").read_text() == '{"impression": "normal"}\n'


def test_impressions_are_structured_without_a_model(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "impression": "1. 8 mm nodule on the left.", "findings": "8 mm left nodule"},
        {"id": 2, "impression": "No fracture."},
        {"id": 3, "impression": ""},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = forked(
        "extract.py",
        "--structure_only",
        f"--input={tmp_path / 'in.jsonl'}",
        f"--output={tmp_path / 'out.jsonl'}",
    )
    assert done.returncode == 0, done.stderr
    first, second, third = records(tmp_path / "out.jsonl")
    assert first["items"][0]["findings"][0]["evidence"] and first["checks"]["supported"]
    assert second["items"][0]["findings"][0]["presence"] == "absent"
    assert third["status"] == "no_findings"


# --- privacy


def test_nothing_of_a_report_is_shown(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny: Tiny
) -> None:
    tokenizer = load_tokenizer(str(tiny.base))
    known = Canaries(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    row = {field: canaries(field) for field in FIELDS}
    rows = [row | {"id": "a"}, {"id": "b", "prompt": row["bad"] + "\x07"}, "no json " + row["bad"]]
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    run(trained, tmp_path / "in.jsonl", tmp_path / "out" / "x.jsonl")
    told = capfd.readouterr()
    assert not known.found_in((told.out + told.err).encode())
    assert told.out.count("REPORT TEXT") == 1
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.jsonl", "out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.jsonl"]
    source = {f"{field}.mrn" for field in ("bad", "impressions", "patient", "extra")}
    leaked = {leak.canary for leak in known.found_in((tmp_path / "out" / "x.jsonl").read_bytes())}
    assert not leaked & source


@pytest.mark.parametrize("marked", ["data", "adapter"])
def test_results_inherit_the_mark(marked: str, trained: Path, tmp_path: Path, tiny: Tiny) -> None:
    import shutil

    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.jsonl").write_text(json.dumps(rows_of(tiny, 1)[0]))
    write_mark(tmp_path / marked, MIMIC_III)
    run(tmp_path, tmp_path / "data" / "in.jsonl", tmp_path / "out" / "x.jsonl")
    assert json.loads((tmp_path / "out" / "LICENCE.json").read_text())["credentialed"] is True


def test_no_report_no_impression(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("IMPRESSION: none")
    with pytest.raises((DataError, SystemExit)):
        extract.main([f"--adapter={trained / 'adapter'}", f"--input={tmp_path / 'x.txt'}", "--cpu"])


# --- any trained model beside any base


def test_a_whole_model_is_compared_with_a_base_of_another_vocabulary(
    tiny: Tiny, trained: Path
) -> None:
    recipe = tiny.recipe(trained, model=ModelConfig(path=str(tiny.talkative)))
    other = ROOT / "assets" / "tiny_base"
    flags: dict[str, Any] = {"n": 3, "cpu": True, "max_new_tokens": 6}
    both = [
        evaluation.generate_both(
            EvalConfig(adapter=str(trained / "model"), model=base, **flags), recipe
        )
        for base in (BaseConfig(), BaseConfig(path=str(other)))
    ]
    assert both[0].texts["lora"] == both[1].texts["lora"]
    assert both[0].texts["base"] != both[1].texts["base"]
    tokenizer, base = load_tokenizer(str(other)), load_base(ModelConfig(path=str(other)))
    texts = [recipe.data.prefix + pair.prompt for pair in both[1].sample.pairs]
    source = tokenise(texts, tokenizer, max_tokens=recipe.data.max_source_tokens)
    alone = generate(base, source, DecodingConfig(max_new_tokens=6))
    assert both[1].texts["base"] == to_text(tokenizer, [output.ids for output in alone])


@pytest.mark.parametrize("kind", ["json", "csv", "text", "fhir"])
def test_structures_come_in_every_format(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"impression": "no fracture"}\n{"impression": 3}\n')
    flags = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out'}"]
    extract.main(["--structure_only", f"--format={kind}", *flags])
    (file,) = (tmp_path / "out").iterdir()
    assert [*outputs.done_ids(file, kind)] == ["in-0", "in-1"]  # type: ignore[arg-type]


def test_every_record_is_valid(extractor: Extractor, tiny: Tiny) -> None:
    texts = [{"text": text, "id": str(i)} for i, (text, _) in enumerate(HOSTILE)]
    notes = sorted((ROOT.parent / "shared/data/mtsamples/raw_radiology").glob("*.txt"))
    rows = [*texts, *rows_of(tiny), *({"text": note.read_text()} for note in notes[:10])]
    for found in extractor(rows):
        check_record(found.as_json())
