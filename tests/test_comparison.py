"""compare(), its parts and guard rails, the records of a run, and two runs beside each other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scoring import synthetic_inputs
from report2impression.program.errors import ConfigError, DataError, UserError
from report2impression.scoring import baselines
from report2impression.scoring.comparison import (
    Inputs,
    ahead,
    compare,
    compare_runs,
    intervals,
    paired,
)
from report2impression.scoring.describe import by_group, by_length, by_training, describe, loops
from report2impression.scoring.guard_rails import Limits, guard_rails
from report2impression.scoring.language import is_english
from report2impression.scoring.records import Records, read_per_report, write_per_report
from report2impression.scoring.rouge_bleu import (
    ALL_METRICS,
    ALL_ROUGE,
    scores,
    signature,
    statistics,
)

N = 60
QUICK: dict[str, Any] = {"n_resamples": 300}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    made = synthetic_inputs(N + 40, seed=2)
    every = list(zip(made.sources, made.references, strict=True))
    train, test = [*every[N:], *every[:5]], slice(N)
    sources, references = made.sources[test], made.references[test]
    outputs = {name: texts[test] for name, texts in made.outputs.items()}
    outputs |= baselines.outputs(sources, references, train)
    return Inputs(made.ids[test], made.groups[test], sources, references, outputs, train)


@pytest.fixture(scope="module")
def figures(inputs: Inputs) -> dict[str, Any]:
    return compare(inputs, seed=5, **QUICK).figures


# compare()


def test_figures_are_the_plain_scores(inputs: Inputs, figures: dict[str, Any]) -> None:
    rows = {name: figures[name] for name in ("base", "lora")} | figures["baselines"]
    assert set(rows) == {"base", "lora", *baselines.BASELINES}
    for name, row in rows.items():
        expected = scores(inputs.outputs[name], inputs.references)
        assert {metric: row[metric] for metric in expected} == expected
        assert set(row) == set(ALL_METRICS)


def test_every_figure_has_an_interval_around_it(figures: dict[str, Any]) -> None:
    rows = {name: figures[name] for name in ("base", "lora")} | figures["baselines"]
    assert set(figures["intervals"]) == set(rows)
    for name, row in rows.items():
        for metric, value in row.items():
            low, high = figures["intervals"][name][metric]
            assert low < value < high, (name, metric)


def test_figures_can_be_written_and_repeated(inputs: Inputs, figures: dict[str, Any]) -> None:
    written = json.dumps(figures, allow_nan=False)
    assert json.dumps(compare(inputs, seed=5, **QUICK).figures) == written
    assert json.dumps(compare(inputs, seed=6, **QUICK).figures["intervals"]) not in written


def test_what_was_made_ahead_changes_nothing(inputs: Inputs, figures: dict[str, Any]) -> None:
    early = {name: inputs.outputs[name] for name in ("base", *baselines.BASELINES)}
    known = ahead(replace(inputs, outputs=early))
    rest = replace(inputs, train=None)  # it is in what is known
    assert compare(rest, known, seed=5, **QUICK).figures == figures


def test_no_text_gets_into_the_figures(inputs: Inputs) -> None:
    canary = "zyzzyva"
    marked = replace(
        inputs,
        sources=[f"{canary} {text}" for text in inputs.sources],
        references=[f"{canary} {text}" for text in inputs.references],
        outputs={k: [f"{canary} " * 9 + text for text in v] for k, v in inputs.outputs.items()},
        train=[(canary, canary)],
    )
    found = compare(marked, **QUICK).figures
    assert found["guard_rails"] and canary not in json.dumps(found)


def test_paired_table(inputs: Inputs, figures: dict[str, Any]) -> None:
    table = figures["paired"]
    assert (table["better"], table["than"]) == ("lora", "base")
    assert tuple(table["metrics"]) == ALL_METRICS
    for metric, row in table["metrics"].items():
        assert row["difference"] == figures["lora"][metric] - figures["base"][metric]
        assert row["interval"][0] < row["difference"] < row["interval"][1]
        assert 1 / 301 <= row["p"] <= row["p_holm"] <= 1
        assert row["wins"] + row["ties"] + row["losses"] == N
        assert row["wins"] > row["losses"]  # lora is made the better one
    gains = 100 * (
        statistics(inputs.outputs["lora"], inputs.references).rouge["rougeL"]
        - statistics(inputs.outputs["base"], inputs.references).rouge["rougeL"]
    )
    row = table["metrics"]["rougeL"]
    assert row["n_for_1_point"] == int(np.ceil((2.8 * gains.std(ddof=1)) ** 2))
    assert (row["wins"], row["losses"]) == ((gains > 0).sum(), (gains < 0).sum())


def test_pairs_the_other_way_round_have_the_opposite_difference(inputs: Inputs) -> None:
    one, other = (statistics(inputs.outputs[k], inputs.references) for k in ("base", "lora"))
    there = paired(one, other, names=("a", "b"), **QUICK)["metrics"]
    back = paired(other, one, names=("b", "a"), **QUICK)["metrics"]
    for metric in ALL_METRICS:
        a, b = there[metric], back[metric]
        assert a["difference"] == -b["difference"]
        assert a["interval"] == pytest.approx([-b["interval"][1], -b["interval"][0]])
        assert (a["p"], a["p_holm"], a["wins"], a["n_for_1_point"]) == (
            *(b["p"], b["p_holm"], b["losses"], b["n_for_1_point"]),
        )


def test_a_system_against_itself(inputs: Inputs) -> None:
    one = statistics(inputs.outputs["base"], inputs.references)
    for row in paired(one, one, names=("a", "b"), **QUICK)["metrics"].values():
        assert row == {
            **{"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0, "p_holm": 1.0},
            **{"wins": 0, "ties": N, "losses": 0, "n_for_1_point": None},
        }


def test_pairing_makes_differences_of_like_systems_narrow(inputs: Inputs) -> None:
    """Two systems that differ on three reports only: a far narrower interval than either's own."""
    other = [*inputs.outputs["base"]]
    other[:3] = inputs.outputs["lora"][:3]
    found = {
        "a": statistics(other, inputs.references),
        "b": statistics(inputs.outputs["base"], inputs.references),
    }
    low, high = paired(found["a"], found["b"], names=("a", "b"), **QUICK)["metrics"]["rouge1"][
        "interval"
    ]
    alone = intervals(found, **QUICK)["a"]["rouge1"]
    assert high - low < (alone[1] - alone[0]) / 2


def test_bleu_says_what_it_is_made_of(inputs: Inputs, figures: dict[str, Any]) -> None:
    for parts in figures["bleu_parts"].values():
        assert 0 < parts["brevity_penalty"] <= 1 and parts["length_ratio"] > 0
        assert len(parts["precisions"]) == 4
    assert figures["bleu_parts"]["lead"]["length_ratio"] != 1
    assert figures["bleu_parts"]["copy"]["brevity_penalty"] == 1


def test_without_training_split_or_second_system(inputs: Inputs) -> None:
    outputs = {"base": inputs.outputs["base"], "copy": inputs.outputs["copy"]}
    found = compare(replace(inputs, outputs=outputs, train=None), **QUICK).figures
    assert "paired" not in found and "lora" not in found
    assert found["baselines"]["nearest_neighbour"] is None and found["baselines"]["copy"]
    assert set(found["breakdown"]) == {"group", "source_length"}
    assert "difference" not in next(iter(found["breakdown"]["group"].values()))


def test_per_report_scores_have_the_mean_that_is_told(inputs: Inputs) -> None:
    evaluation = compare(inputs, **QUICK)
    for metric in ALL_ROUGE:
        per_report = evaluation.per_report["lora"][metric]
        assert per_report.shape == (N,) and per_report.max() <= 1
        assert 100 * per_report.mean() == evaluation.figures["lora"][metric]


def test_one_report_is_enough(inputs: Inputs) -> None:
    one = Inputs(["x"], [None], ["a b"], ["a"], {"base": ["b"], "lora": ["a"]}, [("a b", "a")])
    found = compare(one, **QUICK).figures
    assert found["intervals"]["lora"]["rouge1"] == [100.0, 100.0]
    assert found["paired"]["metrics"]["rouge1"]["wins"] == 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("n", [0, 2])
def test_outputs_that_do_not_fit_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="predictions"):
        compare(Inputs(["x"], [None], ["a"], ["a"], {"base": ["b"] * n}))


# Breakdown


def test_breakdown_covers_every_report_once(figures: dict[str, Any]) -> None:
    found = figures["breakdown"]
    assert set(found) == {"group", "source_length", "duplicates", "reference"}
    assert len(found["group"]) > 3 and len(found["source_length"]) == 4
    assert found["duplicates"]["exact"]["n"] >= 5 and found["reference"]["seen in training"]["n"]
    for parts in found.values():
        assert sum(part["n"] for part in parts.values()) == N
        for part in parts.values():
            for name in ("base", "lora", "difference"):
                for value, low, high in part[name].values():
                    assert low - 1e-9 <= value <= high + 1e-9 or part["n"] < 12


def test_a_part_has_the_scores_of_its_reports(inputs: Inputs, figures: dict[str, Any]) -> None:
    name, part = next(iter(figures["breakdown"]["group"].items()))
    chosen = [i for i, group in enumerate(inputs.groups) if group == name]
    expected = scores(
        *([texts[i] for i in chosen] for texts in (inputs.outputs["lora"], inputs.references))
    )
    assert {metric: part["lora"][metric][0] for metric in expected} == expected
    for metric, (value, *_) in part["difference"].items():
        assert value == pytest.approx(part["lora"][metric][0] - part["base"][metric][0])


def test_groups_by_size_and_without_a_name() -> None:
    found = by_group(["b", None, "a", "b", "", "b"])
    assert list(found) == ["b", "no group", "a"] and found["no group"].tolist() == [1, 4]
    assert by_group([None, None]) == {} == by_group(["", None])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_length_quarters(lengths: list[int]) -> None:
    found = by_length(["word " * n for n in lengths])
    assert sorted(i for part in found.values() for i in part) == list(range(len(lengths)))
    ends = [[int(word) for word in name.split()[:3:2]] for name in found]
    for (low, high), part in zip(ends, found.values(), strict=True):
        assert {low, high} <= {lengths[i] for i in part}
        assert all(low <= lengths[i] <= high for i in part)
    assert all(one[1] < two[0] for one, two in zip(ends, ends[1:], strict=False))


def test_quarters_of_different_lengths_are_quarters() -> None:
    assert [len(part) for part in by_length(["w " * n for n in range(1, 41)]).values()] == [10] * 4


def test_impressions_seen_in_training() -> None:
    found = by_training(["a", "b"], ["No Fracture.", "nodule"], [("x y z", "no fracture")])
    assert found["reference"]["seen in training"].tolist() == [0]
    assert found["duplicates"]["new"].tolist() == [0, 1]


# Describe, guard rails


def test_describe_by_hand() -> None:
    found = describe(["the lung is clear", "", "A b", "x"], ["The lung. is big", "", "a, B.", "y"])
    assert found == {
        **{"words_mean": 7 / 4, "words_median": 1.5, "empty": 1, "equal_to_source": 1},
        "copy_rate": pytest.approx(100 * 5 / 7),  # the lung is, a b
        "novel_bigrams": pytest.approx(100 * 1 / 4),  # is clear
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no no no no", True),
        ("a no no no", False),
        ("no acute no acute no acute no acute process", True),
        ("no acute no acute no acute process", False),
        ("a b c d e f g h " * 4, True),
        ("a b c d e f g h i " * 4, False),
        ("____ ____ ____ ____ ____", False),
        ("", False),
    ],
)
def test_loops(text: str, found: bool) -> None:
    assert loops(text) == found


def rails(outputs: list[str], sources: list[str], bp: float = 1.0, **limits: Any) -> dict[str, str]:
    found = guard_rails(
        {"lora": outputs}, sources, brevity_penalties={"lora": bp}, limits=Limits(**limits)
    )
    assert all(set(rail) == {"name", "system", "value", "message"} for rail in found)
    return {rail["name"]: rail["message"] for rail in found}


@pytest.mark.parametrize(
    ("references", "lora", "expected"),
    [
        (
            ["\u80ba\u70ce " * 4, "\u043b\u0451\u0433\u043a\u0438\u0435"],
            None,
            {"reference": 2, "base": 2, "lora": 2},
        ),
        (
            ["\u0631\u0626\u0629", "the lungs are clear"],
            None,
            {"reference": 1, "base": 1, "lora": 1},
        ),
        (
            ["the lungs are clear", "\u2014 ?"],
            ["the lungs are clear"] * 2,
            {"reference": 1, "base": 1},
        ),
        (["no acute disease .", "die Lunge ist frei"], None, {}),
    ],
)
def test_texts_that_rouge_does_not_see(
    references: list[str], lora: list[str] | None, expected: dict[str, int]
) -> None:
    outputs = {"base": references, "lora": lora or references}
    inputs = Inputs(["a", "b"], ["", ""], ["c d", "e f"], references, outputs)
    found = [r for r in compare(inputs, **QUICK).figures["guard_rails"] if "rouge" in r["name"]]
    assert {rail["system"]: rail["value"] for rail in found} == expected
    assert all("0 by definition" in rail["message"] for rail in found)


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        (["clear", "no effusion", "normal chest", "x"], "no output of lora has 4 words: BLEU is 0"),
        (["clear", "no effusion", "normal", "a b c d"], "3 of 4 outputs of lora have fewer than 4"),
        (["clear", "a b c d", "a b c d e", "a b c d"], ""),
        (["no acute disease."] * 4, ""),
    ],
)
def test_outputs_that_are_too_short_for_bleu(lora: list[str], told: str) -> None:
    outputs = {"base": ["the lungs are clear"] * 4, "lora": lora}
    inputs = Inputs([*"abcd"], [""] * 4, ["c d"] * 4, ["the lungs are clear"] * 4, outputs)
    figures = compare(inputs, **QUICK).figures
    found = [r["message"] for r in figures["guard_rails"] if r["name"] == "not_for_bleu"]
    assert len(found) == bool(told) and all(told in message for message in found)
    if "is 0" in told:
        assert figures["lora"]["bleu"] == 0


def test_a_healthy_evaluation_has_no_guard_rail() -> None:
    assert rails(["no fracture", "a nodule"], ["the bones are whole", "a nodule is seen"]) == {}


@pytest.mark.parametrize(
    ("name", "remedy", "case"),
    [
        ("brevity", "--max_new_tokens", {"bp": 0.79}),
        ("empty", "train longer", {"outputs": ["a", " "]}),
        ("copies_input", "--data.prefix", {"outputs": ["C d.", "x"]}),
        ("loops", "--no_repeat_ngram", {"outputs": ["a a a a", "x"]}),
        ("references_cut", "raise it", {"long_references": 1, "max_new_tokens": 128}),
        ("outputs_cut", "raise it", {"unfinished": {"lora": 2}, "max_new_tokens": 128}),
        ("sources_cut", "--data.max_source_tokens", {"truncated_sources": 1}),
    ],
)
def test_guard_rail(name: str, remedy: str, case: dict[str, Any]) -> None:
    found = rails(**{"outputs": ["a", "b"], "sources": ["c d", "e f"], **case})
    assert set(found) == {name}
    assert remedy in found[name] and "\n" not in found[name]
    assert rails(["a", "b"], ["c d", "e f"], bp=0.8, unfinished={"lora": 0}) == {}


# Records of a run


def written(
    path: Path, inputs: Inputs, names: tuple[str, ...], rows: slice = slice(None), **how: Any
) -> Records:
    found = {
        name: statistics(inputs.outputs[name][rows], inputs.references[rows]) for name in names
    }
    write_per_report(path, inputs.ids[rows], found, signature(how.get("stemmer", True)))
    return read_per_report(path)


def refused(kind: type[UserError], work: Any) -> str:
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message


def test_records_come_back_to_the_last_bit(inputs: Inputs, tmp_path: Path) -> None:
    read = written(tmp_path / "per_report.jsonl", inputs, ("base", "lora"))
    assert read.ids == list(inputs.ids) and list(read.systems) == ["base", "lora"]
    for name, found in read.systems.items():
        direct = statistics(inputs.outputs[name], inputs.references)
        assert found.figures() == direct.figures() == scores_of(inputs, name)
        assert (found.columns() == direct.columns()).all()
    assert read_per_report(tmp_path).ids == read.ids  # the folder will do
    assert [file.name for file in tmp_path.iterdir()] == ["per_report.jsonl"]


def scores_of(inputs: Inputs, name: str) -> dict[str, float]:
    return statistics(inputs.outputs[name], inputs.references).figures()


def test_records_hold_no_text(inputs: Inputs, tmp_path: Path) -> None:
    written(tmp_path / "r.jsonl", inputs, ("base",))
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    for line in map(json.loads, lines[1:]):
        strings = [value for value in line.values() if isinstance(value, str)]
        assert set(strings) <= {*inputs.ids, "base"}


def test_runs_are_compared_on_their_common_reports(inputs: Inputs, tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", inputs, ("base", "lora"), slice(0, 40))
    b = written(tmp_path / "b.jsonl", inputs, ("base", "lora"), slice(10, 60))
    found = compare_runs(a, replace(b, systems={"lora": b.of("base")}), **QUICK)
    assert (found["n"], found["only_a"], found["only_b"]) == (30, 10, 20)
    common = slice(10, 40)
    one, other = (
        statistics(inputs.outputs[k][common], inputs.references[common]) for k in ("lora", "base")
    )
    assert found["a"] == one.figures() and found["b"] == other.figures()
    assert found["paired"] == paired(one, other, names=("a", "b"), **QUICK)
    json.dumps(found, allow_nan=False)


def test_the_order_of_the_reports_does_not_matter(inputs: Inputs, tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", inputs, ("base",))
    b = written(tmp_path / "b.jsonl", inputs, ("base",), slice(None, None, -1))
    found = compare_runs(a, b, system="base", **QUICK)["paired"]["metrics"]
    assert all(row["ties"] == N and row["p"] == 1 for row in found.values())


def test_runs_that_cannot_be_compared(inputs: Inputs, tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", inputs, ("base",), slice(0, 30))
    b = written(tmp_path / "b.jsonl", inputs, ("base",), slice(30, 60))
    assert "share no report" in refused(DataError, lambda: compare_runs(a, b, system="base"))
    assert "name one of base" in refused(ConfigError, lambda: compare_runs(a, a))
    plain = written(tmp_path / "c.jsonl", inputs, ("base",), slice(0, 30), stemmer=False)
    assert "stemmer" in refused(ConfigError, lambda: compare_runs(a, plain, system="base"))
    elsewhere = replace(b, ids=a.ids)  # ids as test-0, test-1 ... of another data set
    assert "references" in refused(
        DataError, lambda: compare_runs(a, elsewhere, system="base", **QUICK)
    )


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (lambda file: file.unlink(), ConfigError, "evaluation folder"),
        (lambda file: file.write_text(""), DataError, "line 1"),
        (lambda file: file.write_text('{"id": "a"}\n'), DataError, "line 1"),
        (lambda file: file.write_text(file.read_text() + "{broken"), DataError, "line 62"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\xff\xfe"), DataError, "line 62"),
        (lambda file: file.write_text(file.read_text() * 2), DataError, "line 62"),
        (lambda file: file.write_text(file.read_text() + last(file)), DataError, "twice"),
        (
            lambda file: file.write_text(file.read_text() + last(file).replace("base", "b")),
            DataError,
            "other reports",
        ),
        (lambda file: file.write_text(file.read_text() + "[]\n"), DataError, "line 62"),
        (
            lambda file: file.write_text(file.read_text().replace('"rouge1": ', '"rouge1": 7')),
            DataError,
            "line 2",
        ),
        (lambda file: file.write_text(file.read_text().split("\n")[0]), DataError, "no reports"),
    ],
)
def test_broken_records(
    inputs: Inputs, tmp_path: Path, spoil: Any, kind: type[UserError], told: str
) -> None:
    file = tmp_path / "per_report.jsonl"
    written(file, inputs, ("base",))
    spoil(file)
    assert told in refused(kind, lambda: read_per_report(file))


def last(file: Path) -> str:
    return file.read_text().splitlines()[-1] + "\n"


def test_a_folder_that_cannot_be_written(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = {"base": statistics(inputs.outputs["base"], inputs.references)}
    message = refused(
        ConfigError,
        lambda: write_per_report(tmp_path / "file" / "x.jsonl", inputs.ids, found, {}),
    )
    assert "--output_dir" in message


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("The heart is of normal size. The lungs are clear.", True),
        ("Heart size normal. Lungs clear.", True),
        ("", True),
        ("12.3", True),
        ("Herz normal gross, Lunge frei. Kein Erguss in den Pleurahoehlen.", False),
        ("Pulmones claros. No hay derrame pleural ni consolidaciones.", False),
        ("Coeur de taille normale. Pas d'epanchement pleural.", False),
        ("Cuore nei limiti. No versamento, in assenza di focolai.", False),
        ("Hart niet vergroot. Geen pleuravocht of infiltraat in de longen.", False),
        ("\u80ba\u91ce\u6e05\u6670", False),
    ],
)
def test_which_reports_are_english(text: str, english: bool) -> None:
    assert is_english(text) is english


def test_reports_in_another_language_are_noted() -> None:
    """Once, however many systems: it is the reports' language that decides."""
    english, german = "the lungs are clear and wide", "die Lunge ist frei und weit"
    for sources, told in (([german, german, english], True), ([german, english], False)):
        rails = guard_rails({"lora": sources}, sources, brevity_penalties={"lora": 1.0})
        found = [rail["message"] for rail in rails if rail["name"] == "not_english"]
        assert len(found) == told
        assert not told or found[0].startswith("2 of 3 reports are not in English")
