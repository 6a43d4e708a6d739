"""NOTEEVENTS to pairs: the published rules, the corrected ones, what is promised of the files.

All notes are written for the purpose (bench/notes.py and below).
"""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.corpora.notes import HEADER, Mix, rows, write_csv
from report2impression.corpora import mimic_iii, pair_files, radsum23
from report2impression.corpora.mimic_iii import NotesConfig, prepare, show
from report2impression.corpora.pair_files import DUPLICATE, LAST_LINE, NOT_A_TEST_PATIENT, split_of
from report2impression.corpora.radsum23 import Mode, pair_of, restyle, tables
from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.pairs import read_split

Row = tuple[str, ...]
SPLITS = ("train", "validation", "test")
MANY = Mix(radiology=0.9, in_groups=0.9, odd=0.6, errors=0.05)
FR = "head\n FINDINGS: not this\n FINAL REPORT\n"
NO_IMPRESSION, NO_FINDINGS = "no impression", "no findings"

# (what it shows, note, radsum23's pair or reason, corrected's)
RULES: list[tuple[str, str, object, object]] = [
    ("plain", FR + " FINDINGS: A b.\n\n IMPRESSION: C\n", ("a b.", "c"), ("a b.", "c")),
    ("no title", " FINDINGS: a\n IMPRESSION: c", "no FINAL REPORT", "no FINAL REPORT"),
    ("title in small letters", "Final report\n FINDINGS: a\n IMPRESSION: c",
     "no FINAL REPORT", "no FINAL REPORT"),
    ("second title is text", FR + " FINDINGS: a FINAL REPORT b\n IMPRESSION: c",
     ("a final report b", "c"), ("a final report b", "c")),
    ("newline without a blank glues", FR + " FINDINGS: a\nb\n  c\n IMPRESSION: d\ne",
     ("ab c", "de"), ("a b c", "d e")),
    ("no headings", FR + "a", NO_IMPRESSION, NO_IMPRESSION),
    ("two impressions", FR + " IMPRESSION: c\n FINDINGS: a\n IMPRESSION: d",
     "more than one impression", "more than one impression"),
    ("impression first: the defect", FR + " IMPRESSION: c\n FINDINGS: a\n", ("c", "c"), ("a", "c")),
    ("impression, then another section, then findings",
     FR + " IMPRESSION: c\n TECHNIQUE: t\n FINDINGS: a\n", ("t", "c"), ("a", "c")),
    ("impression first, its text empty", FR + " IMPRESSION:\n\n FINDINGS: a\n",
     NO_FINDINGS, "empty impression"),
    ("empty impression", FR + " FINDINGS: a\n IMPRESSION:  ", ("a", ""), "empty impression"),
    ("same texts", FR + " FINDINGS: A\n IMPRESSION:\n a", ("a", "a"), "findings equal impression"),
    ("next best heading", FR + " HEAD CT: b\n FINDINGS:\n\n IMPRESSION: c", ("b", "c"), ("b", "c")),
    ("best heading, not the first", FR + " HEAD CT: b\n FINDINGS: a\n IMPRESSION: c",
     ("a", "c"), ("a", "c")),
    ("heading of another group", FR + " LUMBAR SPINE: a\n IMPRESSION: c", NO_FINDINGS, NO_FINDINGS),
    ("second findings hold the text", FR + " FINDINGS:\n\n FINDINGS: b\n IMPRESSION: c",
     NO_FINDINGS, ("b", "c")),
    ("only the first findings", FR + " FINDINGS: a\n FINDINGS: b\n IMPRESSION: c",
     ("a", "c"), ("a", "c")),
    ("synonyms", FR + " FINDIGNS: a\n IMRPESSION: c", ("a", "c"), ("a", "c")),
    ("findings and impression", FR + " FINDINGS AND IMPRESSION: a\n IMPRESSION: c",
     ("a", "c"), ("a", "c")),
    ("a blank before the colon is another name", FR + " FINDINGS: a\n IMPRESSION : c",
     NO_IMPRESSION, NO_IMPRESSION),
    ("two blanks before the heading", FR + " FINDINGS: a\n  IMPRESSION: c", NO_IMPRESSION,
     NO_IMPRESSION),
    ("no blank before the heading", FR + " FINDINGS: a\nIMPRESSION: c", NO_IMPRESSION,
     NO_IMPRESSION),
    ("no blank after the colon", FR + " FINDINGS: a\n IMPRESSION:c", NO_IMPRESSION, NO_IMPRESSION),
    ("on one line", FR + " FINDINGS: a IMPRESSION: b\n IMPRESSION: c",
     ("a impression: b", "c"), ("a impression: b", "c")),
    ("heading, newline, heading: the second is text",
     FR + " FINDINGS:\n TECHNIQUE: t\n IMPRESSION: c", ("technique: t", "c"),
     ("technique: t", "c")),
    ("small letters within", FR + " FINDINGS: a\n Impression: b\n IMPRESSION: c",
     ("a impression: b", "c"), ("a impression: b", "c")),
    ("page break", FR + " FINDINGS: a\n (Over)\n IMPRESSION: x\n FINAL REPORT\n (Cont)\n b\n"
     " IMPRESSION: c", ("a b", "c"), ("a b", "c")),
    ("two page breaks", FR + " FINDINGS: a (Over) x (Cont) b (Over) y (Cont) c\n IMPRESSION: d",
     ("a b c", "d"), ("a b c", "d")),
    ("nested page breaks", FR + " FINDINGS: a (Over) x (Over) y (Cont) b (Cont) c\n IMPRESSION: d",
     ("a b (cont) c", "d"), ("a b (cont) c", "d")),
    ("page breaks turned round", FR + " FINDINGS: a (Cont) b (Over) c\n IMPRESSION: d",
     "malformed note: (Cont) before (Over)", ("a (cont) b (over) c", "d")),
    ("the second page break turned round",
     FR + " FINDINGS: a (Over) x (Cont) b (Cont) y (Over) c\n IMPRESSION: d",
     "malformed note: (Cont) before (Over)", ("a b (cont) y (over) c", "d")),
    ("only over", FR + " FINDINGS: a (Over) b\n IMPRESSION: d", ("a (over) b", "d"),
     ("a (over) b", "d")),
    ("only cont", FR + " FINDINGS: a (Cont) b\n IMPRESSION: d", ("a (cont) b", "d"),
     ("a (cont) b", "d")),
    ("cont before the title does not count",
     "(Cont)\n" + FR + " FINDINGS: a (Over) b\n IMPRESSION: d", ("a (over) b", "d"),
     ("a (over) b", "d")),
    ("windows newlines", (FR + " FINDINGS: a\n b\n\n IMPRESSION: c\n").replace("\n", "\r\n"),
     ("a b", "c"), ("a b", "c")),
    ("white space of all kinds", FR + " FINDINGS:\ta\t \u00a0b\u2003\x0bc\n IMPRESSION: \x0cd",
     ("a b c", "d"), ("a b c", "d")),
    ("placeholders", FR + " FINDINGS: [**2101-3-4**] [**Name (un) [1]**]b\n IMPRESSION: [****]",
     ("___ ___b", "___"), ("___ ___b", "___")),
    ("broken placeholders", FR + " FINDINGS: [**a\n b**] [**c [**d**] e**] [**\n IMPRESSION: **]",
     ("___ ___ e**] [**", "**]"), ("___ ___ e**] [**", "**]")),
    ("a mark that an earlier one has changed", FR + " FINDINGS: [**b**] [**a [**b**] c\n"
     " IMPRESSION: d", ("___ [**a ___ c", "d"), ("___ ___ c", "d")),
    ("the long mark stands first", FR + " FINDINGS: [**a [**b**] [**b**]\n IMPRESSION: d",
     ("___ ___", "d"), ("___ ___", "d")),
    ("the same mark twice within a long one",
     FR + " FINDINGS: [**b**]x[**[**b**]\n IMPRESSION: [**c**] [** [**c**][**c**]",
     ("___x[**___", "___ [** ______"), ("___x___", "___ ______")),
    ("a mark without text that opens others", FR + " FINDINGS: [****] [**x[****]\n IMPRESSION: d",
     ("___ [**x___", "d"), ("___ ___", "d")),
    ("quotes and commas", FR + ' FINDINGS: "a", b\n IMPRESSION: "c"', ('"a", b', '"c"'),
     ('"a", b', '"c"')),
    ("an ordinal", FR + " 1. FINDINGS: a\n 2. IMPRESSION: c", NO_IMPRESSION, ("a", "c")),
    ("an ordinal of the impression", FR + " FINDINGS: a\n II) IMPRESSION: c", NO_IMPRESSION,
     ("a", "c")),
    ("an item of a list is no heading", FR + " FINDINGS: a\n IMPRESSION:\n 1. CT HEAD: c",
     ("a", "1. ct head: c"), ("a", "1. ct head: c")),
    ("a dash", FR + " FINDINGS - a\n IMPRESSION \u2013 c", NO_IMPRESSION, ("a", "c")),
    ("a NBSP", FR + " FINDINGS\u00a0: a\n IMPRESSION:\u00a0c", NO_FINDINGS, ("a", "c")),
    ("a closing line", FR + " FINDINGS: a\n ___________\n IMPRESSION: c\n END OF IMPRESSION\n d",
     ("a ___________", "c end of impression d"), ("a", "c")),
    ("a summary code", FR + " FINDINGS: a\n IMPRESSION: c\n SUMMARY: 2-ABNORMAL", ("a", "c"),
     ("a", "c")),
    ("a signature", FR + " FINDINGS: a\n IMPRESSION: c\n Electronically signed by N. N.",
     ("a", "c electronically signed by n. n."), ("a", "c")),
    ("an attestation", FR + " FINDINGS: a\n IMPRESSION: c.\n I have personally reviewed it.",
     ("a", "c. i have personally reviewed it."), ("a", "c.")),
    ("an addendum", FR + " FINDINGS: a\n IMPRESSION: c\n\n ADDENDUM\n d", ("a", "c addendum d"),
     ("a", "c")),
    ("ends with the heading", FR + " FINDINGS: a\n IMPRESSION:", NO_IMPRESSION, NO_IMPRESSION),
]  # fmt: skip


@pytest.mark.parametrize(
    ("note", "published", "corrected"), [row[1:] for row in RULES], ids=[row[0] for row in RULES]
)
def test_rules(note: str, published: object, corrected: object) -> None:
    assert pair_of(note, "CT_head", "radsum23") == published
    assert pair_of(note, "CT_head", "corrected") == corrected


marks = [
    "(Over)",
    "(Cont)",
    "\n FINDINGS: ",
    "\n IMPRESSION: ",
    "\n",
    "\r\n",
    " ",
    "a",
    "[**",
    "**]",
]


@given(st.lists(st.sampled_from([*marks, "FINAL REPORT", "_"])).map("".join))
def test_every_note_ends_in_a_pair_or_a_reason(note: str) -> None:
    for mode in ("radsum23", "corrected"):
        pair = pair_of(note, "CT_head", mode)
        if not isinstance(pair, str):
            for text in pair:
                assert text == text.lower() == " ".join(text.split())
            assert pair[0]
            assert mode == "radsum23" or (pair[1] and pair[0] != pair[1])


@given(st.lists(st.sampled_from(["[**", "**]", "a", "b", " ", "*", "[", "]"])).map("".join))
def test_placeholders_are_replaced_one_after_the_other(text: str) -> None:
    """Rule 8 word by word: list the inner texts of the shortest matches, then replace each."""
    text = " ".join(f"{text} x".split())
    inner, at = [], 0
    while (start := text.find("[**", at)) >= 0 and (end := text.find("**]", start + 3)) >= 0:
        inner.append(text[start + 3 : end])
        at = end + 3
    expected = text
    for one in inner:
        expected = "___".join(expected.split("[**" + one + "**]"))
    pair = pair_of(f"{FR} FINDINGS: y\n IMPRESSION: {text}", "CT_head", "radsum23")
    assert pair == ("y", expected)


@given(st.text(st.sampled_from("ab1.,'\u2019_-[]() \u00e9"), max_size=30))
def test_hub_style(text: str) -> None:
    styled = restyle(text, "hub")
    assert not re.search(r"[^\w\s]", styled)
    assert restyle(styled, "hub") == styled == " ".join(styled.split())
    assert restyle(text, "plain") == text


def test_hub_style_by_example() -> None:
    text = "a 1.5 cm cyst, patient's left; seen by ___/___ (3:24). __________"
    assert restyle(text, "hub") == "a 1 5 cm cyst patients left seen by ____ ____ 3 24 ____"


def write_notes(file: Path, table: Sequence[Row]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        write_csv(stream, table)
    return file


@dataclasses.dataclass
class Result:
    """What a run wrote."""

    folder: Path
    summary: dict[str, Any]

    def pairs(self) -> dict[str, list[dict[str, str]]]:
        return {
            split: [json.loads(line) for line in (self.folder / f"{split}.jsonl").open()]
            for split in SPLITS
        }

    def dropped(self) -> list[dict[str, str]]:
        with (self.folder / "dropped.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def bytes(self) -> dict[str, bytes]:
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files}


def run(folder: Path, table: Sequence[Row] | Path, mode: Mode, **settings: Any) -> Result:
    number = len(list(folder.iterdir()))
    notes = table if isinstance(table, Path) else write_notes(folder / f"{number}.csv", table)
    output = folder / f"out{number}"
    config = NotesConfig(
        notes=str(notes), output_dir=str(output), mode=mode, **({"workers": 1} | settings)
    )
    return Result(output, prepare(config))


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return list(rows(1500, 7, MANY))


@pytest.fixture(scope="module")
def published(table: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(tmp_path_factory.mktemp("published"), table, "radsum23")


@pytest.fixture(scope="module")
def corrected(table: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(tmp_path_factory.mktemp("corrected"), table, "corrected")


def test_equals_an_independent_implementation(published: Result) -> None:
    """Sum over the 46 files that another implementation of the rules, written without looking at
    this one, made of the same notes. A change of bench/notes.py changes the notes and so the sum.
    """
    digest = hashlib.sha256()
    for file in sorted(published.folder.rglob("*.tok")):
        name = file.relative_to(published.folder).as_posix()
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    expected = "b141d7606f6b2a238352ffe80dcadb762eaf0adc099f0a4db5340eced71d8d1d"
    assert digest.hexdigest() == expected


def test_published_files_are_aligned(published: Result) -> None:
    """The JSON lines are the lines of the .tok files, group by group, with their marks."""
    found = published.pairs()
    names = {"train": "train", "validation": "validate", "test": "test"}
    n_files = 0
    for split, name in names.items():
        at = 0
        for group in (*tables().split_groups, *tables().test_groups):
            if split != "test" and group in tables().test_groups:
                continue
            folder, sides = published.folder / group, []
            for side in ("findings", "impression"):
                data = (folder / f"{name}.{side}.tok").read_bytes().decode()
                sides.append(data.split("\n") if data else [])
                n_files += 1
            own = found[split][at : at + len(sides[0])]
            assert [pair["prompt"] for pair in own] == sides[0]
            assert [pair["impressions"] for pair in own] == sides[1]
            assert {pair["group"] for pair in own} <= {group}
            at += len(own)
        assert at == len(found[split])
    assert n_files == 46


def test_published_sizes_and_order(published: Result) -> None:
    for group, row in published.summary["groups"].items():
        n = row["pairs"]
        expected = (int(0.8 * n), int(0.1 * n)) if group in tables().split_groups else (0, 0)
        assert (row["train"], row["validation"]) == expected
        assert row["test"] == n - sum(expected)
    ids: dict[str, list[int]] = defaultdict(list)
    for pair in published.pairs()["test"]:
        ids[pair["group"]].append(int(pair["id"]))
    for group in tables().test_groups:
        assert ids[group] == sorted(ids[group])
    assert ids["CT_head"] != sorted(ids["CT_head"])


EXAMS = {group: exam for exam, group in tables().group_of.items()}


def note_row(number: int, group: str, impression: str) -> Row:
    note = f"{FR} FINDINGS: seen {number}\n IMPRESSION: {impression}"
    mark = str(number)
    return (mark, mark, "", "", "", "", "Radiology", EXAMS[group], "", "", note)


@pytest.mark.parametrize(
    "empty", [{4}, {19}, {18}, {18, 19}, {19, 39}, {39, 59}, {0}, {59, 79, 99, 119}], ids=str
)
def test_an_empty_last_line_is_lost_before_the_shuffle(empty: set[int], tmp_path: Path) -> None:
    """Rule 9, by the builder's own steps: join, write, read the lines, cut to the shorter list."""
    groups = (*tables().split_groups[:4], *tables().test_groups[:2])
    notes = [
        note_row(i, groups[i // 20], "" if i in empty else f"read {i}")
        for i in range(len(groups) * 20)
    ]
    result = run(tmp_path, notes, "radsum23")
    rng, n_lost = random.Random(42), 0
    for place, group in enumerate(groups):
        numbers = range(place * 20, place * 20 + 20)
        sides = {
            "findings": "\n".join(f"seen {i}" for i in numbers),
            "impression": "\n".join("" if i in empty else f"read {i}" for i in numbers),
        }
        parts: dict[str, Any] = {"test": sides}
        if group in tables().split_groups:
            lists = [io.StringIO(text).readlines() for text in sides.values()]
            pairs = [[line.strip() for line in both] for both in zip(*lists, strict=False)]
            n_lost += 20 - len(pairs)
            rng.shuffle(pairs)
            first = int(0.8 * len(pairs))
            second = first + int(0.1 * len(pairs))
            bounds = {"train": (0, first), "validate": (first, second), "test": (second, None)}
            parts = {
                name: {side: "\n".join(p[k] for p in pairs[a:b]) for k, side in enumerate(sides)}
                for name, (a, b) in bounds.items()
            }
        for name, texts in parts.items():
            for side, text in texts.items():
                written = (result.folder / group / f"{name}.{side}.tok").read_text()
                assert written == text, (group, name, side)
    assert result.summary["dropped"].get(LAST_LINE, 0) == n_lost
    accounted(result, notes)


def accounted(result: Result, table: list[Row]) -> None:
    """Each report of the groups is in one place: a split or dropped.csv, under its id and row."""
    wanted = {
        (number, row[0])
        for number, row in enumerate(table, 1)
        if row[6] == "Radiology" and row[7] in tables().group_of
    }
    kept = [pair["id"] for pairs in result.pairs().values() for pair in pairs]
    lost = [(int(row["row"]), row["id"]) for row in result.dropped()]
    assert len(kept) + len(lost) == len(wanted)
    assert {*kept, *(identity for _, identity in lost)} == {identity for _, identity in wanted}
    assert set(lost) <= wanted
    assert all(row["reason"] for row in result.dropped())
    assert sum(result.summary["dropped"].values()) == len(lost)


def test_nothing_is_lost_without_a_reason(
    published: Result, corrected: Result, table: list[Row]
) -> None:
    accounted(published, table)
    accounted(corrected, table)
    assert len(set(corrected.summary["dropped"])) >= 9  # the notes have every reason


def patients(result: Result) -> dict[str, set[str]]:
    found = defaultdict(set)
    for split, pairs in result.pairs().items():
        for pair in pairs:
            found[pair["patient"]].add(split)
    return found


def test_corrected_properties(corrected: Result, table: list[Row]) -> None:
    found = corrected.pairs()
    assert all(len(splits) == 1 for splits in patients(corrected).values())
    texts = [(p["prompt"], p["impressions"]) for pairs in found.values() for p in pairs]
    assert len(set(texts)) == len(texts) > 300
    assert all(prompt and target and prompt != target for prompt, target in texts)
    bad = {row[0] for row in table if row[9] == "1"}
    patient_of = {row[0]: row[1] for row in table}
    for split, pairs in found.items():
        assert [int(p["id"]) for p in pairs] == sorted(int(p["id"]) for p in pairs)
        for pair in pairs:
            assert pair["id"] not in bad
            assert patient_of[pair["id"]] == pair["patient"]
            assert split_of(pair["patient"]) == split
            assert split == "test" or pair["group"] not in tables().test_groups
    sizes = {split: len(pairs) for split, pairs in found.items()}
    assert sizes == {s: sum(r[s] for r in corrected.summary["groups"].values()) for s in SPLITS}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 80), st.integers(0, 80), st.data())
def test_more_notes_move_nobody(seed: int, n: int, more: int, data: st.DataObject) -> None:
    """Whatever notes are added wherever: a patient keeps the split, and a kept pair stays where
    it was or is named as the duplicate of one that now comes before it."""
    import tempfile

    base = list(rows(40 + n, seed, MANY))
    added = [(f"x{row[0]}", *row[1:]) for row in rows(more, seed + 1, MANY)]
    place = data.draw(st.integers(0, len(base)))
    with tempfile.TemporaryDirectory() as name:
        try:
            first = run(Path(name), base, "corrected")
        except DataError:
            return  # so few notes that none gives a pair
        second = run(Path(name), [*base[:place], *added, *base[place:]], "corrected")
        before, after = patients(first), patients(second)
        assert all(after[patient] == before[patient] for patient in set(before) & set(after))
        where = [
            {pair["id"]: split for split, pairs in result.pairs().items() for pair in pairs}
            for result in (first, second)
        ]
        duplicates = {row["id"] for row in second.dropped() if row["reason"] == DUPLICATE}
        for identity, split in where[0].items():
            assert where[1].get(identity, split) == split
            assert identity in where[1] or identity in duplicates


def test_patients_are_shared_out_by_tenths() -> None:
    found = [split_of(str(patient)) for patient in range(20_000)]
    assert abs(found.count("train") / 20_000 - 0.8) < 0.01
    assert abs(found.count("validation") / 20_000 - 0.1) < 0.01
    assert split_of("1") == "train"  # for good: other versions must agree


def test_unseen_groups_can_be_split_too(table: list[Row], tmp_path: Path) -> None:
    result = run(tmp_path, table, "corrected", unseen_groups="split")
    accounted(result, table)
    assert NOT_A_TEST_PATIENT not in result.summary["dropped"]
    assert all(len(splits) == 1 for splits in patients(result).values())
    assert any(pair["group"] in tables().test_groups for pair in result.pairs()["train"])


def test_only_plausible_pairs(table: list[Row], corrected: Result, tmp_path: Path) -> None:
    result = run(tmp_path, table, "corrected", plausible_only=True)
    accounted(result, table)
    n_pairs = 0
    for pair in (pair for pairs in result.pairs().values() for pair in pairs):
        lengths = len(pair["prompt"].split()), len(pair["impressions"].split())
        assert lengths[0] >= 10
        assert 2 <= lengths[1] < lengths[0]
        n_pairs += 1
    lost = [row for row in result.dropped() if row["reason"].startswith("implausible")]
    assert len({row["reason"] for row in lost}) == 3
    assert n_pairs + len(lost) >= sum(map(len, corrected.pairs().values()))


@pytest.mark.parametrize("mode", ["radsum23", "corrected"])
def test_same_files_for_any_number_of_processes(
    mode: Mode, table: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for blocks of any size, gzipped or not, with CRLF or LF between the records."""
    plain = run(tmp_path, table, mode)
    notes = write_notes(tmp_path / "notes.csv", table)
    zipped = tmp_path / "notes.csv.gz"
    zipped.write_bytes(gzip.compress(notes.read_bytes()))
    crlf = tmp_path / "crlf.csv"
    with crlf.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([HEADER, *table])
    monkeypatch.setattr("report2impression.corpora.notes_csv.BLOCK_BYTES", 10_000)
    for source, workers in ((zipped, 3), (crlf, 1)):
        assert run(tmp_path, source, mode, workers=workers).bytes() == plain.bytes()


def test_hub_style_of_a_run(table: list[Row], published: Result, tmp_path: Path) -> None:
    """The .tok files stay as published; the JSON lines lose punctuation."""
    hub = run(tmp_path, table, "radsum23", style="hub")
    plain = published.bytes()
    assert {n: d for n, d in hub.bytes().items() if n.endswith(".tok")} == {
        name: data for name, data in plain.items() if name.endswith(".tok")
    }
    other = run(tmp_path, table, "corrected", style="hub")
    for result in (hub, other):
        texts = [
            p[k] for ps in result.pairs().values() for p in ps for k in ("prompt", "impressions")
        ]
        assert not any(re.search(r"[^\w\s]|[A-Z]", text) for text in texts)
        assert any("____" in text.split() for text in texts)
    assert len(
        {p["prompt"] + "\n" + p["impressions"] for ps in other.pairs().values() for p in ps}
    ) == sum(map(len, other.pairs().values()))


def test_the_reader_of_pairs_reads_them(corrected: Result) -> None:
    split = read_split(str(corrected.folder), "train")
    assert not split.skipped
    assert len(split.pairs) == len(corrected.pairs()["train"])
    assert split.pairs[0].group
    assert split.pairs[0].patient


def test_says_that_it_is_the_published_split(
    table: list[Row],
    published: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(published.summary, "DIR")
    told = capsys.readouterr().out
    assert "0 of 46 files have the published MD5 sum" in told
    assert "38,807 reports expected" in told
    md5 = {
        f"{f['group']}_{Path(f['file']).name.removesuffix('.tok').replace('.', '_')}": f["md5"]
        for f in published.summary["files"]
    }
    groups = published.summary["groups"]
    ours = dataclasses.replace(
        tables(),
        md5=md5,
        n_reports={g: r["reports"] for g, r in groups.items()},
        n_pairs={g: r["pairs"] for g, r in groups.items()},
    )
    for module in (mimic_iii, pair_files, radsum23):
        monkeypatch.setattr(module, "tables", lambda: ours)
    show(run(tmp_path, table, "radsum23").summary, "DIR")
    told = capsys.readouterr().out
    assert "46 of 46 files have the published MD5 sum" in told
    assert told.count("same") == 11
    assert "differs" not in told


def test_the_tables_are_those_of_the_published_split() -> None:
    found = tables()
    assert len(found.groups) == 11
    assert len(found.md5) == 46
    assert sum(found.n_pairs.values()) == 79_790
    assert sum(int(0.8 * found.n_pairs[group]) for group in found.split_groups) == 59_320
    assert set(found.groups) == {*found.split_groups, *found.test_groups}
    assert list(found.split_groups)[0] == "CT_head"


def test_malformed_rows_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = "zebrafish"
    note = FR + f" FINDINGS: {canary} {{}}\n IMPRESSION: {canary}\n"
    good = [
        (
            str(i),
            str(i),
            "",
            "",
            "",
            "",
            "Radiology",
            "CT HEAD W/O CONTRAST",
            "",
            "",
            note.format(i),
        )
        for i in range(1, 9)
    ]
    lines = write_notes(tmp_path / "notes.csv", good).read_bytes().split(b"\n1,1,")
    text = lines[0] + b"\n1,1," + lines[1]
    text = text.replace(b"\n3,3,", f"\n33,33,,Radiology,{canary}\n3,3,".encode())  # now row 3
    text = text.replace(b"\n5,5,", f'\n55,55,,,,,Radiology,x,,,"{canary}\n5,5,'.encode())  # row 6
    text = text.replace(f"{canary} 7".encode(), f"{canary} \xff7".encode("latin-1"))  # row 9
    (tmp_path / "bad.csv").write_bytes(text)
    result = run(tmp_path, tmp_path / "bad.csv", "corrected")
    show(result.summary, "DIR")
    assert result.summary["malformed_rows"] == [3, 6, 9]
    assert result.summary["rows"] == 10
    assert sum(row["pairs"] for row in result.summary["groups"].values()) == 7
    reasons = {row["row"]: row["reason"] for row in result.dropped()}
    assert reasons == {
        "3": "malformed row: 5 fields instead of 11",
        "6": "malformed row: a quote that does not end",
        "9": "malformed row: not utf-8",
    }
    told = "".join(capsys.readouterr())
    assert "malformed rows, the first of them: 3, 6, 9" in told
    for data in (told, (result.folder / "dropped.csv").read_text(), json.dumps(result.summary)):
        assert canary not in data
    assert len(run(tmp_path, tmp_path / "bad.csv", "corrected", encoding="latin-1").dropped()) == 2


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"plausible_only": True}, {"unseen_groups": "split"}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--"):
        prepare(NotesConfig("none", str(tmp_path / "out"), **({"mode": "radsum23"} | wrong)))
    assert not list(tmp_path.iterdir())


def test_failures_leave_nothing(tmp_path: Path, table: list[Row]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    notes = write_notes(tmp_path / "notes.csv", table)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(notes.read_bytes())[:-1000])
    empty = write_notes(tmp_path / "empty.csv", [])
    other = write_notes(tmp_path / "other.csv", [(*row[:6], "ECG", *row[7:]) for row in table])
    for source, error, message in (
        (cut, DataError, "cut short"),
        (empty, DataError, "no pair in 0 rows"),
        (other, DataError, "is it NOTEEVENTS"),
        (tmp_path / "none", ConfigError, "not a file"),
    ):
        for mode in ("radsum23", "corrected"):
            config = NotesConfig(notes=str(source), output_dir=str(home / "out"), mode=mode)
            with pytest.raises(error, match=message):
                prepare(config)
            assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", ["radsum23", "corrected"])
def test_interrupted_anywhere_it_leaves_nothing(
    mode: Mode, table: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    notes = write_notes(tmp_path / "notes.csv", table)
    for error in (KeyboardInterrupt, OSError(28, "No space left on device")):
        for at in (1, 200, 400):
            with monkeypatch.context() as patch:
                patch.setattr(pair_files, "json_line", Mock(side_effect=["{}\n"] * at + [error]))
                with pytest.raises((KeyboardInterrupt, ConfigError)):
                    prepare(NotesConfig(str(notes), str(home / "out"), mode, workers=1))
            assert list(home.iterdir()) == []


def test_the_folder_is_private_and_never_overwritten(table: list[Row], tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes.csv", table)
    (tmp_path / "out").mkdir()
    config = NotesConfig(str(notes), str(tmp_path / "out"), workers=1)
    prepare(config)  # an empty folder may be there
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0
    before = Result(tmp_path / "out", {}).bytes()
    with pytest.raises(ConfigError, match="not empty"):
        prepare(config)
    assert Result(tmp_path / "out", {}).bytes() == before
    assert not any(".partial" in name for name in before)


@pytest.mark.parametrize("mode", ["radsum23", "corrected"])
def test_the_data_bear_the_mark_of_credentialed_data(
    mode: Mode, table: list[Row], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        folder = run(tmp_path, table, mode).folder
    finally:
        os.umask(before)
    mark = json.loads((folder / "LICENCE.json").read_text())
    assert mark["credentialed"] is True
    assert "MIMIC-III" in mark["source"] and "PhysioNet" in mark["licence"]
    assert (folder / "LICENCE.json").stat().st_mode & 0o777 == 0o600


def test_command(table: list[Row], tmp_path: Path) -> None:
    write_notes(tmp_path / "notes.csv", table)
    command = [
        sys.executable,
        "-m",
        "report2impression.corpora.mimic_iii",
        f"--notes={tmp_path / 'notes.csv'}",
    ]
    command += ["--mode=radsum23", f"--output_dir={tmp_path / 'out'}", "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "CT_abdomen-pelvis" in done.stdout
    assert "100%" in done.stderr
    assert "FINDINGS" not in done.stdout + done.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_bench(tmp_path: Path) -> None:
    """The benchmark runs and its last line is JSON."""
    command = [sys.executable, "-m", "bench.corpora.prepare", "--mib=1", f"--folder={tmp_path}"]
    command += ["--files=gzipped", "--modes=corrected", "--workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])["gzipped, corrected"]
    assert figures["pairs"] > 10
    assert 10 < figures["peak_pss_mib"] <= figures["peak_rss_mib"]
    assert list(tmp_path.iterdir()) == []


def test_generated_notes_hold_their_size_and_are_repeatable(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.csv.gz"):
        command = [
            sys.executable,
            "-m",
            "bench.corpora.notes",
            f"--output={tmp_path / name}",
            "--mib=1",
        ]
        subprocess.run(command, check=True)
    data = (tmp_path / "a.csv").read_bytes()
    assert data == (tmp_path / "b.csv").read_bytes()
    assert data == gzip.decompress((tmp_path / "c.csv.gz").read_bytes())
    assert 1 << 20 <= len(data) < 12 << 20
