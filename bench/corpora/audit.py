"""How long does the audit take on a corpus of 80,000 pairs, and how much memory?

    python -m bench.corpora.audit

The pairs are synthetic reports, each joined of several so that they are as long as those of CT and
MR; one in ten repeats another word for word and one in ten nearly. The command runs as a user would
run it, with a tokenizer, in a process of its own. Memory is the largest sum over all its processes
of private and of a fair share of shared pages (PSS). The last line is JSON.
"""

import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.children import watched
from report2impression.corpora.synthetic import generate
from report2impression.program.config import parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
SHOWN = ("shared_input", "repeated_pair", "near_shared", "near_repeated")


@dataclass(frozen=True)
class AuditBenchConfig:
    """Speed and memory of report2impression.audit.audit."""

    pairs: int = 80_000
    """Pairs in all three splits."""
    joined: int = 2
    """Synthetic reports in each pair; one has about 70 words."""
    tokenizer: str = "assets/tiny_base"
    """Folder of a T5 base."""


def write_pairs(folder: Path, n: int, joined: int) -> float:
    """Three splits of n pairs; returns the mean number of words of an input."""
    rng = random.Random(0)
    reports = generate(n * joined, 0)
    rows: list[dict[str, str]] = []
    for index in range(n):
        parts = reports[index * joined : (index + 1) * joined]
        row = {
            "prompt": " ".join(part.prompt for part in parts),
            "impressions": " ".join(part.impression for part in parts),
        }
        if rows and index % 10 < 2:
            row = dict(rng.choice(rows))
            row["prompt"] += " for comparison" * (index % 10)
        rows.append(row | {"id": f"pair-{index}", "group": parts[0].group})
    words = sum(len(row["prompt"].split()) for row in rows) / n
    rng.shuffle(rows)
    for name, share in SHARES.items():
        part, rows = rows[: round(share * n)], rows[round(share * n) :]
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return words


def measure(data: Path, output: Path, tokenizer: str) -> dict[str, float]:
    """One run of the command: wall and CPU seconds, largest memory in MiB."""
    command = [sys.executable, "-m", "report2impression", "audit", f"--data.path={data}"]
    command += [f"--tokenizer={tokenizer}", f"--output_dir={output}"]
    return watched(command, "Pss")


@exits_cleanly
def main() -> None:
    config = parse(AuditBenchConfig, description=(__doc__ or "").partition("\n")[0])
    with tempfile.TemporaryDirectory() as name:
        data, output = Path(name) / "data", Path(name) / "out"
        data.mkdir()
        words = write_pairs(data, config.pairs, config.joined)
        found = measure(data, output, config.tokenizer)
        checks = json.loads((output / "audit.json").read_text())["checks"]
    counts = {name: sum(checks[name]["pairs"].values()) for name in SHOWN}
    columns = ["pairs", "words of an input", "s", "CPU s", "MiB (PSS)"]
    row = [f"{config.pairs:,}", words, *found.values()]
    print_table("report2impression audit", columns, [row], digits=1)
    print_table("Pairs flagged", ["check", "pairs"], [*counts.items()])
    print(json.dumps({"pairs": config.pairs, "words": words, **found, **counts}))


if __name__ == "__main__":
    main()
