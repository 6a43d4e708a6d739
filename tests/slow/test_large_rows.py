"""Reports of 50 MB and archives that unpack to gigabytes: memory stays within the stated bound."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import ROOT

pytestmark = pytest.mark.slow

TEXT = "the lung is clear " * 2_800_000  # 50 MB
READ = """
import resource, sys
import pyarrow.parquet
from report2impression.reading.options import PairSource
from report2impression.reading.pairs import BadRow, open_pairs
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
rows = open_pairs(PairSource(sys.argv[1]), "train", on_bad_row="skip").stream()
rows = [isinstance(row, BadRow) for row in rows]
print(len(rows), sum(rows), peak() - before)
"""


def read(folder: Path) -> tuple[int, int, int]:
    """(rows, bad ones, bytes of memory beyond those of the start) of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows, bad, grown = map(int, done.stdout.split())
    return rows, bad, grown


def jsonl(folder: Path) -> None:
    row = json.dumps({"prompt": TEXT, "impressions": "clear"})
    (folder / "train.jsonl").write_text(f"{row}\n" * 3)


def csv(folder: Path) -> None:
    (folder / "train.csv").write_text("prompt,impressions\n" + f"{TEXT},clear\n" * 3)


def parquet(folder: Path) -> None:
    table = pa.table({"prompt": [TEXT] * 3, "impressions": ["clear"] * 3})
    pq.write_table(table, folder / "train.parquet", compression="none", use_dictionary=False)


@pytest.mark.parametrize("write", [jsonl, csv, parquet])
def test_50_mb_reports(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    rows, bad, grown = read(tmp_path)
    assert (rows, bad) == (3, 0) and size > 150_000_000
    assert grown < 3 * size + 500_000_000


def test_a_line_of_4_gb_out_of_an_archive_of_4_mb(tmp_path: Path) -> None:
    row = b'{"prompt": "the lung is clear", "impressions": "clear"}\n'
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as stream:
        stream.write(row)
        for _ in range(4000):
            stream.write(b" " * 10**6)
        stream.write(b"\n" + row)
    rows, bad, grown = read(tmp_path)
    assert (rows, bad) == (3, 1) and grown < 500_000_000
