"""The page of the service in a browser: shows what the service says, by keyboard too, asks nobody
else, and lets no text become markup."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from report2impression.extracting.impressions import DRAFT, Impression
from report2impression.extracting.items import structure
from report2impression.serving.waiting import Record
from tests.browser import Browser
from tests.test_serving import HOSTILE, Served, served
from tests.waiting import until

WRITTEN = (
    "1 spiculated 14 mm left upper lobe nodule, new, ct in 3 months is recommended\n"
    "2 moderate left pleural effusion\n3 no pneumothorax"
)
ORIGIN = {"model": "stand-in"}


def record(report: str, said: str = "") -> Record:
    """What the extractor would say, had its model written that."""
    said = said or (HOSTILE if HOSTILE[:9] in report else WRITTEN)
    found = Impression("a", DRAFT, ORIGIN, said, structure(said, report), confidence=0.87)
    return found.as_json()


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served(record) as service:
        yield service


def opened(tab: Browser, running: Served, **options: Any) -> None:
    tab.open(f"http://127.0.0.1:{running.port}/", **options)


def wrote(tab: Browser, report: str | None = None) -> None:
    """Fill in a report (the example if none is given) and send it by the keyboard alone."""
    if report is None:
        tab.run("document.getElementById('example').click()")
    else:
        tab.run(f"document.getElementById('report').value = {json.dumps(report)}")
    tab.run("document.getElementById('report').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "write"
    tab.press("Enter")
    until(lambda: tab.run("!document.getElementById('result').hidden"))


@pytest.mark.parametrize("width", [1280, 390])
def test_items_tags_and_evidence_are_shown(tab: Browser, running: Served, width: int) -> None:
    opened(tab, running, width=width, dark=width == 390)
    wrote(tab)
    items = tab.run("[...document.querySelectorAll('.items > li > p')].map((p) => p.textContent)")
    assert len(items) == 3 and items[2] == "no pneumothorax"
    assert "[unsupported: " in items[1]  # the report says right, and small
    tags = tab.run("document.querySelector('.items').innerText")
    assert "nodule" in tags and "14 mm" in tags and "P3M" in tags and "absent" in tags
    assert tab.run("document.getElementById('checks').textContent").endswith("Confidence 0.87.")
    tab.run("document.querySelectorAll('.items > li')[0].focus()")
    lit = tab.run("[...document.querySelectorAll('.lit')].map((m) => m.textContent).join(' ')")
    assert "spiculated nodule of 14 mm" in lit and "effusion" not in lit
    headings = tab.run("[...document.querySelectorAll('.heading')].map((h) => h.textContent)")
    assert "Findings:" in headings
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert not tab.console
    assert {url.split("/")[2] for url in tab.requests if not url.startswith("data:")} == {
        f"127.0.0.1:{running.port}"
    }


def test_the_base_stands_beside_the_adapter(tab: Browser) -> None:
    said = "1 right pneumothorax\n2 " + HOSTILE
    with served(record, base=lambda reports: [record(r, said) for r in reports]) as running:
        opened(tab, running)
        wrote(tab)
        until(lambda: tab.run("!document.getElementById('compared').hidden"))
        before = "[...document.querySelectorAll('#before > li')].map((li) => li.textContent)"
        first, second, *_ = tab.run(before)
        assert "[unsupported: " in first and "pneumothorax" in first and "<script>" in second
        assert tab.run("document.querySelectorAll('#items > li').length") == 3
        assert tab.run("document.querySelectorAll('#before img, #before script').length") == 0
        assert not tab.console
        # What the page must know to show the base it is not told later, when all may be written.
        paths = [url.split("/", 3)[3] for url in tab.requests if not url.startswith("data:")]
        assert paths == ["", "v1/impressions", "v1/base"]


def test_hostile_texts_stay_text(tab: Browser, running: Served) -> None:
    opened(tab, running)
    wrote(tab, f"FINDINGS: {HOSTILE}")
    assert tab.run("document.querySelectorAll('#result img, #result script').length") == 0
    assert "<script>alert(1)" in tab.run("document.getElementById('items').textContent")
    assert not tab.console


def test_a_refusal_is_one_sentence(tab: Browser, running: Served) -> None:
    opened(tab, running)
    tab.run("document.getElementById('write').click()")  # nothing was pasted
    until(lambda: tab.run("document.getElementById('says').textContent.startsWith('Not')"))
    assert tab.run("document.getElementById('says').textContent") == "Not done: report 0 is empty."
    assert tab.run("document.getElementById('result').hidden")
