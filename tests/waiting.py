"""Waiting for other processes. A test that would wait for ever fails after HANG_S: no measure of
speed, but longer than anything here takes on the slowest and busiest machine."""

import time
from collections.abc import Callable
from pathlib import Path

HANG_S = 1200


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def until_written(file: Path, text: str) -> None:
    """Wait for the text in the file."""
    until(lambda: file.exists() and text in file.read_text())
