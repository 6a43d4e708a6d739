"""Time and memory of corpora that do not fit in memory: tokenising, opening, planning, reading.

`bench.scaling` runs each size in a process of its own. Resident peaks are those of the whole
process, libraries included. What is mapped from disk is told apart: its pages are the system's
cache, and go when memory is needed for something else.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from bench.common import BenchConfig
from bench.timing import now
from data import ExtractDataset, extract_sides
from report2impression.batching.collation import collator
from report2impression.batching.dataset import batches
from report2impression.batching.mapped import Growing, arrays_of, encode
from report2impression.batching.plan import plan_epoch
from report2impression.batching.token_store import (
    COUNTS,
    growing_rows,
    layout,
    opened,
    survey,
    tokenised,
)
from report2impression.reading.sources import read_pairs, stream_pairs
from report2impression.weights.tokenizer import load_tokenizer

CHUNK = 20_000  # made-up reports at a time: little memory beside what is measured
VOCABULARY, BATCH, N_READ = 32_000, 32, 10_000  # ids, reports per step, steps read
GIB = 2**30

Figures = dict[str, float]


def memory_mib(key: str) -> float:
    """`VmRSS`, `VmHWM` (its peak since `forget_peak`) or `RssAnon` (what is not mapped from
    files) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def forget_peak() -> None:
    """Linux resets the resident set's high-water mark on request."""
    Path("/proc/self/clear_refs").write_text("5")


def made_up(n: int, seed: int) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """(names, lengths of either side) in chunks; lengths as those of long reports."""
    for begin in range(0, n, CHUNK):
        size, draw = min(CHUNK, n - begin), np.random.default_rng([seed, begin])
        source = np.clip(draw.lognormal(4.7, 0.5, size), 1, 512).astype(np.int64)
        target = np.clip(draw.lognormal(3.4, 0.7, size), 1, 256).astype(np.int64)
        yield [f"train-{begin + i}" for i in range(size)], [source, target]


def store(folder: Path, n: int, config: BenchConfig) -> ExtractDataset:
    """A corpus of made-up ids in the files that training reads; written, or found there."""
    sides = extract_sides(config.data)

    def fill(arrays: Mapping[str, Growing]) -> None:
        rows, draw = growing_rows(arrays, sides), np.random.default_rng(config.seed)
        for names, lengths in made_up(n, config.seed):
            rows["names"].append(*encode(names))
            for side, sizes in zip(sides, lengths, strict=True):
                ids = draw.integers(3, VOCABULARY, int(sizes.sum()), dtype=np.int32)
                rows[side.name].append(ids, sizes)
        for name in COUNTS:
            arrays[name].append(np.zeros(len(sides)))

    stored = opened(arrays_of(folder / "corpus", layout(sides), fill), sides)
    return ExtractDataset("train", stored.ids, stored.sides["source"], stored.sides["target"])


def corpus(n: int, config: BenchConfig, folder: Path) -> Figures:
    """Write, open, plan and read a corpus of n made-up reports."""
    found: Figures = {"reports": n, "libraries_mib": memory_mib("VmRSS")}
    begin = now()
    store(folder, n, config)
    found |= {"write_s": now() - begin, "write_peak_mib": memory_mib("VmHWM")}
    files = [file for file in (folder / "corpus").iterdir() if file.is_file()]
    found["cache_bytes_per_report"] = sum(file.stat().st_size for file in files) / n

    forget_peak()
    begin = now()
    dataset = store(folder, n, config)
    found |= {"open_s": now() - begin, "open_peak_mib": memory_mib("VmHWM")}

    forget_peak()
    begin = now()
    steps = plan_epoch(dataset.source_lengths, dataset.target_lengths, global_batch_size=BATCH)
    found |= {"plan_s": now() - begin, "plan_peak_mib": memory_mib("VmHWM")}

    shards = (step.micro_batches[0][0] for step in islice(steps, N_READ))
    collate = collator(packed=True, start_id=0, pad_id=0, device=torch.device("cpu"))
    begin, own, n_read = now(), 0.0, 0
    for number, batch in enumerate(batches(dataset, shards, collate)):
        n_read += sum(len(grid.slots) for grid in batch.sources)
        if number % 100 == 0:
            own = max(own, memory_mib("RssAnon"))
    found |= {"read_reports_per_s": n_read / (now() - begin), "read_own_mib": own}
    return found


def tokenising(n: int, config: BenchConfig, folder: Path) -> Figures:
    """Survey and tokenise n reports, the given ones again and again, from a JSONL file."""
    source = folder / "data"
    source.mkdir()
    with open(source / "train.jsonl", "w", encoding="utf-8") as file:
        pairs = read_pairs(config.data, "train").pairs
        for i, pair in enumerate(islice(cycle(pairs), n)):
            row = {"id": f"r{i}", "prompt": pair.prompt, "impressions": pair.impression}
            file.write(json.dumps(row) + "\n")
    del pairs
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    data = replace(config.data, path=str(source), source_column=None, target_column=None)
    stream = partial(stream_pairs, data, "train")
    tokenised(
        survey("train", lambda: islice(stream(), 100)),
        lambda: islice(stream(), 100),
        extract_sides(data),
        tokenizer,
        folder=str(folder / "warm"),
    )
    forget_peak()
    found: Figures = {"reports": n, "loaded_mib": memory_mib("VmRSS")}
    begin = now()
    seen = survey("train", stream)
    found["survey_reports_per_s"] = n / (now() - begin)
    begin = now()
    stored = tokenised(seen, stream, extract_sides(data), tokenizer, folder=str(folder / "cache"))
    taken, n_tokens = now() - begin, sum(len(side.ids) for side in stored.sides.values())
    return found | {
        "tokenise_reports_per_s": n / taken,
        "tokens_per_s": n_tokens / taken,
        "peak_mib": memory_mib("VmHWM"),
    }
