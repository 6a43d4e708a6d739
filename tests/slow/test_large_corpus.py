"""A corpus of a million reports stays within the memory that docs/data.md states; each
measurement is a process of its own."""

import json

import pytest

from tests.tiny import Tiny, python

pytestmark = pytest.mark.slow


def measured(tiny: Tiny, what: str, n: int) -> dict[str, float]:
    flags = (f"--data.path={tiny.data}", f"--model.path={tiny.base}", "--threads=1")
    done = python("-m", "bench.scaling", *flags, f"--only={what}", f"--reports={n}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_million_reports_are_planned_and_read_in_little_memory(tiny: Tiny) -> None:
    """On disk they are 650 MiB; above what a small corpus needs there are 56 bytes for each: two
    lengths, two offsets, a place in the epoch, and some to work with."""
    small, large = (measured(tiny, "corpus", n) for n in (10_000, 1_000_000))
    assert large["cache_bytes_per_report"] * 1e6 > 650e6
    for key in ("write_peak_mib", "open_peak_mib", "plan_peak_mib", "read_own_mib"):
        above = (large[key] - large["libraries_mib"]) - (small[key] - small["libraries_mib"])
        assert above < 80, key


def test_memory_of_tokenising_does_not_grow_with_the_corpus(tiny: Tiny) -> None:
    small, large = (measured(tiny, "tokenising", n) for n in (10_000, 100_000))
    assert large["peak_mib"] - large["loaded_mib"] < small["peak_mib"] - small["loaded_mib"] + 16
