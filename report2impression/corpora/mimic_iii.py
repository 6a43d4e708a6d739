"""MIMIC-III notes -> (findings, impression) pairs: the RadSum23 data, rebuilt from your own copy.

    report2impression mimic --notes NOTEEVENTS.csv.gz --mode corrected --output_dir data/mimic

`radsum23` gives the published .tok files byte for byte, with their defects, and says group by group
whether they are the same; `corrected` mends the defects and splits by patient. Both write
{train,validation,test}.jsonl, dropped.csv (each report that gave no pair, by row number and id,
and why; never its text), summary.json, and LICENCE.json, the mark of credentialed data.

The file is read once, in blocks of whole records: other processes find the reports in a block and
apply the rules, and the pairs come back in the file's order. The pairs go to a folder that takes
its final name only when all is written. No message and no log holds text of a note.
"""

import csv
import itertools
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from report2impression.corpora.notes_csv import Layout, NotesFile, unquote
from report2impression.corpora.pair_files import (
    LAST_LINE,
    PatientSplit,
    PublishedSplit,
    TokFile,
    UnseenGroups,
)
from report2impression.corpora.radsum23 import Mode, Style, pair_of, tables
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, DataError, exits_cleanly
from report2impression.program.files import new_folder
from report2impression.program.privacy import for_spreadsheet
from report2impression.program.process import in_order
from report2impression.program.terminal import print_table
from report2impression.reading.licence import MIMIC_III, write_mark
from report2impression.reading.pairs import SPLITS, Pair

COLUMNS = ("ROW_ID", "SUBJECT_ID", "CATEGORY", "DESCRIPTION", "ISERROR", "TEXT")
IS_ERROR, NO_PATIENT = "marked as an error (ISERROR)", "no patient (SUBJECT_ID)"
MALFORMED = "malformed row: "


@dataclass(frozen=True)
class NotesConfig:
    """Pairs from NOTEEVENTS."""

    notes: str
    """NOTEEVENTS.csv or NOTEEVENTS.csv.gz of MIMIC-III 1.4."""
    output_dir: str
    """Folder for the pairs; must not exist, or be empty."""
    mode: Mode = "corrected"
    """radsum23: the published split, defects included; corrected: mended, split by patient."""
    style: Style = "plain"
    """hub: the look of the copy on the hub (no punctuation, ____); the .tok files stay plain."""
    unseen_groups: UnseenGroups = "test"
    """corrected: the five test-only groups: test = pairs of test patients only, split = as all."""
    plausible_only: bool = False
    """corrected: drop findings < 10 words, impressions < 2 words, findings not the longer one."""
    encoding: Literal["utf-8", "cp1252", "latin-1"] = "utf-8"
    """Encoding of the notes."""
    workers: int = 0
    """Processes; 0 = one per core, 1 = this one alone."""


@dataclass(frozen=True)
class Job:
    """What a process must know to find the pairs in a block."""

    layout: Layout
    mode: Mode
    style: Style
    encoding: str


@dataclass(frozen=True, slots=True)
class Report:
    """A report of one of the groups, or a malformed row (of unknown group: "")."""

    row: int  # counted from 0 at the block's first record
    id: str
    patient: str
    group: str
    pair: tuple[str, str] | str  # (findings, impression), or the reason why there is none


@dataclass(frozen=True)
class Block:
    """What one block of the file holds."""

    n_rows: int
    n_radiology: int
    reports: list[Report]


@cache
def _group_of(encoding: str) -> dict[bytes, str]:
    return {exam.encode(encoding): group for exam, group in tables().group_of.items()}


def read_block(job: Job, block: bytes) -> Block:
    """The reports of the groups in a block of whole records."""
    reports: list[Report] = []
    group_of, n_radiology, row = _group_of(job.encoding), 0, -1
    for row, fields in enumerate(job.layout.records(block)):
        if isinstance(fields, int):
            n = job.layout.n_columns
            reason = f"{fields} fields instead of {n}" if fields else "a quote that does not end"
            reason = "text after an end quote" if fields == n else reason
            reports.append(Report(row, "", "", "", MALFORMED + reason))
        elif unquote(fields[2]) == b"Radiology":
            n_radiology += 1
            if group := group_of.get(unquote(fields[3])):
                reports.append(_report(job, row, group, fields))
    return Block(row + 1, n_radiology, reports)


def _report(job: Job, row: int, group: str, fields: tuple[bytes, ...]) -> Report:
    try:
        row_id, patient, _, _, is_error, note = (
            unquote(field).decode(job.encoding) for field in fields
        )
    except UnicodeDecodeError:
        return Report(row, "", "", group, f"{MALFORMED}not {job.encoding}")
    row_id, patient = row_id.strip(), patient.strip()
    pair: tuple[str, str] | str
    if job.mode == "corrected" and is_error.strip() not in ("", "0"):
        pair = IS_ERROR
    elif job.mode == "corrected" and not patient:
        pair = NO_PATIENT
    else:
        # The .tok files stay plain: there the style waits until they are written.
        pair = pair_of(note, group, job.mode, job.style if job.mode == "corrected" else "plain")
    return Report(row, row_id, patient, group, pair)


def read_blocks(job: Job, blocks: Iterable[bytes], workers: int) -> Iterator[Block]:
    """`read_block` of each, in their order, in that many processes; few blocks wait at a time."""
    if workers == 1:
        yield from (read_block(job, block) for block in blocks)
        return
    # Forked processes share our pages; other systems start each from nothing.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from in_order(pool, partial(read_block, job), blocks, ahead=2 * workers)
    except BrokenProcessPool:
        raise ConfigError(
            "a process of the pool was killed (out of memory?); try again with --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class Log:
    """Counts all rows and names each report without a pair in dropped.csv."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._csv.writerow(("row", "id", "group", "reason"))
        self.n_rows = self.n_radiology = 0
        self.reports: Counter[str] = Counter()  # by group, before any rule
        self.dropped: Counter[str] = Counter()  # by reason
        self.malformed: list[int] = []  # the first ten rows
        self.last: dict[str, tuple[int, Report]] = {}  # by group, of those with a pair

    def drop(self, row: int, report: Report, reason: str) -> None:
        self.dropped[reason] += 1
        if reason.startswith(MALFORMED) and len(self.malformed) < 10:
            self.malformed.append(row)
        cells = (report.id, report.group, reason)
        self._csv.writerow((row, *map(for_spreadsheet, cells)))

    def close(self) -> None:
        self._file.close()


def read_notes(config: NotesConfig, split: PublishedSplit | PatientSplit, log: Log) -> None:
    """All pairs of the file into `split`, what gives none into `log`."""
    with NotesFile(Path(config.notes).expanduser(), COLUMNS, COLUMNS[:2]) as notes:
        job = Job(notes.layout, config.mode, config.style, config.encoding)
        workers = config.workers or os.cpu_count() or 1
        blocks = read_blocks(job, notes.blocks(), workers)
        first = list(itertools.islice(blocks, 1))  # forks, before tqdm starts a thread
        with tqdm(total=notes.n_bytes, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
            for block in itertools.chain(first, blocks):
                for report in block.reports:
                    row = log.n_rows + report.row + 1  # records, from 1, the header not counted
                    log.reports.update([report.group] if report.group else [])
                    if isinstance(report.pair, str):
                        reason = report.pair
                    else:
                        pair = Pair(report.id, *report.pair, report.group, report.patient)
                        reason = split.add(pair)
                        log.last[report.group] = row, report
                    if reason:
                        log.drop(row, report, reason)
                log.n_rows += block.n_rows
                log.n_radiology += block.n_radiology
                bar.update(notes.position() - bar.n)


def prepare(config: NotesConfig) -> dict[str, Any]:
    """Write the folder and return its summary. Raises ConfigError or DataError."""
    if config.workers < 0:
        raise ConfigError(f"--workers {config.workers}: a number of processes, or 0 for all cores")
    if config.mode == "radsum23" and (config.unseen_groups != "test" or config.plausible_only):
        raise ConfigError("--unseen_groups and --plausible_only belong to --mode corrected")
    split: PublishedSplit | PatientSplit
    with new_folder(Path(config.output_dir).expanduser().resolve()) as folder:
        log = Log(folder / "dropped.csv")
        if config.mode == "radsum23":
            split = PublishedSplit(folder, config.style)
        else:
            split = PatientSplit(folder, config.unseen_groups, config.plausible_only)
        read_notes(config, split, log)
        files = split.finish()
        for group in split.lost:
            log.drop(*log.last[group], LAST_LINE)
        log.close()
        if not split.counts.total():
            raise DataError(
                f"{config.notes}: no pair in {log.n_rows:,} rows ({log.n_radiology:,} of "
                f"radiology, {log.reports.total():,} of the groups); is it NOTEEVENTS of MIMIC-III?"
            )
        summary = _summary(config, split.counts, files, log)
        text = json.dumps(summary, indent=1) + "\n"
        (folder / "summary.json").write_text(text, encoding="utf-8")
        write_mark(folder, MIMIC_III)
    return summary


def _summary(
    config: NotesConfig, counts: Counter[tuple[str, str]], files: list[TokFile], log: Log
) -> dict[str, Any]:
    """All figures, without time or place: equal for equal notes and settings."""
    groups = {}
    for group in (*tables().split_groups, *tables().test_groups):
        own = [file for file in files if file.group == group]
        groups[group] = {
            "reports": log.reports[group],
            "published_reports": tables().n_reports[group],
            "pairs": sum(counts[group, split] for split in SPLITS),
            "published_pairs": tables().n_pairs[group],
            **{split: counts[group, split] for split in SPLITS},
            "files": len(own),
            "files_as_published": sum(file.md5 == file.published_md5 for file in own),
        }
    return {
        "mode": config.mode,
        "style": config.style,
        "rows": log.n_rows,
        "radiology_rows": log.n_radiology,
        "dropped": dict(sorted(log.dropped.items())),
        "malformed_rows": log.malformed,
        "groups": groups,
        "files": [asdict(file) for file in files],
    }


def show(summary: dict[str, Any], folder: str) -> None:
    """The summary as tables on stdout."""
    published = summary["mode"] == "radsum23"
    groups, keys = summary["groups"], ("reports", "pairs", *SPLITS)
    rows = [[name, *(row[key] for key in keys)] for name, row in groups.items()]
    rows.append(["all", *(sum(row[key] for row in groups.values()) for key in keys)])
    columns = ["group", *keys]
    if published:
        columns.append("as published?")
        rows = [
            [*row, v] for row, v in zip(rows, (*map(_verdict, groups.values()), ""), strict=True)
        ]
    print_table(f"{summary['mode']} pairs in {folder}", columns, rows, left=(0, 6))
    print_table(
        "Without a pair (see dropped.csv)", ["", "reports"], list(summary["dropped"].items())
    )
    if summary["malformed_rows"]:
        print(
            f"malformed rows, the first of them: {', '.join(map(str, summary['malformed_rows']))}"
        )
    if published:
        files = summary["files"]
        same = sum(file["md5"] == file["published_md5"] for file in files)
        told = (
            "this is the published split, byte for byte"
            if same == len(files)
            else "not the published split (expected and found MD5 sums: summary.json); with the "
            "whole NOTEEVENTS of MIMIC-III 1.4 it would be"
        )
        print(f"{same} of {len(files)} files have the published MD5 sum: {told}")


def _verdict(row: dict[str, int]) -> str:
    """`same`, or what differs with expected and found figures."""
    differs = [
        f"{row[f'published_{what}']:,} {what} expected"
        for what in ("reports", "pairs")
        if row[what] != row[f"published_{what}"]
    ]
    if row["files_as_published"] != row["files"]:
        differs.append(f"{row['files_as_published']} of {row['files']} MD5 sums agree")
    return f"differs: {', '.join(differs)}" if differs else "same"


@exits_cleanly
def main() -> None:
    config = parse(NotesConfig, description=(__doc__ or "").partition("\n")[0])
    show(prepare(config), config.output_dir)


if __name__ == "__main__":
    main()
