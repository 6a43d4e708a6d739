"""The program behind extract.py: input -> blocks -> results, in constant memory, whatever kills it.

A block is so many reports that follow one another in the input; a shard, or a process of a launch,
takes every n-th. So all of them decode the same batches as one process alone would, and a resumed
one does so, too.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from report2impression.extracting.impressions import DRAFT, STATUSES, TRUNCATED, Impression
from report2impression.extracting.inputs import Input, open_input
from report2impression.extracting.options import ExtractConfig, ExtractorConfig
from report2impression.extracting.outputs import (
    Done,
    Lines,
    StandardOutput,
    as_written,
    done_ids,
    header,
    output_file,
    writer,
)
from report2impression.extracting.reports import FINDINGS, IMPRESSIONS, WHOLE, Columns, Report
from report2impression.extracting.structuring import Structurer
from report2impression.program.errors import ConfigError, DataError, PreemptedError
from report2impression.program.process import (
    give_back_memory,
    keep_few_products,
    keep_freed_memory,
    loaded,
)
from report2impression.program.terminal import print_table
from report2impression.reading.licence import Mark, mark_of, read_mark, write_mark
from report2impression.runs.recipe import TrainConfig
from report2impression.scoring.language import n_not_english, note_on_language

LONGEST_WAIT = 30 * 24 * 3600.0  # seconds: the processes of a launch meet at the end alone


class Extracts(Protocol):
    """An Extractor, or a Structurer."""

    def extract(self, reports: Sequence[Report]) -> list[Impression]: ...


def run(config: ExtractConfig, trained: TrainConfig) -> None:
    """All of it. ConfigError, DataError, StorageError."""
    file, standard = output_file(config), StandardOutput(sys.stdout.buffer)
    with redirect_stdout(sys.stderr) if file is None else nullcontext():
        given = open_input(config, columns_of(config, trained))
        group = Group(config)
        group.first(lambda: _prepare(config, file))
        extractor = _extractor(config, group.device)
        if file is None and given.is_one and config.kind() == "text":
            (found,) = extractor.extract(list(given.reports()))
            _print_one(found, standard)
            return
        loaded()
        work = Extraction(config, group.rank, group.n_ranks)
        done = _done(config, file)
        output = standard if file is None else Lines(file)
        try:
            work.over(given, extractor, output, done)
        except KeyboardInterrupt:
            raise PreemptedError("stopped: the same command with --resume goes on") from None
        finally:
            output.close()
        group.tell(work.counts, file)


def columns_of(config: ExtractConfig, trained: TrainConfig) -> Columns:
    """Which columns are looked for."""
    marks: dict[str, Any] = {"asked": config.column, "id": config.id_column}
    marks |= {"group": config.group_column}
    if config.structure_only:
        sources = (*FINDINGS, *WHOLE)
        return Columns(as_is=IMPRESSIONS, whole=WHOLE, sources=sources, **marks)
    own = filter(None, [trained.data.source_column])
    return Columns(as_is=(*own, *FINDINGS), **marks)


def _extractor(config: ExtractConfig, device: Any) -> Extracts:
    if config.adapter is None:
        return Structurer(config)
    from report2impression.extracting.extractor import Extractor

    options = {option.name: getattr(config, option.name) for option in fields(ExtractorConfig)}
    return Extractor(config.adapter, base=config.model, device=device, **options)


class Group:
    """The processes of a launch; one alone loads nothing for it."""

    def __init__(self, config: ExtractConfig) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.start = time.perf_counter()
        self._accelerator: Any = None
        self.device: Any = "cpu" if config.cpu else None
        keep_few_products()
        if self.n_ranks > 1:
            from report2impression.runs.processes import start_processes

            self._accelerator = start_processes(
                cpu=config.cpu, peer_timeout=LONGEST_WAIT, check=lambda _: None
            )
            self.device = self._accelerator.device
        elif config.adapter is not None:
            keep_freed_memory()

    def first(self, action: Callable[[], None]) -> None:
        """One process does it before any goes on; its UserError is that of all."""
        if self._accelerator is None:
            action()
            return
        from report2impression.runs.processes import on_rank_0

        on_rank_0(self._accelerator, action)

    def tell(self, counts: Counter[str], file: Path | None) -> None:
        """The summary of all processes: counts and shares, no text."""
        if self._accelerator is not None:
            from accelerate.utils import gather_object

            counts = sum(gather_object([counts]), Counter[str]())
            self._accelerator.end_training()
        if self.rank == 0:
            _tell(counts, time.perf_counter() - self.start, file)


@dataclass
class Extraction:
    """The blocks of one process."""

    config: ExtractConfig
    rank: int = 0
    n_ranks: int = 1
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) from 0: this process's of all processes of all shards."""
        shard, n_shards = self.config.part()
        return (shard - 1) * self.n_ranks + self.rank, n_shards * self.n_ranks

    def over(
        self, given: Input, extractor: Extracts, output: Lines | StandardOutput, done: Done
    ) -> None:
        """Every report of this part whose id is not done."""
        line, kind = writer(self.config), self.config.kind()
        with self._bar(given) as bar:
            for block in self._blocks(given):
                there = [done.take(as_written(report.id, kind)) for report in block]
                self.counts["there already"] += sum(there)
                wanted = _to_extract(there)
                found = extractor.extract([block[i] for i in wanted])
                new = [one for i, one in zip(wanted, found, strict=True) if not there[i]]
                output.append(map(line, new))
                self._count(new)
                texts = (block[i].text for i in wanted if not there[i])
                self.counts["not English"] += n_not_english(texts)
                bar.update(len(block))
                give_back_memory()

    def _blocks(self, given: Input) -> Iterator[list[Report]]:
        number, n = self.part
        blocks = _in_blocks(given.reports(), self.config.block_size)
        return (block for i, block in enumerate(blocks) if i % n == number)

    def _bar(self, given: Input) -> Any:
        """With the time left where somebody looks at it: it takes a look through the input."""
        shown = self.rank == 0 and sys.stderr.isatty()
        total = sum(map(len, self._blocks(given))) if shown and given.can_count else None
        return tqdm(total=total, desc="extracting", unit="report", disable=not shown)

    def _count(self, found: Sequence[Impression]) -> None:
        self.counts.update(one.status for one in found)
        self.counts["flagged"] += sum(bool(one.unsupported) for one in found)


def _in_blocks(reports: Iterator[Report], size: int) -> Iterator[list[Report]]:
    return iter(lambda: list(islice(reports, size)), [])


def _to_extract(there: Sequence[bool]) -> list[int]:
    """Which of a block's reports to decode: where a kill tore it, all of them, so that the batch is
    the one that it was; else those that are new."""
    n_done = sum(there)
    torn = 0 < n_done < len(there) and all(there[:n_done])
    return [i for i, is_there in enumerate(there) if torn or not is_there]


def _prepare(config: ExtractConfig, file: Path | None) -> None:
    """Make the file, or refuse it, before anything is loaded."""
    if file is None:
        return
    if not config.resume and file.exists() and file.stat().st_size:
        raise ConfigError(
            f"{file} is there: --resume goes on with it; else give another --output, or remove it"
        )
    Lines(file, header(config.kind())).close()
    mark = _mark(config)
    if mark is not None and mark.credentialed:
        write_mark(file.parent, mark)
    print(f"writing to {file}: REPORT TEXT, readable by its owner only")


def _mark(config: ExtractConfig) -> Mark | None:
    """That of the reports, or of the weights: whichever is credentialed."""
    marks: list[Mark | None] = []
    if config.input != "-":
        path = Path(config.input).expanduser()
        beside = read_mark(path.parent) if path.is_file() else None
        marks.append(beside or mark_of(path.name if path.is_file() else config.input))
    if config.adapter is not None:
        marks.append(read_mark(Path(config.adapter).expanduser()))
    known = [mark for mark in marks if mark is not None]
    return next((mark for mark in known if mark.credentialed), None)


def _done(config: ExtractConfig, file: Path | None) -> Done:
    if file is None or not config.resume:
        return Done()
    return Done(done_ids(file, config.kind()))


def _print_one(found: Impression, standard: StandardOutput) -> None:
    """A single report's impression alone. DataError: it has none."""
    if found.status not in (DRAFT, TRUNCATED):
        raise DataError(f"no impression ({found.status}): {found.reason}")
    if found.reason:
        print(f"{found.status}: {found.reason}", file=sys.stderr)
    standard.append([f"{found.text}\n".encode()])


def _tell(counts: Counter[str], seconds: float, file: Path | None) -> None:
    n_new = sum(counts[status] for status in STATUSES)
    names = {"draft": "a draft", "truncated": "a draft, something was cut", "error": "unreadable"}
    rows: list[tuple[Any, ...]] = [
        (names.get(status, status.replace("_", " ")), counts[status], _share(counts[status], n_new))
        for status in STATUSES
    ]
    rows.append(("not all in the report", counts["flagged"], _share(counts["flagged"], n_new)))
    if counts["there already"]:
        rows.append(("there already", counts["there already"], None))
    print_table(f"{n_new:,} reports", ("", "reports", "%"), rows, digits=1)
    print(f"{n_new / max(seconds, 1e-9):,.1f} reports/s, {seconds:,.1f} s with loading")
    if note := note_on_language(counts["not English"], n_new):
        print(f"note: {note}")
    if file is not None:
        print(f"written: {file}")


def _share(count: int, n: int) -> float | None:
    return 100 * count / n if n else None
