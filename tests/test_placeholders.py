"""Marks of removed words, and what looks like one."""

from pathlib import Path

import pytest

from report2impression.audit.checks import prepare, run_checks
from report2impression.reading.pairs import Pair, Split
from report2impression.scoring import baselines
from report2impression.scoring.describe import loops
from report2impression.scoring.faithfulness.checks import findings
from report2impression.scoring.placeholders import count, has, replaced

CASES = Path(__file__).parents[2] / "shared" / "cases" / "audit"
MARKS = [
    *("[**2101-1-1**]", "[**Hospital 1**]", "[**Name (un) [1]**]", "[****]", "**NAME[AAA BBB]"),
    *("**DATE<1/1>", "____", "___", "__________", "XXXX", "xxxxx", "<HCW>", "<PHI>", "<NAME>"),
    *("<Name>", "<date>", "<PERSON_1>", "<LOCATION/>", "<HOSPITAL 2>", '<PHI TYPE="DATE">'),
    *("[REDACTED]", "[redacted]", "[NAME]", "[Patient Name]", "[DATE-3]", "[name of the doctor]"),
    *("[PHI]", "[ID 12]", "[removed]", "[MRN: 1]", "(REDACTED)", "(redacted)", "(NAME)"),
    *("(name withheld)", "{{NAME}}", "{{ any_key }}", "{NAME}", "{redacted}", "@@NAME@@"),
    *(
        "@NAME@",
        "%%DATE%%",
        "##HOSPITAL##",
        "~~NAME~~",
        "***",
        "*****",
        "\u2588\u2588\u2588",
        "###",
    ),
]
NO_MARKS = [
    *(
        "<4 mm",
        "< 4 mm",
        "a <b> c",
        "<br>",
        "<BR/>",
        "</s>",
        "<extra_id_0>",
        "3 < 4 > 2",
        "x<y and y>z",
    ),
    *("[1]", "[x]", "[sic]", "[ ]", "[...]", "[left]", "[2.3 cm]", "[Patient was rotated]", "[L]"),
    *("(removed)", "(patient)", "(date of the exam unknown)", "(3)", "(1/1/2010)", "{3}", "{a}"),
    *("maxxxximal", "_ _", "a_b", "a@b.org", "5 % and 3 %", "#3", "## Findings", "### Findings"),
    *("***\nFindings", "a\n* * *\nb", "*** FINAL REPORT ***", "****** END ******", "**bold**"),
    *("***URGENT***", "note*** see below", "**IMPRESSION:** clear", "~5 mm", "$5", "XXX", "47,XXX"),
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks(mark: str) -> None:
    for text in (f"seen by {mark}", f"seen by {mark}. The lung", f"told ({mark}), {mark} and\nx"):
        n = text.count(mark)
        assert has(text) and count(text) == n
        assert replaced(text) == text.replace(mark, " ____ ")


@pytest.mark.parametrize("text", NO_MARKS)
def test_no_marks(text: str) -> None:
    for whole in (text, f"The lung\n{text}\nis clear"):
        assert not has(whole) and not count(whole) and replaced(whole) == whole


@pytest.mark.parametrize("mark", ["<HCW>", "[REDACTED]", "@@NAME@@", "***", "{{NAME}}", "[**x**]"])
def test_every_part_knows_them(mark: str) -> None:
    pairs = [Pair("0", f"seen by {mark} a b", f"told to {mark} again")]
    flags = run_checks(prepare([Split("train", pairs, 1, [])]))
    assert flags["placeholder_input"]["train"].all() and flags["placeholder_target"]["train"].all()
    train = [("seen on ____ again", "with"), ("seen on again", "without")]
    assert baselines.nearest_neighbour([f"seen on {mark} again"], train) == ["with"]
    assert not loops(" ".join([mark] * 9))
    assert not findings(f"{mark} pleural effusion.", "Left pleural effusion.")["laterality"]


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared data are not here")
def test_the_shared_case() -> None:
    lines = (CASES / "train.jsonl").read_text(encoding="utf-8").splitlines()
    marked = [line for line in lines if line.startswith('{"id": "m')]
    assert len(marked) > 5 and all(map(has, marked))
    assert not any(has(line) for line in lines if line.startswith('{"id": "train'))
