"""The synthetic reports: deterministic, in the style of the hub data, faithful and not trivial."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from report2impression.corpora import synthetic
from report2impression.corpora.synthetic import generate, studies, write_splits
from report2impression.program.errors import ConfigError
from report2impression.reading.pairs import Pair

N_REPORTS = 5000
ROOT = Path(__file__).parent.parent
MODALITIES = {
    "ct": r"\bct\b",
    "mr": r"\bmr\b",
    "us": r"ultrasound|sonographic",
    "xr": "radiograph|x-ray",
}
GROUPS = {
    "ct head",
    "ct chest",
    "ct abdomen-pelvis",
    "ct spine",
    "mr head",
    "mr spine",
    "us abdomen",
    "us thyroid",
    "xr chest",
    "xr knee",
}
LENGTH = re.compile(r"(\d+) (mm|cm)\b")
# A number alone is the number of an item, unless it belongs to a length ("12 mm", "12 x 9 mm").
ITEM = re.compile(r"(?<!\S)(\d+) (?!mm\b|cm\b|x\b)")


@pytest.fixture(scope="module")
def reports() -> list[Pair]:
    return generate(N_REPORTS, seed=0)


def _mean_words(texts: list[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)


def _slots(text: str) -> set[str]:
    # Both render the same length; `dims` may add the second dimension.
    return {(name or "").replace("dims", "size") for _, name, _, _ in Formatter().parse(text)} - {
        ""
    }


def test_pairs_are_distinct(reports: list[Pair]) -> None:
    assert len({report.prompt for report in reports}) == N_REPORTS
    assert [report.id for report in reports[:2]] == ["synthetic-000000", "synthetic-000001"]
    assert len({report.id for report in reports}) == N_REPORTS


def test_no_prompt_twice_where_the_generator_repeats_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = iter(["a", "b", "a", "c"])
    monkeypatch.setattr(synthetic, "_report", lambda rng: (next(told), "none", "ct head"))
    assert [report.prompt for report in generate(3)] == ["a", "b", "c"]


def test_more_reports_only_add_to_the_list() -> None:
    assert generate(40, seed=3)[:15] == generate(15, seed=3)
    assert generate(15, seed=3) != generate(15, seed=4)


def test_the_reports_of_a_seed_never_change() -> None:
    """Holds on every Python: a change of the grammar or engine must change this line too."""
    first = generate(1, seed=0)[0]
    assert first.group == "xr chest"
    assert first.impression == (
        "1 new left pneumothorax measuring 21 mm 2 new endotracheal tube 15 mm above the carina "
        "3 unchanged right upper lobe pneumonia"
    )


def test_command_line_writes_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    written = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        sizes = ["--n_train", "30", "--n_validation", "5", "--n_test", "7", "--seed", "9"]
        run = subprocess.run(
            [
                sys.executable,
                "-W",
                "error::FutureWarning",
                "-m",
                "report2impression.corpora.synthetic",
            ]
            + ["--output_dir", str(folder), *sizes],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.count("\n") == 1 and "synthetic" in run.stdout and run.stderr == ""
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert set(written[0]) == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    assert written[0] == written[1]


def test_every_group_is_present_and_matches_its_text(reports: list[Pair]) -> None:
    assert {report.group for report in reports} == GROUPS
    for report in reports:
        modality, anatomy = report.group.split()
        opening = " ".join(report.prompt.split()[:12])
        assert re.search(MODALITIES[modality], opening), report
        assert anatomy.replace("-", " and ") in opening, report


def test_style_is_lower_case_without_punctuation(reports: list[Pair]) -> None:
    for report in reports:
        for text in (report.prompt, report.impression):
            assert re.fullmatch(r"[a-z0-9_-]+( [a-z0-9_-]+)*", text), report
            assert all(word == "____" for word in text.split() if "_" in word), report
    assert any("____" in report.prompt for report in reports)


def test_items_are_numbered_from_one_where_there_are_several(reports: list[Pair]) -> None:
    for report in reports:
        numbers = [int(number) for number in ITEM.findall(report.impression)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) != 1, report
    assert max(len(ITEM.findall(report.impression)) for report in reports) >= 4


def test_every_length_side_and_level_of_the_impression_stands_in_the_findings(
    reports: list[Pair],
) -> None:
    level = re.compile(r"\b[cls]\d(?:-[cls]\d)?\b")
    for report in reports:
        # "12 x 9 mm" tells the length "12 mm" too.
        prompt = re.sub(r"(\d+) x \d+ (mm|cm)", r"\1 \2", report.prompt)
        assert set(LENGTH.findall(report.impression)) <= set(LENGTH.findall(prompt)), report
        assert set(level.findall(report.impression)) <= set(level.findall(prompt)), report
        for side in ("left", "right"):
            assert side not in report.impression.split() or side in prompt.split(), report


def test_every_phrasing_tells_all_that_its_impression_phrase_needs() -> None:
    for study in studies():
        for row in study.rows:
            for text in row.texts:
                assert _slots(row.phrase) <= _slots(text), (study.group, text)
            assert bool(row.phrase) == (row.kind != "trivial"), (study.group, row)
            assert bool(row.mm) == ("size" in _slots(" ".join(row.texts))), (study.group, row)
            assert set(row.topics[1:]) <= set(study.statements), (study.group, row)


def test_impression_orders_major_negative_minor_and_drops_trivia() -> None:
    study = next(study for study in studies() if study.group == "ct head")
    told = [
        (row, f"{row.kind} {row.topics[0]}")
        for row in study.rows
        if row.topics[0] in ("ventricles", "bones", "white", "sinuses")
    ]
    impression = synthetic._impression(study, told, ["shift", "infarct", "blood"])
    negative = "no acute intracranial hemorrhage"
    assert impression == f"1 major ventricles 2 major bones 3 {negative} 4 minor white"
    assert synthetic._impression(study, told[-1:], ["blood"]) == "no acute intracranial process"


def test_a_told_finding_silences_its_normal_statement() -> None:
    reports = [report for report in generate(400, seed=5) if report.group == "xr chest"]
    effusions = [report for report in reports if "pleural effusion" in report.impression]
    assert effusions
    for report in effusions:
        assert "there is no pleural effusion" not in report.prompt
        assert "the costophrenic angles are sharp" not in report.prompt


def test_change_of_size_agrees_with_the_lengths(reports: list[Pair]) -> None:
    unit_mm = {"mm": 1, "cm": 10}
    told = re.compile(
        r"(\d+) (?:x \d+ )?(mm|cm)(?: \D{0,80})? (increased|decreased) from (\d+) (..)"
    )
    changes = [match for report in reports for match in told.findall(report.prompt)]
    assert len(changes) > 50
    for now, unit, change, before, unit_before in changes:
        grown = int(now) * unit_mm[unit] > int(before) * unit_mm[unit_before]
        shrunk = int(now) * unit_mm[unit] < int(before) * unit_mm[unit_before]
        assert grown if change == "increased" else shrunk, (now, unit, change, before, unit_before)


def test_no_constant_answer_is_common(reports: list[Pair]) -> None:
    counts = Counter(report.impression for report in reports)
    assert counts.most_common(1)[0][1] < 0.1 * N_REPORTS
    normal = sum(counts[study.normal] for study in studies()) / N_REPORTS
    assert 0.15 < normal < 0.20


def test_lengths_and_vocabulary_are_those_of_reports(reports: list[Pair]) -> None:
    prompts = [report.prompt for report in reports]
    impressions = [report.impression for report in reports]
    assert 40 <= _mean_words(prompts) <= 100
    assert 8 <= _mean_words(impressions) <= 30
    assert max(len(prompt.split()) for prompt in prompts) <= 160
    assert 300 <= len(set(" ".join(prompts + impressions).split())) <= 900


def test_splits_share_no_prompt_and_have_their_sizes(tmp_path: Path) -> None:
    sizes = {"train": 300, "validation": 40, "test": 60}
    write_splits(tmp_path / "new" / "folder", n_train=300, n_validation=40, n_test=60)
    prompts: list[str] = []
    for split, size in sizes.items():
        lines = (tmp_path / "new" / "folder" / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == size
        assert all(list(row) == ["id", "prompt", "impressions", "group"] for row in rows)
        prompts += [row["prompt"] for row in rows]
    assert len(set(prompts)) == sum(sizes.values())


def prompts_in(folder: Path) -> set[str]:
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return {json.loads(line)["prompt"] for line in lines}


@pytest.mark.parametrize("seed", [0, 2])
def test_no_report_of_the_seeds_to_keep_away_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """(The same seed would begin with the very same reports.)"""
    monkeypatch.setattr(synthetic, "N_DEFAULT", 90)
    sizes: dict[str, Any] = {"n_train": 60, "n_validation": 20, "n_test": 10}
    write_splits(tmp_path / "demo", **sizes, seed=seed)
    write_splits(tmp_path / "base", **sizes, seed=seed, without_seeds=(0, 1, 2))
    assert len(prompts_in(tmp_path / "demo")) == len(prompts_in(tmp_path / "base")) == 90
    assert not prompts_in(tmp_path / "demo") & prompts_in(tmp_path / "base")
    ids = [r.id for r in generate(5, seed, {r.prompt for r in generate(3, seed)})]
    assert ids == [f"synthetic-{i:06d}" for i in range(5)]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.jsonl").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_splits(tmp_path, n_train=1, n_validation=1, n_test=1)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
    assert (tmp_path / "train.jsonl").read_text() == "old"


def test_unusable_arguments_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --output_dir"):
        write_splits(tmp_path / "file", n_train=1, n_validation=1, n_test=1)
    with pytest.raises(ConfigError, match="--n_test is 0"):
        write_splits(tmp_path, n_test=0)
