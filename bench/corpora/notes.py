"""A file like NOTEEVENTS, for tests and benchmarks: every note is written by this grammar.

    python -m bench.corpora.notes --output /tmp/NOTEEVENTS.csv --mib 100

No text of MIMIC or of any patient: a few dozen sentences of our own in the shapes that the notes
have, odd ones included (two impressions, the impression before the findings, page breaks in every
order, headings within the text, marks of removed names, Windows newlines ...). Each shape is a
function from a random generator to a note.
"""

import contextlib
import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, TextIO

from report2impression.corpora.radsum23 import tables
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly

HEADER = (
    *("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY"),
    *("DESCRIPTION", "CGID", "ISERROR", "TEXT"),
)
OTHER_CATEGORIES = ("Nursing/other", "Discharge summary", "ECG", "Physician ", "radiology", "Echo")
OTHER_EXAMS = ("CHEST (PORTABLE AP)", "CT HEAD", "CT HEAD W/O CONTRAST ", "ABDOMEN US", "")
SENTENCES = (
    "There is no acute intracranial hemorrhage, edema, or mass effect.",
    "The ventricles and sulci are normal in size and configuration.",
    "A 1.5 x 0.8 cm hypodense lesion is seen in the right hepatic lobe (3:24).",
    'The so-called "dense vessel sign" is not seen; see report of [**2101-3-4**].',
    "Compared with [**Hospital Ward Name 12**] (outside) study, the effusion is unchanged.",
    "Dr. [**First Name (Titles) 3**] [**Last Name (NamePattern4) [1]**] was paged at 5:30 p.m.",
    "The patient's left kidney contains a simple cyst; no hydronephrosis.",
    "Mild degenerative changes at L4/5 -- no canal stenosis.",
    "No pathologically enlarged nodes, by CT criteria,\tare seen.",
    "Small bilateral pleural effusions\u00a0with adjacent atelectasis, \u2264 2 cm.",
    "Findings: as discussed above. Impression: pending review.",
    "The [**Known lastname**] shunt catheter, ending in the third ventricle, is intact.",
    "1. No fracture.  2. Old infarct, 50% smaller   than before?",
    "Signal is normal on T1, T2 and FLAIR images of the cord (C2-C7).",
    "Grossly unremarkable.",
    "[**Name**]",
)
OTHER_HEADINGS = (
    *("INDICATION", "HISTORY", "TECHNIQUE", "TECHINQUE", "COMPARISON", "COMPARISIONS", "WET READ"),
    *("BONE WINDOWS", "CLINICAL INFORMATION", "REASON FOR THIS EXAMINATION", "CT/CTA", "NOTE"),
)


def sentences(rng: Random, most: int = 5) -> str:
    """Some sentences on lines of about 80 columns, each next line indented or not."""
    words = " ".join(rng.choices(SENTENCES, k=rng.randint(1, most))).split(" ")
    text, column = "", 0
    for word in words:
        if column + len(word) > 72:
            text, column = f"{text.rstrip(' ')}\n{rng.choice((' ', ' ', ' ', '', '   '))}", 0
        text, column = f"{text}{word} ", column + len(word) + 1
    return text.rstrip(" ") if rng.random() < 0.9 else text


def section(rng: Random, name: str, text: str | None = None, most: int = 5) -> str:
    text = sentences(rng, most) if text is None else text
    gap = rng.choice(("  ", "  ", " ", "\n ", "\n\n ", "\n", "\t"))
    return f"\n {name}:{gap}{text}{rng.choice(('', ' ', chr(10)))}"


def findings(rng: Random, group: str, most: int = 8) -> str:
    """A findings section under one of the group's headings, often the plain one."""
    names = tables().findings_headings[group]
    name = "findings" if rng.random() < 0.6 else rng.choice(names)
    spellings = [spelling for spelling, meant in tables().name_of.items() if meant == name]
    if spellings and rng.random() < 0.3:
        name = rng.choice(spellings)
    return section(rng, name.upper(), most=most)


def impression(rng: Random, text: str | None = None) -> str:
    names = ("IMPRESSION", "IMPRESSION", "IMPRESSION", "IMPRESSIONS", "IMRPESSION", "IMPRESSION ")
    return section(rng, rng.choice(names), text, most=3)


def head(rng: Random, title: str = "FINAL REPORT") -> str:
    return (
        f"[**2101-{rng.randint(1, 12)}-4**] 9:12 AM\n CT HEAD W/O CONTRAST   Clip # [**1234**]\n"
        f" Reason: ? bleed\n Admitting Diagnosis: FALL\n {'_' * 60}\n UNDERLYING MEDICAL CONDITION:"
        f"\n  60 year old man\n{'_' * 60}\n{' ' * rng.randint(0, 30)}{title}\n"
    )


def others(rng: Random, most: int = 3) -> str:
    names = rng.sample(OTHER_HEADINGS, rng.randint(0, most))
    return "".join(section(rng, name, most=2) for name in names)


def page_break(rng: Random) -> str:
    return f"\n{' ' * 40}(Over)\n\n {rng.choice(SENTENCES)}\n CT HEAD\n FINAL REPORT\n (Cont)"


def plain(rng: Random, group: str) -> str:
    title = rng.choice(("", f" {rng.choice(SENTENCES)}"))
    return head(rng) + title + others(rng) + findings(rng, group) + impression(rng) + "\n"


def impression_first(rng: Random, group: str) -> str:
    between = others(rng, 2) if rng.random() < 0.5 else ""
    return head(rng) + others(rng) + impression(rng) + between + findings(rng, group) + others(rng)


def two_impressions(rng: Random, group: str) -> str:
    return plain(rng, group) + others(rng, 1) + impression(rng)


def page_breaks(rng: Random, group: str) -> str:
    first, second = page_break(rng), page_break(rng)
    body = findings(rng, group) + first + sentences(rng) + second + impression(rng)
    return head(rng) + others(rng) + body


def odd_page_breaks(rng: Random, group: str) -> str:
    """Nested, lone, doubled and turned round."""
    marks = rng.choices(("(Over)", "(Cont)", "(over)", "(Over)", "(Cont)"), k=rng.randint(1, 5))
    parts = [findings(rng, group), *(f"\n {m}\n {sentences(rng, 1)}" for m in marks)]
    return head(rng) + "".join(parts) + impression(rng)


def headings_within(rng: Random, group: str) -> str:
    """Words like headings: in a line, in lower case, indented, one below the other, without end."""
    odd = rng.choice(
        (
            f"\n FINDINGS: IMPRESSION: {sentences(rng, 2)}",
            f"\n   FINDINGS: {sentences(rng, 1)}\n\n findings: {sentences(rng, 1)}",
            f"\nFINDINGS: {sentences(rng, 1)}\n FINDINGS:{rng.choice(SENTENCES)}",
            f"\n FINDINGS:\n TECHNIQUE: {sentences(rng, 1)}\n FINDINGS: {sentences(rng, 1)}",
            f"\n LUNGS: clear\n HEART (SIZE): normal\n FINDINGS, BRAIN MRI: {sentences(rng, 1)}",
            f"\n CT OF THE CHEST, ABDOMEN,\n AND PELVIS: {sentences(rng, 2)}",
        )
    )
    return head(rng) + odd + findings(rng, group) + impression(rng)


def no_final_report(rng: Random, group: str) -> str:
    title = rng.choice(("PRELIMINARY REPORT", "Final Report", "FINAL  REPORT", "FINAL REPORT"))
    return head(rng, title) + others(rng) + findings(rng, group) + impression(rng)


def missing(rng: Random, group: str) -> str:
    """No findings, no impression, empty ones, or no heading at all."""
    empty = f"\n FINDINGS: {rng.choice(('', chr(10), '  '))}"
    bodies = (
        others(rng) + impression(rng),
        others(rng) + findings(rng, group),
        findings(rng, group) + impression(rng, rng.choice(("", " ", "\n ", "[****]"))),
        empty + "\n" + findings(rng, group) + impression(rng),
        empty + impression(rng),
        sentences(rng),
        "",
    )
    return head(rng) + rng.choice(bodies)


def same_texts(rng: Random, group: str) -> str:
    text = rng.choice(SENTENCES)
    return head(rng) + section(rng, "FINDINGS", text) + impression(rng, text)


def windows(rng: Random, group: str) -> str:
    return rng.choice((plain, impression_first, page_breaks))(rng, group).replace("\n", "\r\n")


def placeholders(rng: Random, group: str) -> str:
    marks = (
        "[**a [**b**] c**]",
        "[**x\n y**]",
        "[** [1] (2) **]",
        "[**open",
        "[*no*]",
        "____",
        "**]",
    )
    text = " ".join(rng.choices(marks, k=4))
    return head(rng) + section(rng, "FINDINGS", text) + impression(rng, f'{text}, "quoted", end')


Shape = Callable[[Random, str], str]
ODD_SHAPES: tuple[Shape, ...] = (
    *(impression_first, two_impressions, page_breaks, odd_page_breaks, headings_within),
    *(no_final_report, missing, same_texts, windows, placeholders),
)


@dataclass(frozen=True)
class Mix:
    """Shares of rows; the defaults are about those of NOTEEVENTS (and more odd shapes)."""

    radiology: float = 0.25
    in_groups: float = 0.2
    odd: float = 0.3
    errors: float = 0.01


ALL_REPORTS = Mix(radiology=1.0, in_groups=1.0)


def rows(n: int | None, seed: int = 0, mix: Mix = ALL_REPORTS) -> Iterator[tuple[str, ...]]:
    """n rows of the file (None: without end), equal for equal arguments."""
    rng = Random(seed)
    exams = list(tables().group_of.items())
    made: list[tuple[str, str]] = []  # (exam, note), to be repeated now and then
    number = 0
    while n is None or number < n:
        number += 1
        category = "Radiology" if rng.random() < mix.radiology else rng.choice(OTHER_CATEGORIES)
        exam, group = rng.choice(exams)
        if made and rng.random() < 0.03:
            exam, note = rng.choice(made)
        elif rng.random() < mix.in_groups:
            shape = rng.choice(ODD_SHAPES) if rng.random() < mix.odd else plain
            note = shape(rng, group)
            made = [*made[-50:], (exam, note)]
        else:
            exam, note = rng.choice(OTHER_EXAMS), plain(rng, group)
        patient, is_error = str(rng.randint(1, 46_520)), "1" if rng.random() < mix.errors else ""
        date = f"2101-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        yield (str(number), patient, "", date, "", "", category, exam, "", is_error, note)


def write_csv(file: TextIO, table: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> None:
    """As PostgreSQL writes it: quotes where they are needed, in the header always."""
    file.write(",".join(f'"{name}"' for name in HEADER) + "\n")
    csv.writer(file, lineterminator="\n").writerows(table)


def write_large(path: Path, n_bytes: int, seed: int = 0, mix: Mix | None = None) -> None:
    """A file of about that many bytes, gzipped if its name says so, fast: some thousand rows with
    new numbers, patients and last words again and again."""
    stock = list(rows(4000, seed, mix or Mix()))
    with contextlib.ExitStack() as stack:
        binary: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("wb"))
        if path.suffix == ".gz":
            binary = stack.enter_context(gzip.GzipFile(fileobj=binary, mode="wb", compresslevel=1))
        binary.write((",".join(f'"{name}"' for name in HEADER) + "\n").encode())
        number = written = 0
        while written < n_bytes:
            text = io.StringIO()
            for row in stock:
                number += 1
                patient, note = str(number % 46_520 + 1), f"{row[-1]} Study {number}."
                csv_row = (str(number), patient, *row[2:-1], note)
                csv.writer(text, lineterminator="\n").writerow(csv_row)
            written += binary.write(text.getvalue().encode())


@dataclass(frozen=True)
class WriteConfig:
    """A file of generated notes."""

    output: str
    """File to write: .csv or .csv.gz."""
    mib: int = 100
    """Size in MiB before compression."""
    only_reports: bool = False
    """Only radiology of the groups, without other notes between."""
    seed: int = 0
    """Seed of the generator."""


@exits_cleanly
def main() -> None:
    config = parse(WriteConfig, description=(__doc__ or "").partition("\n")[0])
    try:
        write_large(
            Path(config.output),
            config.mib << 20,
            config.seed,
            ALL_REPORTS if config.only_reports else None,
        )
    except OSError as error:
        raise ConfigError(f"cannot write {config.output}: {error.strerror}") from None


if __name__ == "__main__":
    main()
