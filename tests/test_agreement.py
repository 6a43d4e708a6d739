"""Structured F1: what the items of outputs and references have in common."""

import numpy as np
import pytest

from report2impression.extracting.agreement import FIELDS, counts_by, f1_of_sums, figures

REFERENCE = "Small left pleural effusion, increased. 8 mm nodule in the right upper lobe."


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        (REFERENCE, {}),
        (REFERENCE.replace("left", "right"), {"laterality": 50.0}),
        (REFERENCE.replace("upper", "lower"), {"level": 0.0}),
        (REFERENCE.replace("8 mm", "9 mm"), {"size": 0.0}),
        (REFERENCE.replace("Small", "Large"), {"severity": 0.0}),
        (REFERENCE.replace("increased", "decreased"), {"change": 0.0}),
        (REFERENCE + " Pneumonia.", {"finding": 80.0, "presence": 80.0}),
        ("No nodule in the right upper lobe.", {"finding": 200 / 3, "presence": 0.0}),
    ],
)
def test_an_error_lowers_the_figure_of_its_field(output: str, wrong: dict[str, float]) -> None:
    found = f1_of_sums(counts_by({"a": [output]}, [REFERENCE])["a"].sum(axis=0), 1)
    scores = dict(zip(FIELDS, found, strict=True))
    if output.startswith("No"):
        scores = {field: scores[field] for field in wrong}
    assert scores == pytest.approx({field: wrong.get(field, 100.0) for field in scores})


def test_figures_have_intervals_and_the_paired_test_sees_which_is_better() -> None:
    bad = ["No effusion." if i % 3 else REFERENCE for i in range(30)]
    counts = counts_by({"base": bad, "lora": [REFERENCE] * 30}, [REFERENCE] * 30)
    found = figures(counts, n_resamples=500)
    assert set(found) == set(FIELDS)
    for field in found.values():
        low, high = field["base"]["interval"]
        assert low <= field["base"]["f1"] <= high
        assert field["lora"]["f1"] == 100
    paired = found["presence"]["paired"]
    assert paired["difference"] > 0
    assert paired["interval"][0] > 0
    assert paired["p"] <= paired["p_holm"] < 0.05


def test_no_reports_have_no_figures_and_nothing_said_agrees() -> None:
    assert figures(counts_by({"base": []}, [])) is None
    assert (f1_of_sums(np.zeros(2 * len(FIELDS)), 1) == 100).all()
    with pytest.raises(ValueError, match="zip"):
        counts_by({"base": ["a"]}, [])
