"""conftest.py's profile: a property test tries the same examples in every run of `make test`."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_examples_do_not_depend_on_what_was_imported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    @settings(settings.get_profile("ci"), max_examples=300)
    @given(st.lists(st.integers() | st.text()))
    def look(example: Any) -> None:
        tried.append(example)

    look()
    alone, tried[:] = list(tried), []
    (tmp_path / "with_constants.py").write_text(f"A = {list(range(1000, 2000))}; B = 'constant'")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("with_constants")
    try:
        look()
    finally:
        del sys.modules["with_constants"]
    assert len(alone) == 300 and tried == alone


@settings(max_examples=7)
@given(st.integers())
def test_own_settings_stand(_: int) -> None:
    """Those that a test gives add to the profile's, also where it searches (20 times 7)."""
    own = test_own_settings_stand._hypothesis_internal_use_settings  # type: ignore[attr-defined]
    assert own.deadline is None and own.max_examples in (7, 140)
