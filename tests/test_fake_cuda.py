"""The CUDA path without a GPU (tests/fake_cuda.py, in a process of its own: it changes torch)."""

import json
from functools import cache

import pytest

from tests.fake_cuda import CHECKS
from tests.tiny import python


@cache
def told() -> dict[str, str]:
    """What each check says; all of them run in one process."""
    done = python("-m", "tests.fake_cuda")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"check"')]
    found = {line["check"]: line["told"] for line in map(json.loads, lines)}
    assert done.returncode == 0 and found.keys() == CHECKS.keys(), done.stderr[-2000:]
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_the_path_of_a_gpu_holds_on_fake_devices(check: str) -> None:
    assert told()[check] == "ok"
