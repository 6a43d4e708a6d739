"""The page of the service by axe-core: fetched by npm for the test alone, nothing of it is ours."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.test_serving import Served, served
from tests.test_serving_page import opened, record, until, wrote

pytestmark = pytest.mark.slow
FETCH = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its script."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("no npm")
    done = subprocess.run([*FETCH, "--prefix", str(folder)], capture_output=True, cwd=folder)
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if done.returncode or not script.is_file():
        pytest.skip("npm could not fetch axe-core")
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with served(record, base=lambda reports: [record(r, "right mass") for r in reports]) as service:
        yield service


def violations(tab: Browser, axe: str) -> list[str]:
    """What axe finds on the page as it is, by rule and element."""
    ask = "window.found = null; axe.run().then((all) => { window.found = all.violations; }); 0"
    tab.run(f"{axe}; {ask}")
    until(lambda: tab.run("window.found !== null"))
    found = json.loads(tab.run("JSON.stringify(window.found)"))
    return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)]
)
def test_axe_finds_nothing(width: int, dark: bool, tab: Browser, running: Served, axe: str) -> None:
    opened(tab, running, width=width, dark=dark)
    assert violations(tab, axe) == []
    wrote(tab)
    until(lambda: tab.run("!document.getElementById('compared').hidden"))
    assert violations(tab, axe) == []
    tab.run("document.querySelectorAll('.items > li')[0].focus()")
    assert violations(tab, axe) == []
    tab.run("document.getElementById('report').value = ''")
    tab.run("document.getElementById('write').click()")
    until(lambda: tab.run("document.getElementById('says').className.includes('wrong')"))
    assert violations(tab, axe) == []


def test_axe_would_find_something(tab: Browser, running: Served, axe: str) -> None:
    opened(tab, running)
    tab.run("document.querySelector('label').remove()")
    assert any(one.startswith("label:") for one in violations(tab, axe))
