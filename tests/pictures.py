"""Audits and evaluations spend most of their time on pictures, which test_pages.py tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from markupsafe import Markup

from report2impression.reporting import plots


@contextmanager
def no_pictures() -> Iterator[None]:
    """Pages with an empty SVG element in the place of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_finish", lambda *_, **__: Markup("<svg></svg>"))
        yield
