"""Every line that extract.py writes is valid: synthetic reports, real notes and hostile files, with
and without a model, as JSON and as both versions of FHIR.

REPORT2IMPRESSION_ADAPTER=RUN/adapter has them written by that model instead of the tests' own.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report2impression.corpora.synthetic import generate
from tests.slow.conftest import Adapter
from tests.tiny import ROOT, python
from tests.valid import check_fhir, check_record, has_text

pytestmark = pytest.mark.slow
NOTES = ROOT.parent / "shared" / "data" / "mtsamples" / "raw_radiology"
N = 1000
MIB = 2**20
SAYS = "FINDINGS: 8 mm nodule in the left lower lobe.\nIMPRESSION: left nodule."
FILES: dict[str, str | bytes] = {
    "empty": "", "blank": " \n\t ", "unseen": "\ufeff\u200b", "lines": "\n" * MIB,
    "long": "the lungs are clear. " * (MIB // 21), "word": "x" * MIB, "too_long": "x" * (MIB + 1),
    "headings": "FINDINGS: nodule\n" * (MIB // 17), "brackets": "[" * 100_000,
    "long_findings": "FINDINGS: " + "8 mm nodule in the left lower lobe. " * (MIB // 37),
    "long_impression": f"{SAYS} " + "8 mm nodule in the left lower lobe. " * (MIB // 37),
    "controls": bytes(range(32)) + b" nodule", "escape": "\x1b[31m nodule", "nul": "no\x00dule",
    "c1": "\x85 nodule \x9b", "markup": f"<script>alert(1)</script> {{{{7*7}}}} </s><pad> {SAYS}",
    "right_to_left": f"\u202e{SAYS}\u202c \u05d0\u05d1\u05d2 \u0627\u0644",
    "latin": "l\xe9sion".encode("latin-1"), "utf_16": SAYS.encode("utf-16"),
    "surrogate": b"\xed\xa0\x80 nodule", "noncharacters": f"\ufffe\uffff \U0001fffe {SAYS}",
    "combining": "a" + "\u0301" * 10_000, "separators": f"\u2028\u2029\x0b\x0c{SAYS}",
    "digits": f"FINDINGS: {'9' * 400} mm nodule\nIMPRESSION: {'9' * 400} mm nodule",
    "formula": "=1+1", "windows": SAYS.replace("\n", "\r\n"),
    "hl7": f"MSH|^~\\&|A\rOBX|1|TX|||{SAYS}",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Name -> (input, its reports)."""
    folder = tmp_path_factory.mktemp("inputs")
    hostile, synthetic = folder / "hostile", folder / "synthetic.jsonl"
    hostile.mkdir()
    for name, text in FILES.items():
        (hostile / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with synthetic.open("w") as lines:
        for pair in generate(N, 5):
            text = f"FINDINGS: {pair.prompt}\nIMPRESSION: {pair.impression}"
            lines.write(json.dumps({"id": pair.id, "report": text}) + "\n")
    found = {"synthetic": (synthetic, N), "hostile": (hostile, len(FILES))}
    return found | ({"notes": (NOTES, 120)} if NOTES.is_dir() else {})


def records(given: Path, *flags: object) -> Iterator[dict[str, Any]]:
    """What the program says on standard output."""
    done = python("extract.py", f"--input={given}", *flags, timeout=3000)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    yield from map(json.loads, done.stdout.splitlines())


@pytest.mark.parametrize("writes", ["structure_only", "model"])
@pytest.mark.parametrize("given", ["synthetic", "notes", "hostile"])
def test_every_line_is_valid(
    given: str,
    writes: str,
    inputs: dict[str, tuple[Path, int]],
    adapter: Adapter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if given not in inputs:
        pytest.skip("the notes are not here")
    file, n = inputs[given]
    flags = ["--structure_only"] if writes == "structure_only" else adapter.flags
    statuses: Counter[str] = Counter()
    for record in records(file, *flags, "--format=json"):
        check_record(record)
        statuses[record["status"]] += 1
        assert bool(record["impression"]) == has_text(record)
        assert record["impression"] or record["reason"]
    assert statuses.total() == n
    for version in ("R4B", "R5"):
        reports = list(records(file, *flags, "--format=fhir", f"--fhir_version={version}"))
        assert len(reports) == n
        for report in reports:
            check_fhir(report, version)
    with capsys.disabled():
        print(f"\n{given}, {writes}: {n:,} lines of each format, {dict(statuses)}")
