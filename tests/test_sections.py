"""The section parser on reports written for the purpose."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.corpora.notes import ODD_SHAPES, Shape, plain
from report2impression.corpora.radsum23 import report_body, sections, tables
from report2impression.reading.sections import (
    NAMES,
    Section,
    find_sections,
    texts_of,
    unknown_headings,
)

# (what it shows, report, expected (name, heading, text)): the gold set.
GOLD: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    (
        "the usual order",
        "CT HEAD\nHISTORY: fall\nTECHNIQUE: axial\nCOMPARISON: None.\nFINDINGS: a\n b.\n"
        "IMPRESSION: c",
        [
            ("preamble", "", "CT HEAD"),
            ("history", "HISTORY:", "fall"),
            ("technique", "TECHNIQUE:", "axial"),
            ("comparison", "COMPARISON:", "None."),
            ("findings", "FINDINGS:", "a\n b."),
            ("impression", "IMPRESSION:", "c"),
        ],
    ),
    (
        "impression first",
        "IMPRESSION: c\n\n FINDINGS:\n a\n",
        [("impression", "IMPRESSION:", "c"), ("findings", "FINDINGS:", "a")],
    ),
    (
        "two impressions",
        "IMPRESSION: a\nFINDINGS: b\nIMPRESSION: c",
        [
            ("impression", "IMPRESSION:", "a"),
            ("findings", "FINDINGS:", "b"),
            ("impression", "IMPRESSION:", "c"),
        ],
    ),
    ("no heading", " The lungs are clear.\n", [("report", "", "The lungs are clear.")]),
    ("white space", " \n ", []),
    ("nothing", "", []),
    ("an empty section", "FINDINGS:\n", [("findings", "FINDINGS:", "")]),
    (
        "an empty section, then another",
        "FINDINGS:  \nIMPRESSION: c",
        [("findings", "FINDINGS:", ""), ("impression", "IMPRESSION:", "c")],
    ),
    (
        "both in one",
        "FINDINGS AND IMPRESSION: a",
        [("findings", "FINDINGS AND IMPRESSION:", "a")],
    ),
    (
        "misspelt",
        "FINDIGNS: a\nIMRPESSION: b\nTECHINQUE: c\nCOMPARISIONS: d",
        [
            ("findings", "FINDIGNS:", "a"),
            ("impression", "IMRPESSION:", "b"),
            ("technique", "TECHINQUE:", "c"),
            ("comparison", "COMPARISIONS:", "d"),
        ],
    ),
    (
        "longer headings",
        "INDICATION FOR STUDY: a\nCT FINDINGS: b\nIMPRESSION AND PLAN: c\nCOMPARISON EXAM: d",
        [
            ("history", "INDICATION FOR STUDY:", "a"),
            ("findings", "CT FINDINGS:", "b"),
            ("impression", "IMPRESSION AND PLAN:", "c"),
            ("comparison", "COMPARISON EXAM:", "d"),
        ],
    ),
    (
        "alone on its line, and in Markdown",
        "Findings\na\n\n**Impression:** b\n## Technique\nc",
        [
            ("findings", "Findings", "a"),
            ("impression", "**Impression:**", "b"),
            ("technique", "## Technique", "c"),
        ],
    ),
    (
        "all in one line, capitals",
        "FINDINGS: a. IMPRESSION: b.",
        [("findings", "FINDINGS:", "a."), ("impression", "IMPRESSION:", "b.")],
    ),
    (
        "all in one line, small letters",
        "Findings: a. Impression: b.",
        [("findings", "Findings:", "a."), ("impression", "Impression:", "b.")],
    ),
    (
        "sub-headings belong to the findings",
        "FINDINGS:\nLUNGS: clear\nHEART (SIZE): normal\nIMPRESSION:\nCT HEAD: c",
        [
            ("findings", "FINDINGS:", "LUNGS: clear\nHEART (SIZE): normal"),
            ("impression", "IMPRESSION:", "CT HEAD: c"),
        ],
    ),
    (
        "what ends an impression",
        "IMPRESSION: c\nRECOMMENDATION: d\nNOTIFICATION: e",
        [
            ("impression", "IMPRESSION:", "c"),
            ("other", "RECOMMENDATION:", "d"),
            ("other", "NOTIFICATION:", "e"),
        ],
    ),
    (
        "no findings but an examination",
        "CT CHEST WITHOUT CONTRAST:\nINDICATION: fall\nCT CHEST: a\nFULL RESULT: x\nIMPRESSION: c",
        [
            ("other", "CT CHEST WITHOUT CONTRAST:", ""),
            ("history", "INDICATION:", "fall"),
            ("findings", "CT CHEST:", "a"),
            ("other", "FULL RESULT:", "x"),
            ("impression", "IMPRESSION:", "c"),
        ],
    ),
    (
        "like headings, within the text",
        "FINDINGS: seen at 5:30. Impression: later.\nDr. X said: fine\nThe findings\nare these: a\n"
        "findings\n1:2 ratio",
        [
            (
                "findings",
                "FINDINGS:",
                "seen at 5:30. Impression: later.\nDr. X said: fine\n"
                "The findings\nare these: a\nfindings\n1:2 ratio",
            )
        ],
    ),
    (
        "a name in capitals is no heading in small letters",
        "FINDINGS: a\nImpression: later.\nIMPRESSION: c\nTechnique: d",
        [
            ("findings", "FINDINGS:", "a\nImpression: later."),
            ("impression", "IMPRESSION:", "c"),
            ("technique", "Technique:", "d"),
        ],
    ),
    (
        "small letters",
        "findings: a\nimpression: b",
        [("findings", "findings:", "a"), ("impression", "impression:", "b")],
    ),
    (
        "Windows newlines",
        "FINDINGS:\r\n a\r\n\r\nIMPRESSION\r\nb\r\n",
        [("findings", "FINDINGS:", "a"), ("impression", "IMPRESSION", "b")],
    ),
    (
        "page break",
        "FINDINGS: a\n(Over)\nIMPRESSION: page 1\n(Cont)\nb\nIMPRESSION: c",
        [
            ("findings", "FINDINGS:", "a\n(Over)\nIMPRESSION: page 1\n(Cont)\nb"),
            ("impression", "IMPRESSION:", "c"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("report", "expected"), [case[1:] for case in GOLD], ids=[case[0] for case in GOLD]
)
def test_gold(report: str, expected: list[tuple[str, str, str]]) -> None:
    found = [
        (s.name, report[s.heading_start : s.heading_end].strip(), report[s.start : s.end])
        for s in find_sections(report)
    ]
    assert found == expected


def test_text_of_joins_and_leaves_page_breaks_out() -> None:
    report = GOLD[-1][1]
    assert texts_of(report).get("findings", "").split() == ["a", "b"]
    assert texts_of("FINDINGS: a\nIMPRESSION:\nFINDINGS: b").get("findings", "") == "a\nb"
    assert texts_of("IMPRESSION: a\nFINDINGS:").get("findings", "") == ""


# (what it shows, report, findings, impression)
PARTS = [
    (f"closed by {line[:28]!r}", f"FINDINGS: a.\nIMPRESSION: b.\n{line}\nz", "a.", "b.")
    for line in (
        "END OF IMPRESSION:",
        "*** End of report ***",
        "=== END ===",
        "_" * 40,
        "-----",
        "- - - - -",
        "=" * 20,
        "\u2500" * 12,
        "FINAL REPORT",
        "*** PRELIMINARY REPORT ***",
        "Corrected report",
        "ADDENDUM",
        "Addendum #2: z",
        "Electronically signed by: N. N., MD 1/1/2010 3:00 PM",
        "E-signed by N. N.",
        "Report electronically signed by N. N.",
        "Dr. Nn N. Nnn",
        "ACC#: 1234",
        "......................",
        "Dictated by: N. N.",
        "Read and electronically signed by N. N.",
        "Transcribed on 1/1/2010",
        "/s/ N. N.",
        "Jane Q. Roe, M.D.",
        "Attending radiologist: N. N.",
        "D: 1/1/2010 T: 1/1/2010",
        "I have personally reviewed the images for this examination and agree",
        "I, Dr. N., the attending physician, have reviewed the study.",
        "The attending radiologist has reviewed the images.",
        "The images and report were reviewed by Dr. N.",
        "This report has been anonymized.",
        "This study was interpreted by Dr. N.",
        "ACCESSION NUMBER:",
        "Accession #: 12345",
        "SUMMARY: 2-ABNORMAL, PREVIOUSLY REPORTED",
        "SUMMARY: 4 POSSIBLE SIGNIFICANT ABNORMALITY",
        "Diagnostic code: 1",
        "MRN: 1",
    )
]
PARTS += [
    ("on one line", "FINDINGS: a. IMPRESSION: b. Electronically signed by N. N.", "a.", "b."),
    ("on one line", "FINDINGS: a. IMPRESSION: b. I have reviewed the images.", "a.", "b."),
    ("on one line", f"FINDINGS: a. IMPRESSION: b. {'_' * 20} z", "a.", "b."),
    ("underlined", "FINDINGS\n====\na\n\nIMPRESSION\n----\nb\n----\nz", "a", "b"),
    *(
        ("no end", f"FINDINGS: a\nIMPRESSION: b\n{line}", "a", f"b\n{line}")
        for line in (
            "____ was told.",
            "End of the tube in the stomach.",
            "1. Recommendation: CT",
            "Final reports of the lab are awaited.",
            "The findings were reviewed with Dr. N.",
            "Read as normal.",
            "Type I reviewed - z.",
        )
    ),
    *(
        ("separator", f"FINDINGS{mark}a\nIMPRESSION{mark}b", "a", "b")
        for mark in (" - ", "- ", " \u2013 ", "\u2014", "\u00a0: ", ":\u00a0", " :- ", "\uff1a")
    ),
    *(
        ("ordinals", f"{one}FINDINGS: a\n{two}IMPRESSION: b", "a", "b")
        for one, two in (("1. ", "2. "), ("1) ", "2) "), ("(1) ", "(2) "), ("I. ", "II. "))
    ),
    ("ordinals", "1. TECHNIQUE: z. 2. FINDINGS: a. 3. IMPRESSION: b.", "a.", "b."),
    ("a dash is no colon", "FINDINGS: CT\nHead - a\nIMPRESSION: b", "CT\nHead - a", "b"),
    *(
        ("other sections", f"FINDINGS: a\n{title}: z\nIMPRESSION: b", "a", "b")
        for title in (
            *("Patient history", "Comparison exam", "Comparison film", "Prior study"),
            *("PATIENT HISTORY", "Clinical indication", "Relevant clinical history"),
            *("Reason for test", "CT technique"),
        )
    ),
    ("composed", "Technique and findings: a\nImpression and plan: b", "a", "b"),
    ("interpretation alone", "FINDINGS: a\nINTERPRETATION: b", "a", "b"),
    ("interpretation beside it", "INTERPRETATION: a\nIMPRESSION: b", "a", "b"),
    ("summary beside it", "FINDINGS: a\nSUMMARY: z\nIMPRESSION: b", "a", "b"),
    ("two impressions", "IMPRESSION: z\nFINDINGS: a\nIMPRESSION: b\nIMPRESSION:", "a", "b"),
    ("preliminary", "WET READ\nIMPRESSION: z\nFINAL REPORT\nFINDINGS: a\nIMPRESSION: b", "a", "b"),
    ("addendum", "FINDINGS: a\nIMPRESSION: z\nADDENDUM 1/1\nIMPRESSION: b", "a", "b"),
    ("German", "Klinik: z\nBefund: a\nBeurteilung: b", "a", "b"),
    ("Spanish", "HALLAZGOS: a\n\nIMPRESI\u00d3N: b", "a", "b"),
    ("French", "R\u00c9SULTATS : a\nCONCLUSION : b", "a", "b"),
    ("Portuguese", "ACHADOS: a\nIMPRESS\u00c3O: b", "a", "b"),
    ("HL7, breaks", "FINDINGS: a\\.br\\IMPRESSION:\\.br\\b", "a", "b"),
    (
        "HL7, headings in the text",
        "MSH|^~\\&|RIS\rOBX|1|TX|71020||FINDINGS: a \\T\\ c||||||F\rOBX|2|TX|71020||d||||||F\r"
        "OBX|3|TX|71020||IMPRESSION: b||||||F\r",
        "a & c\nd",
        "b",
    ),
    (
        "HL7, headings in OBX-3",
        "OBX|1|TX|71020&GDT^X||a~c||||||F\nOBX|2|TX|71020&GDT^X||d||||||F\n"
        "OBX|3|FT|71020&IMP^X||b||||||F\nOBX|4|NM|1^size||3||||||F\n",
        "a\nc\nd",
        "b",
    ),
    ("HL7, words in OBX-3", "OBX|1|TX|FINDINGS||a\nOBX|2|TX|X^Impression||b\n", "a", "b"),
]


@pytest.mark.parametrize(
    ("report", "findings", "impression"), [c[1:] for c in PARTS], ids=[c[0] for c in PARTS]
)
def test_findings_and_impression(report: str, findings: str, impression: str) -> None:
    found = texts_of(report)
    assert (found["findings"], found["impression"]) == (findings, impression)
    check(report, find_sections(report))


def test_headings_of_unknown_meaning() -> None:
    report = "LAUSUNTO: a\nOordeel : b\nCT 3: c\nImpression: d\nx: e\nThe lungs are clear\n"
    assert unknown_headings(report) == {"LAUSUNTO", "OORDEEL"}


@pytest.mark.parametrize(
    ("findings", "impression", "history"),
    [
        ("Befund", "Beurteilung", "Klinische Fragestellung"),
        ("Methodik und Befund", "Zusammenfassung", "Rechtfertigende Indikation"),
        ("Hallazgos", "Impresión diagnóstica", "Motivo del estudio"),
        ("Résultats", "Conclusion", "Contexte clinique"),
        ("Compte-rendu", "Au total", "Motif de l'examen"),
        ("Achados", "Conclusão", "Indicação clínica"),
        ("Referto", "Conclusioni", "Quesito clinico"),
        ("Bevindingen", "Conclusie", "Klinische gegevens"),
        ("Verslag", "Beoordeling", "Vraagstelling"),
    ],
)
@pytest.mark.parametrize("layout", ["{}: x.\n{}: a. b.\n{}: c.", "{}: x?  {}: a. b.  {}: c."])
def test_other_languages_on_lines_and_in_one(
    findings: str, impression: str, history: str, layout: str
) -> None:
    for case in (str, str.upper):
        texts = texts_of(layout.format(case(history), case(findings), case(impression)))
        assert (texts["findings"], texts["impression"]) == ("a. b.", "c."), texts
        assert texts["history"] in ("x.", "x?")


LONG = "The lungs are clear and the heart is small."


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        (f"{LONG}\nIMPRESSION: Normal.", LONG),
        (f"HISTORY: pain\nSTRESS RESULTS: {LONG}\nCONCLUSIONS: Normal.", LONG),
        (f"Impression: Normal.\nDiscussion: {LONG}", LONG),
        (f"CT ABDOMEN\nIMPRESSION: {LONG}", ""),  # a title
        (f"MEDICATIONS: {LONG}\nIMPRESSION: Normal.", ""),
        (f"IMPRESSION: Normal.\nSTRESS VALUES: {LONG}", ""),
        (f"{LONG}\nIMPRESSION:\n", ""),
        (f"{LONG}\nFINDINGS: none\nIMPRESSION: Normal.", "none"),
    ],
)
def test_what_stands_before_the_impression_stands_in_for_findings(
    report: str, findings: str
) -> None:
    assert texts_of(report).get("findings", "") == findings
    marked = [section for section in find_sections(report) if section.instead]
    assert [section.name for section in marked] == ["findings"] * bool(findings == LONG)


def test_of_two_words_that_may_interpret_the_last_is_the_impression() -> None:
    texts = texts_of("SUMMARY: The nerve is slow.\nINTERPRETATION: Neuropathy.\n")
    assert (texts["findings"], texts["impression"]) == ("The nerve is slow.", "Neuropathy.")


@pytest.mark.parametrize(
    "text", ["Told to\nDr. Nn Nnn", "Told to Dr. Nn", "A ... B", "Dr. Nn was told."]
)
def test_a_name_within_a_sentence_is_no_signature(text: str) -> None:
    assert texts_of(f"FINDINGS: a\nIMPRESSION: {text}\n").get("impression", "") == text


def test_a_plan_is_no_impression() -> None:
    assert texts_of("FINDINGS: a\nASSESSMENT: b\nPLAN: come again\n").get("impression", "") == "b"
    assert texts_of("FINDINGS: a\nASSESSMENT AND PLAN: b\n").get("impression", "") == "b"


def check(report: str, found: list[Section]) -> None:
    """Spans ascend, do not overlap, hold no outer white space; between them is nothing else."""
    end = 0
    for section in found:
        assert end <= section.heading_start <= section.heading_end <= section.start <= section.end
        assert not report[end : section.heading_start].strip()
        assert not report[section.heading_end : section.start].strip()
        text = report[section.start : section.end]
        assert text == text.strip()
        end = section.end
    assert not report[end:].strip()


pieces = st.sampled_from(
    [
        "\n",
        "\r\n",
        " ",
        ":",
        "FINDINGS:",
        "Findings",
        "IMPRESSION:",
        "LUNGS:",
        "# ",
        "**",
        ". ",
        "a",
        "\u00e9",
        "(Over)",
        "(Cont)",
        "CT HEAD:",
        "TECHNIQUE: ",
    ]
)


@given(st.one_of(st.text(), st.lists(pieces).map("".join)))
def test_every_character_is_in_one_place(report: str) -> None:
    check(report, find_sections(report))


@pytest.mark.parametrize("shape", [plain, *ODD_SHAPES])
def test_every_character_of_odd_notes_is_in_one_place(shape: Shape) -> None:
    rng = Random(1)
    for _ in range(50):
        check(note := shape(rng, "CT_head"), find_sections(note))


def test_agrees_with_the_builder_on_ordinary_notes() -> None:
    """The same impression, though found by other rules; but for lines that begin with "Findings:"
    in a note without FINDINGS, which may be either."""
    rng, same = Random(2), []
    for _ in range(500):
        body = report_body(plain(rng, "CT_head"), "radsum23")
        names, texts = sections(body)
        if names.count("impression") == 1:
            text = texts[names.index("impression")].strip()
            same.append(texts_of(body).get("impression", "") == text)
    assert len(same) > 300
    assert sum(same) / len(same) > 0.98


def test_knows_the_builders_spellings() -> None:
    """Those of the five sections, but for two that mean something else than the builder thinks."""
    strange = {"complications", "comprison exam"}
    missed = [
        spelling
        for spelling, name in tables().name_of.items()
        if name in NAMES and spelling not in strange
        if [s.name for s in find_sections(f"{spelling.strip().upper()}: a")] != [name]
    ]
    assert missed == []


def test_command(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("FINDINGS: a\nIMPRESSION: secret")
    (tmp_path / "a.txt").write_text("clear")
    run = [sys.executable, "-m", "report2impression", "sections", f"--input={tmp_path}"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["file"], row["name"]) for row in rows] == [
        ("a.txt", "report"),
        ("b.txt", "findings"),
        ("b.txt", "impression"),
    ]
    assert "secret" not in done.stdout
    done = subprocess.run([*run, "--text"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["text"] == "secret"


def test_command_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff secret")
    for target, word in ((tmp_path / "bad.txt", "UTF-8"), (tmp_path / "none", "read")):
        run = [sys.executable, "-m", "report2impression", "sections", f"--input={target}"]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode in (2, 3)
        assert word in done.stderr
        assert len(done.stderr.splitlines()) == 1
