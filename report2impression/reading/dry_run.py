"""What would be read, without reading it into memory: `--dry_run` of train_loop.py and eval.py.

For every split of every source: format, rows, bad rows by reason, columns, lengths in words. No
text is shown and nothing is written, no model loaded. What the run itself would refuse (a missing
split, a file that is no such format) is refused here, too.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from report2impression.program.terminal import print_table
from report2impression.reading.options import SourceConfig
from report2impression.reading.pairs import MARKS, BadRow, PairTable, show_names
from report2impression.reading.sources import open_source

HEAD = ("split", "file", "format", "rows", "bad")
LENGTHS = ("prompt words", "longest", "impression words", "longest")


def dry_run(config: SourceConfig, splits: Sequence[str]) -> None:
    """Read every row once, in constant memory, and tell what was found. ConfigError, DataError."""
    if os.environ.get("RANK", "0") != "0":
        return
    rows, notes = [], []
    for split in splits:
        sources = config.sources() if split == "train" else config.sources()[:1]
        for number, source in enumerate(sources):
            found = open_source(source, split)
            row, bad = _look(found)
            rows.append(row)
            is_weighted = config.weights and split == "train"
            weight = f" (weight {config.weights[number]:g})" if is_weighted else ""
            notes += [f"{split} of {source.path}{weight}: {_columns(found)}", *bad]
    print_table("Dry run: what would be read", HEAD + LENGTHS, rows, digits=1)
    print("\n".join(notes))


def _look(found: PairTable) -> tuple[list[object], list[str]]:
    """A row of the table, and a line for each reason why rows are bad."""
    n_rows, reasons = 0, Counter[str]()
    first: dict[str, str] = {}
    total, longest = [0, 0], [0, 0]
    for item in replace(found, stops=False).stream():
        n_rows += 1
        if isinstance(item, BadRow):
            reasons[item.reason] += 1
            first.setdefault(item.reason, item.where)
            continue
        for side, text in enumerate((item.prompt, item.impression)):
            n_words = len(text.split())
            total[side] += n_words
            longest[side] = max(longest[side], n_words)
    n_bad = reasons.total()
    means = [words / (n_rows - n_bad) for words in total]
    lengths = [figure for side in (0, 1) for figure in (means[side], longest[side])]
    row: list[object] = [found.split, found.table.name, found.table.format, n_rows, n_bad, *lengths]
    notes = []
    end = "stops the run" if found.stops else "left out"
    for reason, count in reasons.most_common():
        notes.append(f"  {count:,} bad: {reason} (first: {first[reason]}; {end})")
    return row, notes


def _columns(found: PairTable) -> str:
    """Which column is what, and which are not used."""
    columns, there = found.columns, found.table.columns
    told = [f"prompt = {columns.source}", f"impression = {columns.target}"]
    told += [
        f"{part} = {name}" + ("" if there else " (where a row has it)")
        for part, name in zip(MARKS, columns.marks, strict=True)
        if there is None or name in there
    ]
    unused = [name for name in there or () if name not in columns.names()]
    return ", ".join(told) + (f"; not used: {show_names(unused)}" if unused else "")
