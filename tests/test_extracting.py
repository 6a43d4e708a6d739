"""Structured items of an impression: what is said of each finding, where, and as FHIR."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.structured import peers
from bench.structured.labels import Labelled
from bench.structured.matching import Label
from report2impression.corpora.synthetic import generate
from report2impression.extracting.fhir import diagnostic_report
from report2impression.extracting.items import as_json, structure
from report2impression.extracting.parts import Finding, Structure
from report2impression.extracting.urgency import TABLE, read_table
from report2impression.program.errors import ConfigError
from report2impression.scoring.faithfulness import claims
from tests.valid import check_fhir, check_record

SHARED = Path(__file__).parents[2] / "shared"
PROVENANCE = {
    "model": "google-t5/t5-small",
    "adapter_sha256": "ab" * 32,
    "source_sha256": "cd" * 32,
    "decoding": "greedy",
    "rules": "2026-11",
    "generated_at": "2026-11-26T10:00:00Z",
}


def findings(found: Structure) -> list[Finding]:
    return [finding for item in found.items for finding in item.findings]


def of(text: str, term: str) -> Finding:
    return next(f for f in findings(structure(text)) if f.term == term)


def record(text: str, source: str | None = None, **more: Any) -> dict[str, Any]:
    told = {"schema_version": 1, "id": "r1", "status": "draft", "impression": text}
    return {**told, **as_json(structure(text, source)), "provenance": PROVENANCE, **more}


@pytest.mark.parametrize(
    ("text", "presence", "certainty"),
    [
        ("Pneumonia.", "present", "stated"),
        ("No evidence of pneumonia.", "absent", "stated"),
        ("Pneumonia has resolved.", "absent", "stated"),
        ("Resolution of the previously seen pneumonia.", "absent", "stated"),
        ("Nodule likely represents pneumonia.", "possible", "probable"),
        ("Opacity, consistent with pneumonia.", "present", "probable"),
        ("Possible pneumonia.", "possible", "possible"),
        ("Pneumonia cannot be excluded.", "possible", "possible"),
        ("An abscess or pneumonia in the left lung cannot be excluded.", "possible", "possible"),
        ("No effusion, a pneumonia can not be excluded.", "possible", "possible"),
        ("Atelectasis; pneumonia is unlikely.", "possible", "unlikely"),
        ("Atelectasis, less likely pneumonia.", "possible", "unlikely"),
        ("Opacity with no demonstrated pneumonia.", "absent", "stated"),
        (
            "Nodules and pneumonia, correlation versus prior studies is advised.",
            "present",
            "stated",
        ),
    ],
)
def test_presence_and_certainty(text: str, presence: str, certainty: str) -> None:
    found = of(text, "pneumonia")
    assert (found.presence, found.certainty) == (presence, certainty)


@pytest.mark.parametrize(
    ("text", "term", "field", "value"),
    [
        ("Bilateral pleural effusions, right greater than left.", "pleural effusion", "laterality",
         "bilateral"),
        ("Right pleural effusion and left pneumothorax.", "pneumothorax", "laterality", "left"),
        ("Edema and atelectasis in the right lung.", "edema", "laterality", "right"),
        ("Reduced left ventricular function.", "ventricular dysfunction", "laterality", "left"),
        ("Right knee sprain and a left hip fracture.", "fracture", "laterality", "left"),
        ("Bilateral renal stones, no obstruction.", "bowel obstruction", "laterality", None),
        ("8 mm nodule in the left lower lobe.", "nodule", "level", "lower lobe"),
        ("RUL nodule.", "nodule", "level", "upper lobe"),
        ("At L4-5, there is a disc bulge.", "disc herniation", "level", "L4-L5"),
        ("L5-S1: disc bulge, hardware, spondylolisthesis.", "malalignment", "level", "L5-S1"),
        ("Fracture of the frontal process of the maxilla.", "fracture", "level", None),
        ("Compression fractures of L1 and L3.", "compression fracture", "level", "L1, L3"),
        ("8 mm nodule in the left lower lobe.", "nodule", "location", "left lower lobe"),
        ("Moderate pulmonary hypertension.", "pulmonary hypertension", "severity", "moderate"),
        ("Mild to moderate scoliosis.", "scoliosis", "severity", "moderate"),
        ("Left atrial enlargement, large pleural effusion.", "pleural effusion", "severity",
         "severe"),
        ("Hydronephrosis is severe.", "hydronephrosis", "severity", "severe"),
        ("Small nodule.", "nodule", "severity", None),
        ("Extensive artifact from the pacemaker.", "pacemaker", "severity", None),
        ("Nodule has slightly increased in size.", "nodule", "change", "increased"),
        ("Effusion and edema are unchanged.", "pleural effusion", "change", "unchanged"),
        ("Effusion and edema are unchanged.", "edema", "change", "unchanged"),
        ("Effusion unchanged, new nodule.", "nodule", "change", "new"),
        ("Nodule; CT in 3 months to confirm stability.", "nodule", "change", None),
        ("Increased signal in the pons, nodule.", "nodule", "change", None),
        ("Left breast mass larger on the left.", "mass", "change", None),
        ("Old infarct.", "infarct", "acuity", "chronic"),
        ("Acute on chronic subdural hematoma.", "subdural hematoma", "acuity", "acute"),
        ("A 72 year old infarct patient.", "infarct", "acuity", None),
        ("Nondisplaced fracture, healed.", "fracture", "acuity", "chronic"),
    ],
)  # fmt: skip
def test_an_attribute_is_that_of_its_finding(
    text: str, term: str, field: str, value: str | None
) -> None:
    assert getattr(of(text, term), field) == value


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2.1 x 1.4 cm nodule.", [([21.0, 14.0], False)]),
        ("Nodule measures 12 mm, previously 8 mm.", [([12.0], False), ([8.0], True)]),
        ("Nodule increased from 8 to 12 mm.", [([8.0], True), ([12.0], False)]),
        ("12 mm nodule, compared to 8 mm.", [([12.0], False), ([8.0], True)]),
        ("12 mm nodule (8 mm on the prior).", [([12.0], False), ([8.0], True)]),
        ("Hemorrhage resulting in a 4 cm hematoma and a nodule.", []),
        ("Nodule 3 cm from the nipple.", []),
        ("1 8 mm nodule 2 no effusion", [([8.0], False)]),
    ],
)
def test_sizes_are_millimetres_and_the_priors_are_told_apart(text: str, sizes: list[Any]) -> None:
    found = of(text, "nodule").measurements
    assert [(list(m.values_mm), m.of_prior) for m in found] == sizes
    assert all(text[m.span.start : m.span.end] == m.text for m in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CT chest in 6 months is recommended.", ("CT", "P6M", None)),
        ("Recommend MRI if clinically indicated.", ("MRI", None, "if clinically indicated")),
        ("Follow-up ultrasound in 3 to 6 months.", ("ultrasound", "P3M", None)),
        ("Annual screening mammography is recommended.", ("mammography", "P1Y", None)),
        ("Repeat radiograph in two weeks is advised.", ("radiography", "P2W", None)),
        ("An MRI may be of benefit.", ("MRI", None, None)),
        ("Clinical correlation is recommended.", (None, None, None)),
        ("12 mm suspicious nodule biopsy recommended", ("biopsy", None, None)),
        ("Correlation is made with the head CT of 2005.", None),
        ("CT shows a nodule which may be a cyst.", None),
        ("Pneumonia is considered.", None),
        ("The mass should be benign.", None),
        ("The nodule should be removed; a biopsy is suggested.", ("biopsy", None, None)),
        ("No change is seen.", None),
    ],
)
def test_advice_is_read_with_study_time_and_condition(
    text: str, expected: tuple[str | None, ...] | None
) -> None:
    advice = [a for item in structure(text).items for a in item.recommendations]
    assert [(a.modality, a.interval, a.condition) for a in advice] == (
        [] if expected is None else [expected]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BI-RADS category 4a.", ("BI-RADS", "4A")),
        ("BIRADS Classification 2 - Benign", None),
        ("Lung-RADS 4B.", ("Lung-RADS", "4B")),
        ("LI-RADS LR-5 lesion.", ("LI-RADS", "5")),
        ("PI-RADS score: 4.", ("PI-RADS", "4")),
        ("ACR TI-RADS TR4 nodule.", ("TI-RADS", "4")),
        ("O-RADS 3.", ("O-RADS", "3")),
        ("C-RADS C2.", ("C-RADS", "C2")),
        ("Spiculated mass, highly suspicious.", None),
        ("BI-RADS lexicon was used.", None),
    ],
)
def test_a_rads_category_only_where_written(text: str, expected: tuple[str, str] | None) -> None:
    found = [i.assessment for i in structure(text).items if i.assessment]
    assert [(a.system, a.category) for a in found] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("1. Nodule. CT is advised.\n2. No effusion.", ["Nodule. CT is advised.", "No effusion."]),
        ("1 8 mm nodule 2 no effusion", ["8 mm nodule", "no effusion"]),
        ("1.Clear lungs.,2.No effusion.", ["Clear lungs.", "No effusion."]),
        ("- Nodule\n- No effusion", ["Nodule", "No effusion"]),
        ("Nodule in the\nleft lung. No effusion.", ["Nodule in the\nleft lung.", "No effusion."]),
        ("Nodule. This may be one. Advise CT.", ["Nodule. This may be one. Advise CT."]),
        ("no effusion", ["no effusion"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_items_are_the_text_without_its_numbers(text: str, items: list[str]) -> None:
    found = structure(text).items
    assert [item.text for item in found] == items
    assert [item.number for item in found] == list(range(1, len(items) + 1))


def test_evidence_is_where_the_source_says_so() -> None:
    source = "there is no pleural effusion. new nodule in the left lower lobe of 8 mm."
    said = structure("8 mm nodule in the left lower lobe. No pleural effusion. Fracture.", source)
    where = [[source[s.start : s.end].rstrip(".") for s in f.evidence] for f in findings(said)]
    assert where == [
        ["new nodule in the left lower lobe of 8 mm"],
        ["there is no pleural effusion"],
        [],
    ]
    assert said.checks is not None
    assert [(u.kind, u.start) for u in said.checks.unsupported] == [("finding", 57)]


def test_checks_and_items_are_of_one_reading() -> None:
    """A number that is glued to its item's "no" hides it from neither."""
    said = structure("1.Clear lungs.\n2.No effusion.", "no effusion. lungs are clear")
    assert [f.presence for f in findings(said)] == ["absent"]
    assert said.checks is not None and not said.checks.unsupported


def test_without_a_source_nothing_is_called_supported() -> None:
    plain = as_json(structure("Nodule."))
    assert not plain["checks"]["supported"]
    assert "evidence" not in plain["items"][0]["findings"][0]


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Acute intracranial hemorrhage.", "category_1"),
        ("Small pneumothorax.", "category_2"),
        ("8 mm nodule.", "category_3"),
        ("4 mm nodule.", "none"),
        ("No pneumothorax.", "none"),
        ("Chronic infarct.", "none"),
        ("Unchanged pneumothorax.", "none"),
        ("Mass is unlikely.", "none"),
        ("4 mm nodule. Volvulus.", "category_1"),
    ],
)
def test_urgency_by_the_table(text: str, category: str) -> None:
    assert structure(text).urgency == category


def test_the_urgency_table_is_the_users(tmp_path: Path) -> None:
    own = tmp_path / "urgency.txt"
    own.write_text("# ours\ncategory_2: new nodule >= 3 mm |\n  scar\n")
    table = read_table(own)
    assert structure("New 4 mm nodule.", urgency=table).urgency == "category_2"
    assert structure("Volvulus.", urgency=table).urgency == "none"
    assert len(read_table(TABLE).rules) > 30


@pytest.mark.parametrize(
    "text",
    ["category_9: mass\n", "mass\n", "category_1: no such term at all\n", "category_1: \xff"],
)
def test_a_bad_urgency_table_is_told_by_its_line(tmp_path: Path, text: str) -> None:
    own = tmp_path / "urgency.txt"
    own.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        read_table(own)
    assert str(own) in str(error.value)
    assert "no such" not in str(error.value)


HOSTILE = [
    "", " ", "\n" * 99, "\x00\x1b[31m", "\u202e\u05d0\u05d1 nodule", "<b>nodule</b>",
    "nodule, " * 150, "1. " * 99, ". " * 300, "5 x 4 x 3 mm " * 50, "a" * 5000,
    "no effusion. " * 99, "l4-l5 left " * 99, "is recommended if " * 99,
    "\ud800 nodule", "99. nodule", "\u2028nodule\x0b", "9" * 400 + " mm nodule",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_gives_a_structure_and_its_offsets_hold(text: str) -> None:
    for found in (structure(text), structure(text, text)):
        for item in found.items:
            assert text[item.span.start : item.span.end] == item.text
            for finding in item.findings:
                assert item.span.start <= finding.span.start <= finding.span.end <= item.span.end
                assert text[finding.span.start : finding.span.end] == finding.text


def test_a_long_text_is_read_in_blocks_as_the_sentences_alone_are() -> None:
    sentence = "A 12 mm nodule in the left upper lobe, no effusion in the right lung. "
    n = 2 * claims.WHOLE // len(sentence)
    alone, whole = claims.read(sentence), claims.read(sentence * n)
    told = [(c.concept, c.denied, c.values("side"), c.values("size")) for c in alone.claims]
    assert [(c.concept, c.denied, c.values("side"), c.values("size")) for c in whole.claims] == (
        told * n
    )
    places = {(sentence * n)[c.start : c.end] for c in whole.claims}
    assert places == {sentence[c.start : c.end] for c in alone.claims}


def real_impressions() -> list[str]:
    files = sorted((SHARED / "data" / "mtsamples").glob("radiology.jsonl"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [json.loads(line)["impression"] for line in lines][:30]


def records() -> list[dict[str, Any]]:
    made = [record(r.impression, r.prompt, id=r.id) for r in generate(30, 3)]
    return [*made, *map(record, real_impressions()), *map(record, HOSTILE[1:])]


def test_every_record_is_valid_by_the_schema() -> None:
    for line in records():
        check_record(line)


@pytest.mark.parametrize("version", ["R4B", "R5"])
def test_fhir_is_valid_and_its_codes_are_of_their_value_sets(version: Any) -> None:
    for line in [*records(), record("Nodule.", id="a/b \u05d0"), record("", status="no_findings")]:
        report = diagnostic_report(line, version, urgency=True)
        check_fhir(report, version)
        assert (line["status"] == "draft" and bool(line["impression"].strip())) or (
            "conclusion" not in report
        )
        agent = report["contained"][-1]["agent"][0]
        assert agent["who"]["identifier"]["value"] == PROVENANCE["adapter_sha256"]


def test_fhir_tells_the_acr_category_only_if_asked() -> None:
    line = record("Volvulus.")
    told = diagnostic_report(line, "R5", urgency=True)["contained"][0]
    assert told["interpretation"][0]["coding"][0]["code"] == "RID49480"
    assert "interpretation" not in diagnostic_report(line, "R5")["contained"][0]
    with pytest.raises(ValueError, match="R4B or R5"):
        diagnostic_report(line, "R4")  # type: ignore[arg-type]


def test_the_bench_reads_the_grammar_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.structure import main

    monkeypatch.setattr("sys.argv", ["structure", "--n", "100"])
    main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["synthetic"]
    assert set(figures) >= {"finding + presence", "laterality", "severity", "modality"}
    for field in figures.values():
        assert field["precision"]["per_100"] >= 95
        assert field["recall"]["per_100"] >= 95


def test_other_tools_are_judged_on_their_own_fields(tmp_path: Path) -> None:
    """By a Python that answers as bench/structured/peer_reader.py does."""
    said = {"findings": [{"span": [3, 9], "presence": "present"}], "advice": []}
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{json.dumps({'openmed': [said]})}'\n")
    python.chmod(0o700)
    due = [Label(3, 9, {"presence": "absent"}), Label(20, 28, {"presence": "present"})]
    report = Labelled("x", "unseen", "no nodule", due, [])
    found = peers.judged(str(python), [report])["openmed"]
    assert found["finding"]["recall"]["per_100"] == 50
    assert found["finding + presence"]["precision"]["per_100"] == 0
    assert "certainty" not in found
    python.write_text("#!/bin/sh\ncat > /dev/null\nexit 3\n")
    with pytest.raises(ConfigError, match="ended with 3"):
        peers.judged(str(python), [report])
    with pytest.raises(ConfigError, match="cannot be run"):
        peers.judged(str(tmp_path / "none"), [report])
