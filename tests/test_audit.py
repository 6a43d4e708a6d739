"""The audit finds each defect that was planted, and nothing in clean pairs; what it writes holds no
report text; cleaned data is clean. All texts are made of random words."""

import csv
import json
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.feature_extraction.text  # noqa: F401  (for the forks)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from report2impression.audit import audit as module
from report2impression.audit import checks as audit_checks
from report2impression.audit.audit import (
    AuditConfig,
    AuditSource,
    FindingsError,
    audit,
    read_splits,
)
from report2impression.audit.checks import is_boilerplate, prepare, run_checks
from report2impression.audit.cleaning import REMOVABLE, names_to_remove
from report2impression.audit.findings import CHECKS, bad_rows, judge
from report2impression.corpora.synthetic import generate
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.licence import Mark, read_mark, write_mark
from report2impression.reading.pairs import SPLITS, BadRow, Pair, Split, read_split
from report2impression.scoring.duplicates import (
    NEAR,
    near,
    normalised,
    shingle_hashes,
    sketches,
)
from tests.browser import Browser
from tests.test_duplicates import overlap, shingles

TINY = str(Path(__file__).parent.parent / "assets" / "tiny_base")
WORDS = [
    a + b + c for a in ("lu", "ri", "te", "so", "ma") for b in "nrlst" for c in ("a", "um", "is")
]
CANARY = "zqcanaryqz"

Splits = dict[str, list[Pair]]
Where = list[tuple[str, int]]  # the pairs that a defect must flag


def clean_pairs(seed: int = 0, n: int = 12) -> Splits:
    """Pairs without any of the defects: long random inputs, short other targets."""
    rng = random.Random(seed)

    def text(n_words: int) -> str:
        return " ".join(rng.choices(WORDS, k=n_words))

    return {
        name: [
            Pair(f"{name}-{i}", text(40), text(8), f"group {i % 2}", f"patient {name} {i}")
            for i in range(n)
        ]
        for name in SPLITS
    }


def put(pairs: Splits, split: str, index: int, **changes: str) -> tuple[str, int]:
    pairs[split][index] = replace(pairs[split][index], **changes)
    return split, index


def same_text(p: Splits) -> Where:
    return [put(p, "train", 1, impression=p["train"][1].prompt.upper() + ".")]


def shared_input(p: Splits) -> Where:
    first = p["train"][2]
    prompt = first.prompt.replace(" ", ", ")
    return [("train", 2), put(p, "test", 2, prompt=prompt, impression=first.impression)]


def shared_patient(p: Splits) -> Where:
    return [("validation", 3), put(p, "test", 3, patient=p["validation"][3].patient)]


def repeated_pair(p: Splits) -> Where:
    first = p["train"][4]
    return [put(p, "train", 5, prompt=first.prompt.title(), impression=first.impression)]


def near_shared(p: Splits) -> Where:
    return [("train", 6), put(p, "test", 6, prompt=p["train"][6].prompt + " new")]


def near_repeated(p: Splits) -> Where:
    return [("test", 7), put(p, "test", 8, prompt="new " + p["test"][7].prompt)]


def other_target(p: Splits) -> Where:
    return [("train", 7), put(p, "train", 8, prompt=p["train"][7].prompt)]


def repeated_id(p: Splits) -> Where:
    return [("train", 9), put(p, "validation", 9, id=p["train"][9].id)]


def contained(p: Splits) -> Where:
    return [put(p, "validation", 1, impression=" ".join(p["validation"][1].prompt.split()[5:12]))]


def short_input(p: Splits) -> Where:
    words = p["validation"][2].prompt.split()
    return [put(p, "validation", 2, prompt=" ".join(words[:5]), impression=" ".join(words[20:30]))]


def boilerplate(p: Splits) -> Where:
    kinds = ("no acute cardiopulmonary process", "1. No active disease", "normal chest x-ray")
    return [
        put(p, "validation", i, impression=f"{kinds[i % 3]} {i}" if i % 3 else kinds[0])
        for i in range(5, 9)
    ]


def placeholder_target(p: Splits) -> Where:
    return [put(p, "test", 0, impression=p["test"][0].impression + " since [**2101-1-1**]")]


def placeholder_input(p: Splits) -> Where:
    return [put(p, "test", 1, prompt=p["test"][1].prompt + " ____")]


def cut_input(p: Splits) -> Where:
    rng = random.Random("cut input")  # no number: pairs are drawn by one
    return [put(p, "train", 10, prompt=" ".join(rng.choices(WORDS, k=600)))]


def cut_target(p: Splits) -> Where:
    rng = random.Random("cut target")
    texts = [" ".join(rng.choices(WORDS, k=k)) for k in (90, 75)]
    return [put(p, "train", 11, prompt=texts[0], impression=texts[1])]


def unknown(p: Splits) -> Where:
    return [put(p, "train", 0, prompt=p["train"][0].prompt + " \u4e2d\U0001f9e0")]


def new_group(p: Splits) -> Where:
    return [put(p, "test", 9, group="ct elsewhere")]


DEFECTS: dict[str, Callable[[Splits], Where]] = {
    f.__name__: f
    for f in (
        *(same_text, shared_input, shared_patient, repeated_pair, near_shared, near_repeated),
        *(other_target, repeated_id, contained, short_input, boilerplate, placeholder_target),
        *(placeholder_input, cut_input, cut_target, unknown, new_group),
    )
}


def write(folder: Path, pairs: Splits) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in pairs.items():
        rows = [
            {
                "id": p.id,
                "prompt": p.prompt,
                "impressions": p.impression,
                "group": p.group,
                "patient": p.patient,
            }
            for p in own
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder)


def run(tmp_path: Path, pairs: Splits, **more: Any) -> dict[str, Any]:
    source = AuditSource(write(tmp_path / "data", pairs))
    return audit(AuditConfig(source, str(tmp_path / "out"), **more))


def as_splits(pairs: Splits) -> list[Split]:
    return [Split(name, own, len(own), []) for name, own in pairs.items()]


def flagged(pairs: Splits) -> dict[str, Where]:
    """What each check flags, those of the tokenizer included."""
    splits = as_splits(pairs)
    config = AuditConfig(AuditSource("none"), tokenizer=TINY)
    flags = run_checks(prepare(splits)) | module.count_tokens(config, splits)[0]
    return {
        check: [(s, i) for s, which in own.items() for i in np.flatnonzero(which).tolist()]
        for check, own in flags.items()
    }


def test_every_check_has_a_defect() -> None:
    assert set(DEFECTS) == {check.name for check in CHECKS}


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_clean_pairs_have_no_findings(seed: int) -> None:
    assert not any(flagged(clean_pairs(seed)).values())


@given(st.sets(st.sampled_from(sorted(DEFECTS))), st.integers(0, 2**32))
@example({"cut_input"}, 5)
@settings(max_examples=60, deadline=None)
def test_what_is_planted_is_found_and_nothing_else(names: set[str], seed: int) -> None:
    pairs = clean_pairs(seed)
    planted = {name: sorted(DEFECTS[name](pairs)) for name in sorted(names)}
    found = {name: sorted(where) for name, where in flagged(pairs).items() if where}
    assert found == planted


def test_all_defects_at_once_end_to_end(tmp_path: Path) -> None:
    pairs = clean_pairs()
    for plant in DEFECTS.values():
        plant(pairs)
    data = tmp_path / "data"
    write(data, pairs)
    with (data / "test.jsonl").open("a") as file:
        file.write('{"id": "x", "prompt": " ", "impressions": "y"}\n{broken\n\n{"prompt": "z"}\n')
    figures = audit(AuditConfig(AuditSource(str(data)), str(tmp_path / "out"), tokenizer=TINY))
    found = {told["check"] for told in figures["findings"]}
    assert found == {*DEFECTS, "empty", "unreadable"}
    assert figures["checks"]["empty"]["pairs"] == {"train": 0, "validation": 0, "test": 3}
    assert figures["checks"]["unreadable"]["pairs"]["test"] == 1
    assert figures["splits"]["test"]["rows"] == 16
    assert all(told["remedy"] for told in figures["findings"])
    assert dict(figures["unknown_characters"]) == {"U+4E2D": 1, "U+1F9E0": 1}


def test_clean_pairs_pass_end_to_end(tmp_path: Path) -> None:
    figures = run(tmp_path, clean_pairs(), tokenizer=TINY)
    assert figures["findings"] == []
    assert set(figures["scores"]["systems"]) == {"most_frequent", "nearest_neighbour", "copy"}
    assert figures["groups"]["group 0"] == {"train": 6, "validation": 6, "test": 6}
    assert "No finding" in (tmp_path / "out" / "audit.html").read_text()


def test_without_a_tokenizer_tokens_are_not_guessed(tmp_path: Path) -> None:
    figures = run(tmp_path, clean_pairs())
    assert "cut_input" not in figures["checks"] and "tokens" not in figures["lengths"]
    assert "give --tokenizer" in (tmp_path / "out" / "audit.html").read_text()


def test_unknown_patients_are_not_zero_shared_ones(tmp_path: Path) -> None:
    pairs = {s: [replace(p, patient="") for p in own] for s, own in clean_pairs().items()}
    assert "shared_patient" not in run(tmp_path, pairs)["checks"]
    assert "no column “patient”" in (tmp_path / "out" / "audit.html").read_text()


def test_one_split_alone(tmp_path: Path) -> None:
    figures = run(tmp_path, {"validation": clean_pairs()["validation"]})
    assert list(figures["splits"]) == ["validation"] and figures["scores"] == {}


def test_no_text_gets_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = clean_pairs()
    for own in pairs.values():
        own[:] = [
            replace(p, prompt=f"{CANARY} {p.prompt}", impression=f"{CANARY} {p.impression}")
            for p in own
        ]
    for plant in DEFECTS.values():
        plant(pairs)
    clean = tmp_path / "clean"
    config = AuditConfig(
        AuditSource(write(tmp_path / "data", pairs)),
        str(tmp_path / "out"),
        tokenizer=TINY,
        clean=str(clean),
    )
    module.show(audit(config), config)
    written = [file.read_text() for file in (tmp_path / "out").iterdir()]
    written += [(clean / "removed.csv").read_text(), *capsys.readouterr()]
    secrets = {CANARY} | {p.patient for own in pairs.values() for p in own}
    assert len(written) == 5
    assert not [secret for secret in secrets for text in written if secret in text]
    texts = " ".join(written)
    assert not any(" ".join(p.prompt.split()[1:4]) in texts for p in pairs["train"])


@given(st.sets(st.sampled_from(sorted(DEFECTS))), st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_cleaned_data_has_no_errors_left(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], seed: int
) -> None:
    tmp_path, pairs = tmp_path_factory.mktemp("clean"), clean_pairs(seed)
    for name in sorted(names):
        DEFECTS[name](pairs)
    run(tmp_path, pairs, clean=str(tmp_path / "clean"))
    again = read_splits(AuditSource(str(tmp_path / "clean")))
    found = judge(run_checks(prepare(again)), bad_rows(again))
    assert not [told for told in found if told.severity == "error"]
    log = list(csv.DictReader((tmp_path / "clean" / "removed.csv").open()))
    gone = {(line["split"], int(line["row"])) for line in log}
    for split in again:  # nothing lost without a reason, nothing changed, order kept
        kept = [p for i, p in enumerate(pairs[split.name]) if (split.name, i) not in gone]
        assert split.pairs == kept
    assert all(pairs[line["split"]][int(line["row"])].id == line["id"] for line in log)


def test_what_is_shared_goes_from_the_earlier_split(tmp_path: Path) -> None:
    pairs = clean_pairs()
    for split in ("validation", "test"):
        put(pairs, split, 0, prompt=pairs["train"][0].prompt)
    put(pairs, "test", 1, patient=pairs["validation"][1].patient)
    with (Path(write(tmp_path / "data", pairs)) / "train.jsonl").open("a") as file:
        file.write("\n\n{broken\n")
    config = AuditConfig(
        AuditSource(str(tmp_path / "data")), str(tmp_path / "out"), clean=str(tmp_path / "new")
    )
    audit(config)
    log = list(csv.reader((tmp_path / "new" / "removed.csv").open()))
    assert log[1:] == [
        ["train", "0", "train-0", "shared_input"],
        ["train", "12", "", "the line is blank"],
        ["train", "13", "", "the line is blank"],
        ["train", "14", "", "the line is not valid JSON, or has a key twice"],
        ["validation", "0", "validation-0", "shared_input"],
        ["validation", "1", "validation-1", "shared_patient"],
    ]
    assert len(read_split(str(tmp_path / "new"), "test").pairs) == 12
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()} == {0o600}


@pytest.mark.parametrize("credentialed", [False, True])
def test_cleaned_data_bear_the_mark_of_the_data(tmp_path: Path, credentialed: bool) -> None:
    """And stay what their name said they are, under a name that does not say it."""
    marked = write(tmp_path / "data", clean_pairs())
    write_mark(Path(marked), Mark("a hospital", "an agreement", credentialed))
    named = write(tmp_path / "mimic", clean_pairs())
    for path in (marked, named):
        clean = Path(f"{path}-cleaned").with_name(f"clean-{Path(path).name[:2]}")
        audit(AuditConfig(AuditSource(path), str(tmp_path / "out"), clean=str(clean)))
        assert (clean / "LICENCE.json").stat().st_mode & 0o777 == 0o600
    assert read_mark(tmp_path / "clean-da") == read_mark(Path(marked))
    found = read_mark(tmp_path / "clean-mi")
    assert found and found.credentialed


def test_cleaning_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    with pytest.raises(ConfigError, match=r"not empty; choose another folder for --clean"):
        run(tmp_path, clean_pairs(), clean=str(full))
    assert [file.name for file in full.iterdir()] == ["mine"]
    pairs = clean_pairs()
    pairs["test"] = [replace(p, impression=p.prompt) for p in pairs["test"]]
    with pytest.raises(DataError, match="nothing of test"):
        run(tmp_path, pairs, clean=str(tmp_path / "new"))
    monkeypatch.setattr("report2impression.audit.cleaning.json_line", lambda pair: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, clean_pairs(), clean=str(tmp_path / "new"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "full"]


@pytest.mark.parametrize("name", REMOVABLE)
def test_each_check_can_be_removed_on_request(tmp_path: Path, name: str) -> None:
    pairs = clean_pairs()
    where = DEFECTS[name](pairs)
    run(tmp_path, pairs, clean=str(tmp_path / "new"), remove=name)
    log = list(csv.DictReader((tmp_path / "new" / "removed.csv").open()))
    gone = [(line["split"], int(line["row"])) for line in log]
    assert gone == (where[:1] if "shared" in name else where)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data.path"):
        audit(AuditConfig())
    with pytest.raises(ConfigError, match="--remove 'unknown'"):
        names_to_remove("same_text,unknown")
    with pytest.raises(DataError, match="none of train"):
        audit(AuditConfig(AuditSource(str(tmp_path))))
    with pytest.raises(ConfigError, match="cannot load the tokenizer"):
        run(tmp_path, clean_pairs(), tokenizer=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("defect", "fail_on", "status"),
    [
        ("same_text", "error", 9),
        ("same_text", "warning", 9),
        ("same_text", "never", 0),
        ("contained", "error", 0),
        ("contained", "warning", 9),
        ("new_group", "warning", 0),
    ],
)
def test_exit_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    defect: str,
    fail_on: str,
    status: int,
) -> None:
    pairs = clean_pairs()
    DEFECTS[defect](pairs)
    flags = [f"--data.path={write(tmp_path / 'data', pairs)}", f"--output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["audit", *flags, f"--fail_on={fail_on}"])
    if status:
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == status == FindingsError.exit_code
        assert capsys.readouterr().err.count("\n") == 1
    else:
        module.main()
        assert capsys.readouterr().err == ""


@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join), max_size=25)
)
@settings(deadline=None)
def test_near_is_the_true_overlap(texts: list[str]) -> None:
    """Never a false alarm; of short texts the few misses of hashing are at the threshold only."""
    texts = list(dict.fromkeys(texts))
    splits = np.arange(len(texts)) % 2
    found = near(texts, splits, 2)
    for i, text in enumerate(texts):
        for split in range(2):
            overlaps = [
                overlap(shingles(text), shingles(other))
                for j, other in enumerate(texts)
                if j != i and splits[j] == split
            ]
            nearest = max(overlaps, default=0.0)
            assert nearest >= NEAR if found[i, split] else nearest < 1.0


def test_near_copies_are_not_missed() -> None:
    """300 texts with a repeated start, and a copy of each with one word changed."""
    rng, texts, copies = random.Random(0), [], []
    for _ in range(300):
        words = rng.choices(WORDS, k=60)
        words += words[:5]
        texts.append(" ".join(words))
        words[rng.randrange(60)] = "other"
        copies.append(" ".join(words))
    found = near(texts + copies, np.repeat([0, 1], 300), 2)
    assert found[:300, 1].sum() >= 298 and not found[:300, 0].any()


def test_a_crowd_of_alike_texts_is_found() -> None:
    base = " ".join(random.Random(1).choices(WORDS, k=80))
    texts = [f"{base} {number}" for number in range(1000)]
    assert near(texts, np.zeros(1000, np.int64), 1).all()


def test_sketches_estimate_the_overlap() -> None:
    texts = [normalised(report.prompt) for report in generate(60, 3)]
    texts += [text + " more words here" for text in texts]
    hashes, offsets = shingle_hashes(texts)
    assert [len(set(hashes[a:b])) for a, b in zip(offsets, offsets[1:], strict=False)] == [
        len(shingles(text)) for text in texts
    ]
    signs = sketches(hashes, offsets)
    true = [overlap(shingles(a), shingles(b)) for a, b in zip(texts, texts[60:], strict=False)]
    guess = (signs[:60] == signs[60:]).mean(axis=1)
    assert abs(guess - true).max() < 0.15 and abs((guess - true).mean()) < 0.02


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("no acute cardiopulmonary abnormality", True),
        ("1 no evidence of active disease", True),
        ("no radiographic evidence for an acute process", True),
        ("normal chest", True),
        ("negative for acute abnormality", True),
        ("clear lungs", True),
        ("no change", False),
        ("new left lower lobe pneumonia", False),
        ("normalised flow after stenting", False),
        ("no acute fracture but a large left pleural effusion with collapse of the lobe", False),
    ],
)
def test_boilerplate(target: str, expected: bool) -> None:
    assert is_boilerplate(target) is expected


def test_judging_waits_for_the_least_share() -> None:
    pairs = clean_pairs()
    put(pairs, "train", 0, impression="no acute disease")
    flags = run_checks(prepare(as_splits(pairs)))
    assert flags["boilerplate"]["train"].sum() == 1
    assert not judge(flags, bad_rows(as_splits(pairs)))
    split = Split("train", [], 2, [BadRow(0, "", "`prompt` is empty"), BadRow(1, "", "odd")])
    assert bad_rows([split]) == {"empty": {"train": 1}, "unreadable": {"train": 1}}


def test_the_page_fits_a_phone_and_a_desk(tab: Browser, tmp_path: Path) -> None:
    pairs = clean_pairs()
    for plant in DEFECTS.values():
        plant(pairs)
    run(tmp_path, pairs, tokenizer=TINY)
    for width in (390, 1280):
        tab.open(tmp_path / "out" / "audit.html", width=width)
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run("document.querySelectorAll('.findings li').length") == len(DEFECTS)
        assert tab.console == [] and len(tab.requests) <= 2


def test_checks_are_listed_once() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) and set(REMOVABLE) <= set(names)
    assert set(audit_checks.ONE_PAIR) <= set(names)
