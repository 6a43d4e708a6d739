"""How fast does `report2impression.corpora.mimic_iii` read notes, and how much memory does it take?

    python -m bench.corpora.prepare --mib 1024

Each row is a run of the command on a file of generated notes: one with the shares of NOTEEVENTS
(a quarter radiology, one note in twenty gives a pair), one in which every note is a report of the
groups, and the first one gzipped. MB/s are those of CSV text, per second of the run and per second
of its processes' CPU time; memory is the largest sum over all processes, of private and of a fair
share of shared pages (PSS; resident sets count shared pages in each process). The last line is
JSON.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.children import watched
from bench.corpora.notes import ALL_REPORTS, Mix, write_large
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table

FILES = {
    "as NOTEEVENTS": ("mixed.csv", Mix()),
    "reports only": ("reports.csv", ALL_REPORTS),
    "gzipped": ("mixed.csv.gz", Mix()),
}


@dataclass(frozen=True)
class PrepareConfig:
    """Speed and memory of report2impression.corpora.mimic_iii."""

    mib: int = 256
    """Size of each file of notes, before compression."""
    files: str = ",".join(FILES)
    """Rows to measure, separated by commas."""
    modes: str = "radsum23,corrected"
    """Modes to measure, separated by commas."""
    workers: int = 0
    """Processes; 0 = one per core."""
    folder: str = ""
    """Where the files are made and deleted; default: the system's temporary folder."""


def measure(notes: Path, mode: str, workers: int, output: Path) -> dict[str, float]:
    """One run of the command: seconds, MiB of the largest sums."""
    command = [sys.executable, "-m", "report2impression", "mimic", f"--notes={notes}"]
    command += [f"--mode={mode}", f"--workers={workers}", f"--output_dir={output}"]
    return watched(command, "Pss", "Rss")


@exits_cleanly
def main() -> None:
    config = parse(PrepareConfig, description=(__doc__ or "").partition("\n")[0])
    cores = config.workers or os.cpu_count() or 1
    results, rows = {}, []
    with tempfile.TemporaryDirectory(dir=config.folder or None) as folder:
        for name in config.files.split(","):
            if name not in FILES:
                raise ConfigError(f"--files {name!r} is not one of {', '.join(FILES)}")
            file, mix = FILES[name]
            notes = Path(folder) / file
            write_large(notes, config.mib << 20, mix=mix)
            for mode in config.modes.split(","):
                output = Path(folder) / mode
                found = measure(notes, mode, config.workers, output)
                summary = json.loads((output / "summary.json").read_text())
                found["pairs"] = sum(group["pairs"] for group in summary["groups"].values())
                for unit in ("seconds", "cpu_s"):
                    found[f"mb_per_{unit}"] = (config.mib << 20) / 1e6 / found[unit]
                results[f"{name}, {mode}"] = found
                figures = ("seconds", "mb_per_seconds", "mb_per_cpu_s")
                memory = (f"{found[key]:,.0f}" for key in ("peak_pss_mib", "peak_rss_mib"))
                rows.append(
                    (f"{name}, {mode}", int(found["pairs"]), *(found[k] for k in figures), *memory)
                )
                shutil.rmtree(output)
            notes.unlink()
    title = f"report2impression.corpora.mimic_iii, {config.mib} MiB of CSV, {cores} processes"
    columns = ("notes, mode", "pairs", "s", "MB/s", "MB per core s", "MiB (PSS)", "MiB (RSS)")
    print_table(title, columns, rows, digits=1)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
