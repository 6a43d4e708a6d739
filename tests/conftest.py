"""One tiny base, tokenizer and data folder for the whole session."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tiny import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    import torch

    from tests.tiny import make_tiny  # late: most tests need no torch

    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny"))
