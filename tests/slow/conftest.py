"""Which adapter the proofs use: the tests' own, or the one named by REPORT2IMPRESSION_ADAPTER."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest


class Adapter(NamedTuple):
    folder: Path
    max_new_tokens: int

    @property
    def flags(self) -> list[str]:
        return [f"--adapter={self.folder}", f"--max_new_tokens={self.max_new_tokens}", "--cpu"]


@pytest.fixture(scope="session")
def adapter(trained: Path) -> Adapter:
    own = os.environ.get("REPORT2IMPRESSION_ADAPTER")
    return Adapter(Path(own), 128) if own else Adapter(trained / "adapter", 12)
