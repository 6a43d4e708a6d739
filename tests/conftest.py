"""One tiny base, tokenizer and data folder for the whole session."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

# Many tests fork, and a fork has none of its parent's OpenMP threads, but waits for them.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import is_hypothesis_test, settings
from hypothesis.internal.conjecture import providers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.browser import Browser
    from tests.programs import ForkServer
    from tests.tiny import Tiny

# Hypothesis's own "ci": the same examples in every run, no deadline, nothing kept from run to run.
# Another, "search", is for `make search`: other examples each time, and more of them.
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
TIMES_MORE = 20
settings.register_profile("search", settings.get_profile("ci"), derandomize=False)
settings.load_profile(PROFILE)
# It also tries constants of the modules imported so far, which depend on the tests that ran before.
providers._get_local_constants = lambda: providers._local_constants


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Searching, each test tries many times the examples that it asks for."""
    if PROFILE == "search":
        tests: set[Any] = {getattr(item, "obj", None) for item in items}
        for test in filter(is_hypothesis_test, tests):
            own = test._hypothesis_internal_use_settings
            more = settings(own, max_examples=TIMES_MORE * own.max_examples)
            test._hypothesis_internal_use_settings = more


@pytest.fixture(autouse=True)
def _same_torch() -> Iterator[None]:
    """Torch draws the same in a test by itself as after others, and what a benchmark's test sets is
    not left to the forks of later ones."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them is slow."""
    from report2impression.runs import tracking

    monkeypatch.setattr(tracking, "draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    import torch

    from tests.tiny import make_tiny

    torch.set_num_threads(1)
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tiny: "Tiny", tmp_path_factory: pytest.TempPathFactory) -> "Path":
    """A folder with adapter/ and model/ as runs leave them, of weights that write words."""
    from tests.tiny import make_trained

    return make_trained(tiny, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def libraries() -> Iterator["ForkServer"]:
    """Python with the libraries and without any code of ours."""
    from tests.programs import ForkServer

    with ForkServer(dict(os.environ) | {"HF_HUB_OFFLINE": "1"}) as server:
        yield server


@pytest.fixture(scope="session")
def tab() -> Iterator["Browser"]:
    """One browser for all pages."""
    from tests.browser import NoBrowser, browser

    try:
        with browser() as opened:
            yield opened
    except NoBrowser as reason:
        pytest.skip(str(reason))
