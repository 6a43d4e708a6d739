"""The inputs of ../shared/cases on which an earlier version failed, each with what is right."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eval as evaluation
import train_loop
from report2impression.audit.audit import AuditSource, read_splits
from report2impression.audit.checks import prepare, run_checks
from report2impression.program.errors import DataError
from report2impression.reading.pairs import read_split
from report2impression.reading.sections import texts_of
from report2impression.scoring.comparison import Inputs, compare
from report2impression.scoring.faithfulness.checks import findings
from tests.tiny import ROOT

CASES = ROOT.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")

SECTIONS: dict[str, dict[str, str]] = {
    "c02_chexpert_plus": {
        "findings": "A catheter ends in the upper vena cava. The lungs are clear.",
        "impression": "1. CATHETER IN GOOD POSITION.\n\n2. NO PNEUMOTHORAX.",
        "comparison": "None.",
    },
    "c08_dash": {
        "findings": "No fracture. Mild degenerative change.",
        "impression": "No acute bony injury.",
        "history": "pain after fall",
    },
    "c09_numbered": {
        "findings": "No bleeding. Ventricles of normal size.",
        "impression": "Normal head CT.",
        "technique": "Axial images.",
    },
    "c13_nbsp": {"findings": "Lungs clear.", "impression": "Normal chest."},
    "c17_spanish": {
        "findings": "Pulmones claros. No hay derrame.",
        "impression": "Sin alteraciones.",
    },
    "c25_comparison_inside": {
        "findings": "Lungs are clear.",
        "impression": "Normal chest.",
        "comparison": "1/1/2010.",
        "history": "smoker.",
    },
    "c26_rule_after_impression": {
        "findings": "Lungs are clear.",
        "impression": "No acute process.",
    },
}
ROW = ("heart size is normal lungs are clear", "no acute disease")


@needs_cases
def test_all_sections_and_data_have_an_expectation() -> None:
    assert {file.stem for file in (CASES / "sections").iterdir()} == set(SECTIONS)
    assert {folder.name for folder in (CASES / "data").iterdir()} == set(DATA)


@needs_cases
@pytest.mark.parametrize("name", SECTIONS)
def test_sections(name: str) -> None:
    texts = texts_of((CASES / "sections" / f"{name}.txt").read_text(encoding="utf-8"))
    assert {part: texts.get(part) for part in SECTIONS[name]} == SECTIONS[name]


DATA: dict[str, Callable[[Any], object]] = {
    "d05_semicolon": lambda pair: pair.id == "train-0",
    "d15_pipe": lambda pair: pair.id == "train-0",
    "d25_hub_clone": lambda pair: pair.id == "train-0",
    "d27_classlabel": lambda pair: pair.group == "CT_head",
    "d29_val_name": lambda pair: pair.id == "train-0",
    "d32_txt_nested": lambda pair: pair.id == "p10/s0",
}


@needs_cases
@pytest.mark.parametrize("name", DATA)
def test_ways_in(name: str) -> None:
    for split in ("train", "validation", "test"):
        pairs = read_split(str(CASES / "data" / name), split, on_bad_row="error").pairs
        assert len(pairs) == 6 and (pairs[0].prompt, pairs[0].impression) == ROW
        assert split != "train" or DATA[name](pairs[0])


@needs_cases
def test_marks_of_removed_words() -> None:
    splits = read_splits(AuditSource(str(CASES / "audit")))
    flags = run_checks(prepare(splits))
    for check in ("placeholder_input", "placeholder_target"):
        marked = {
            pair.id
            for split in splits
            for pair, flag in zip(split.pairs, flags[check][split.name], strict=True)
            if flag
        }
        assert marked == {f"m{i}" for i in range(8)}


def test_a_naked_decimal_point_is_no_false_alarm() -> None:
    for report in ("nodule of .5 cm", "nodule of 0,5 cm", "nodule of 0.5 cm"):
        assert not findings(report, "5 mm nodule")["measurement"]
    assert findings("nodule of .5 cm", "50 mm nodule")["measurement"]


def test_figures_that_do_not_apply_say_so() -> None:
    texts = ["\u80ba\u91ce\u6e05\u6670", "\u5fc3\u810f"]
    outputs = {"base": texts, "lora": texts}
    figures = compare(Inputs(["a", "b"], ["", ""], ["c", "d"], texts, outputs)).figures
    assert figures["lora"]["rouge1"] == 0
    names = {(rail["name"], rail["system"]) for rail in figures["guard_rails"]}
    assert {("not_for_rouge", "reference"), ("not_for_bleu", "lora")} <= names


@pytest.mark.parametrize(
    ("n_bad", "told"),
    [
        (1, "1 bad row in all: mend it, or leave it out"),
        (2, "2 bad rows in all: mend them, or leave them out"),
    ],
)
def test_the_number_of_bad_rows_reads_right(tmp_path: Path, n_bad: int, told: str) -> None:
    good = json.dumps({"findings": "a", "impression": "b"}) + "\n"
    (tmp_path / "train.jsonl").write_text(good + "{\n" * n_bad)
    with pytest.raises(DataError, match=told):
        read_split(str(tmp_path), "train")


@needs_cases
def test_a_sign_that_the_tokenizer_does_not_know_stays_visible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_loop.main(
        [
            *("--cpu", "--precision=fp32", "--data.allow_unknown=true", f"--output_dir={tmp_path}"),
            *(f"--data.path={CASES / 'unk'}", f"--data.cache_dir={tmp_path / 'cache'}"),
            *(f"--model.path={ROOT / 'assets' / 'tiny_base'}", "--model.dropout=0"),
            *("--epochs=10", "--micro_batch_size=4", "--learning_rate=1e-3", "--warmup_steps=5"),
        ]
    )
    told = capsys.readouterr().out
    assert "train source: 32 unknown tokens (U+00D7 x 32)" in told
    flags = ["--cpu", "--precision=fp32", "--save_predictions=true"]
    evaluation.main([*flags, f"--adapter={tmp_path / 'adapter'}"])
    rows = (tmp_path / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8")
    outputs = [json.loads(row)["lora"] for row in rows.splitlines()]
    assert len(outputs) == 8 and all("\u2047" in text and "34" not in text for text in outputs)


@needs_cases
@pytest.mark.slow
def test_a_launch_file_whose_mode_cannot_run() -> None:
    launch = ("-m", "accelerate.commands.launch", "--config_file", str(CASES / "fsdp.yaml"))
    ended = subprocess.run(
        [sys.executable, *launch, "train_loop.py"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode != 0
    assert "FSDP" in ended.stderr and "recipes/accelerate" in ended.stderr
    assert "unexpected" not in ended.stderr
