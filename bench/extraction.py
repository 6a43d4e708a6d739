"""Reports through extract.py: its texts beside eval.py's, and what it costs beside generation.

    python -m bench.extraction --adapter RUN/adapter --data.path DIR [--n 1000]
    python -m bench.extraction --adapter RUN/adapter --many FILE.jsonl       and its peak of memory

Seconds are CPU seconds of this process, after loading: other programs on the machine do not count.
`--many` is read by fresh processes of extract.py, once its first 1/50 and once all of it. The last
line is JSON.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import cpu_name
from bench.start import ROOT
from eval import generate_both
from report2impression.batching.tokens import Tokens
from report2impression.decoding.generate import Generator
from report2impression.decoding.options import Output
from report2impression.extracting.extraction import Extraction, columns_of
from report2impression.extracting.extractor import Extractor
from report2impression.extracting.inputs import open_input
from report2impression.extracting.options import ExtractConfig
from report2impression.extracting.outputs import Done, Lines
from report2impression.program.config import load, parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.process import keep_freed_memory
from report2impression.program.terminal import print_table
from report2impression.reading.pairs import Pair
from report2impression.runs.evaluation import EvalConfig, EvalData
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.folders import find_trained

PART = 50
TENTHS = (1, 5, 10)  # of the output, at which the resident memory is told
# A small process starts the program: a child's peak is no less than what its parent had. Each line:
# bytes written, KiB resident; the last is the peak.
WAITS = """
import os, subprocess, sys, time
output, *program = sys.argv[1:]
child = subprocess.Popen(program).pid
while not (ended := os.wait4(child, os.WNOHANG))[0]:
    with open(f"/proc/{child}/status") as status:
        resident = [line.split()[1] for line in status if line.startswith("VmRSS")]
    if resident and os.path.exists(output):
        print(os.path.getsize(output), *resident, flush=True)
    time.sleep(1)
print(ended[2].ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(ended[1]))
"""


@dataclass(frozen=True)
class ExtractionConfig:
    """What is extracted."""

    adapter: str
    """What a run trained (RUN/adapter)."""
    n: int = 1000
    """Test reports; 0 or more than there are = all."""
    max_new_tokens: int = 128
    """Longest impression in tokens."""
    many: str = ""
    """JSONL of many reports, whose memory is told; empty = none."""
    block_size: int = 512
    """Reports of --many that are decoded together; the first part should hold several blocks."""
    structure_only: bool = False
    """Of --many only the impressions are structured, without the model."""
    data: EvalData = field(default_factory=EvalData)


@contextmanager
def generation() -> Iterator[list[float]]:
    """CPU seconds of every generation inside, one number each."""
    seconds: list[float] = []
    own = Generator.stream

    def stream(self: Generator, source: Tokens, order: Sequence[int]) -> Iterator[Output]:
        begun = time.process_time()
        found = list(own(self, source, order))
        seconds.append(time.process_time() - begun)
        return iter(found)

    Generator.stream = stream  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Generator.stream = own  # type: ignore[method-assign]


def extracted(
    config: ExtractionConfig, trained: TrainConfig, pairs: Sequence[Pair]
) -> tuple[list[str], float, float]:
    """(texts, CPU seconds of all, of generation alone): a file to a file, as extract.py does it."""
    extractor = Extractor(config.adapter, device="cpu", max_new_tokens=config.max_new_tokens)
    extractor(["the lungs are clear"])  # and loads what is loaded lazily
    with tempfile.TemporaryDirectory() as folder:
        given, file = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        given.write_text(
            "".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in pairs)
        )
        asked = ExtractConfig(adapter=config.adapter, input=str(given), output=str(file))
        output = Lines(file)
        with generation() as seconds:
            begun = time.process_time()
            reports = open_input(asked, columns_of(asked, trained))
            Extraction(asked).over(reports, extractor, output, Done())
            whole = time.process_time() - begun
        output.close()
        texts = [json.loads(line)["impression"] for line in file.read_text().splitlines()]
    return texts, whole, sum(seconds)


def peak(config: ExtractionConfig, given: Path, folder: str) -> dict[str, Any]:
    """MiB and reports of extract.py on this file, in a fresh process."""
    output = Path(folder) / f"{given.stem}.out.jsonl"
    what = ["--structure_only"] if config.structure_only else [f"--adapter={config.adapter}"]
    flags = [f"--input={given}", f"--output={output}", "--cpu"]
    flags += [f"--max_new_tokens={config.max_new_tokens}", f"--block_size={config.block_size}"]
    program = [sys.executable, "extract.py", *what, *flags]
    waits = [sys.executable, "-c", WAITS, str(output), *program]
    done = subprocess.run(waits, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"extract.py ended with {done.returncode}")
    lines = [list(map(int, line.split())) for line in re.findall(r"^[\d ]+$", done.stdout, re.M)]
    *samples, (kib,) = lines
    with output.open("rb") as written:
        n = sum(1 for _ in written)
    return {"reports": n, "resident_mib": resident(samples, output), "peak_mib": kib / 1024}


def resident(samples: Sequence[Sequence[int]], output: Path) -> list[float]:
    """MiB when so many tenths of the output were written."""
    whole = output.stat().st_size
    return [
        min((abs(size / whole - tenths / 10), kib) for size, kib in samples)[1] / 1024
        for tenths in TENTHS
    ]


def peaks(config: ExtractionConfig) -> list[dict[str, Any]]:
    """Of the first part of the file, and of all."""
    whole = Path(config.many).expanduser().absolute()
    with tempfile.TemporaryDirectory() as folder, whole.open("rb") as lines:
        n = sum(1 for _ in lines)
        lines.seek(0)
        part = Path(folder) / "part.jsonl"
        part.write_bytes(b"".join(itertools.islice(lines, n // PART)))
        return [peak(config, file, folder) for file in (part, whole)]


@exits_cleanly
def main() -> None:
    config = parse(ExtractionConfig, description=(__doc__ or "").partition("\n")[0])
    keep_freed_memory()
    trained = load(TrainConfig, find_trained(config.adapter).recipe)
    told: dict[str, Any] = {"cpu": cpu_name()}
    if config.many:
        told["memory"] = peaks(config)
        rows = [(f["reports"], *f["resident_mib"], f["peak_mib"]) for f in told["memory"]]
        columns = ("reports", *(f"MiB at {10 * tenths} %" for tenths in TENTHS), "peak, MiB")
        print_table("Memory", columns, rows, digits=0)
    else:
        asked = EvalConfig(
            adapter=config.adapter, n=config.n, max_new_tokens=config.max_new_tokens,
            cpu=True, data=config.data,
        )  # fmt: skip
        generated = generate_both(asked, trained)
        texts, whole, alone = extracted(config, trained, generated.sample.pairs)
        same = sum(a == b for a, b in zip(texts, generated.texts["lora"], strict=True))
        told |= {"n": len(texts), "same": same, "all_s": whole, "generation_s": alone}
        told["outside"] = 1 - alone / whole
        row = (len(texts), same, whole, alone, 100 * told["outside"])
        columns = ("reports", "eval.py's text", "CPU s", "of generation", "outside, %")
        print_table("extract.py", columns, [row], digits=1)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
