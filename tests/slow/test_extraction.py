"""Extraction that is killed, and extraction on two processes, for real."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.extraction import PART, ExtractionConfig, peaks
from report2impression import Extractor
from report2impression.extracting import extraction
from tests.slow.test_launchers import FILES
from tests.test_extract import SHORT, records, run
from tests.tiny import ROOT, Tiny, rows_of

pytestmark = pytest.mark.slow
KILLS = 50


@pytest.fixture(scope="module")
def given(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 reports, in more orders than blocks."""
    file = tmp_path_factory.mktemp("given") / "in.jsonl"
    draw, rows = random.Random(0), rows_of(tiny)
    lines: list[dict[str, Any]] = []
    for i in range(200):
        words = draw.choice(rows)["prompt"].split()
        lines.append({"id": f"r{i}", "prompt": " ".join(words[draw.randrange(9) :])})
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture(scope="module")
def whole(trained: Path, given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / "all.jsonl"
    run(trained, given, file, "--block_size=8")
    return file


def killed(action: Callable[[], None], file: Path, size: int, wait: float) -> None:
    """In a fork that gets SIGKILL so many seconds after its file has that size."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            action()
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if file.exists() and file.stat().st_size >= size:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return


def test_killed_at_random_moments_it_loses_and_repeats_nothing(
    trained: Path, given: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Extractor(trained / "adapter", device="cpu", **SHORT)
    ready(["the lungs are clear"])
    monkeypatch.setattr(extraction, "_extractor", lambda *_: ready)
    draw, most, n_killed, n_files = random.Random(1), whole.stat().st_size, 0, 0
    while n_killed < KILLS:
        file = tmp_path / f"{n_files}.jsonl"
        n_files += 1
        for _ in range(5):
            there = file.stat().st_size if file.exists() else 0
            before = file.read_bytes() if there else b""
            size = there + draw.randrange(max(1, most // 5))
            flags = ["--block_size=8", *(["--resume"] if there else [])]
            killed(lambda: run(trained, given, file, *flags), file, size, draw.random() / 50)  # noqa: B023
            n_killed += 1
            after = file.read_bytes()
            assert after.startswith(before[: before.rfind(b"\n") + 1]), "a whole line was lost"
        run(trained, given, file, "--block_size=8", "--resume")
        assert records(file) == records(whole)


def test_two_processes_write_what_one_does(
    trained: Path, given: Path, whole: Path, tmp_path: Path
) -> None:
    argv = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "recipes/accelerate" / FILES[2])),
        *("extract.py", "--cpu", f"--adapter={trained / 'adapter'}", "--max_new_tokens=12"),
        *(f"--input={given}", f"--output={tmp_path / 'two.jsonl'}", "--block_size=8"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "200 reports" in done.stdout and done.stdout.count("REPORT TEXT") == 1
    found = sorted(records(tmp_path / "two.jsonl"), key=lambda record: int(record["id"][1:]))
    assert found == records(whole)


def test_memory_does_not_grow_with_the_input(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """Peak memory over 300 reports and over 15,000: neither a list of them is kept, nor a product
    of every number of them (five blocks are enough to have seen most)."""
    many, (row, *_) = tmp_path / "many.jsonl", rows_of(tiny)
    with many.open("w") as lines:
        for i in range(300 * PART):
            changed = {"id": str(i), "prompt": f"{i} mm nodule, {row['prompt']}"}
            lines.write(json.dumps(row | changed) + "\n")
    settings = ExtractionConfig(
        adapter=str(trained / "adapter"), many=str(many), max_new_tokens=12, block_size=64
    )
    part, whole = peaks(settings)
    assert (part["reports"], whole["reports"]) == (300, 300 * PART)
    assert whole["peak_mib"] < 1.05 * part["peak_mib"]
