"""Pages: every text inert, nothing half-written, the same bytes each time; the diff of words; and
the evaluation page in a real browser, light and dark, at a desk and on a phone."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report2impression.audit.page import audit_page
from report2impression.program import files
from report2impression.program.errors import ConfigError
from report2impression.reporting import plots
from report2impression.reporting.evaluation_page import Case, evaluation_page
from report2impression.reporting.pages import Cell, P, has_words, number, printable, write_page
from report2impression.reporting.word_diff import Run, omitted_runs, output_runs
from tests import demo_figures
from tests.browser import Browser

HOSTILE = (
    "<script>alert('x')</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><style>body{background:url(http://127.0.0.1:9/x)}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "]]></svg><!-- --><svg onload=alert(1)>",
    "javascript:alert(1)",
    "nul \x00 rtl \u202e override \u2066 isolate \x1b[31m \ud800 half \uffff",
    "$\\frac{1}{0}$ $",
    "x" * 300,
)
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=40))
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Tags with the names of their attributes, in order; texts; and that all closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


PICTURE = plots.forest("a", {"a": {"base": (1, 0, 2)}}, head="a", xlabel="a").svg
TEXTS = ("source", "reference", "base", "lora")


def page_of_words(word: str) -> str:
    """A page that shows the word wherever a text can stand, in pictures of our own."""
    figures = demo_figures.figures()
    figures["breakdown"] = {"group": {word: demo_figures.part(3, 1, 2)}}
    figures["faithfulness"] = {word: demo_figures.rates(1, 2, 3)}
    figures["describe"][word] = figures["describe"]["base"]
    figures["guard_rails"] = [{"name": word, "system": word, "value": 1.0, "message": word + "."}]
    for key in ("provenance", "signature", "sample", "decoding"):
        figures[key] = {word: word}
    marks = {"base": [(0, len(word), word)]}
    case = Case(word, word, word, {"base": 1.0, "lora": 2.0}, dict.fromkeys(TEXTS, word), marks)
    inputs: dict[str, Any] = {
        "curves": [],
        "per_report": {},
        "lengths": {},
        "published": {word: {"rouge1": 1.0}},
    }
    return evaluation_page(figures, **inputs, settings={word: word}, cases=[case])


def audit_of_words(word: str) -> str:
    check = {"label": word, "severity": "note", "pairs": {word: 1}, "percent": {word: 1.0}}
    split = {"rows": 1, "pairs": 1, "different_targets": 1, "commonest_target_percent": 1.0}
    told = {"severity": "error", "title": f"a {word}", "remedy": f"a {word}", "counts": {word: 1}}
    scores = {"split": word, **dict.fromkeys(("scored", "of", "neighbours", "train"), 1)}
    figures = {
        "splits": {word: split},
        "findings": [told],
        "checks": {word: check},
        "groups": {word: {word: 1}},
        "scores": {**scores, "systems": {"copy": dict.fromkeys("abcd", 1.0)}},
        "settings": {word: word, "tokenizer": word},
        "unknown_characters": [(word, 1)],
        "lengths": {word: {word: {word: dict.fromkeys(("mean", "median", "p95", "longest"), 1)}}},
    }
    return audit_page(figures, {word: {word: np.ones(1)}})


@pytest.mark.parametrize("made", [page_of_words, audit_of_words])
@settings(max_examples=40, deadline=None)
@given(TEXT.filter(lambda text: text.strip() != ""))
def test_no_text_changes_the_markup(made: Callable[[str], str], text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_axes", lambda *_: nullcontext(MagicMock()))  # drawing takes long
        patch.setattr(plots, "_finish", lambda *_: PICTURE)
        page, plain = Outline(made(text)), Outline(made("word"))
    in_runs = {"mark", "small", "span"}  # as many as the diff finds words
    assert [t for t in page.tags if t[0] not in in_runs] == [
        t for t in plain.tags if t[0] not in in_runs
    ]
    assert printable(text) in page.text


@settings(max_examples=10, deadline=None)  # each draws a picture
@given(TEXT)
def test_no_label_changes_a_picture(text: str) -> None:
    def tags(word: str) -> Counter[str]:
        parts = {word: {"base": (1, 0, 2), "lora": (2, 1, 3)}}
        svg = plots.forest(word, parts, head="x", xlabel="x").svg
        return Counter(tag for tag, _ in Outline(svg).tags if tag in {"svg", "script", "img"})

    assert tags(text) == {"svg": 1}


def test_labels_are_text_and_not_mathematics() -> None:
    svg = plots.forest('"', {"$x$ & <b>": {"a": (1, 0, 2)}}, head="x", xlabel="x").svg
    assert "$x$ &amp; &lt;b&gt;" in svg and 'aria-label="&#34;: means' in svg
    assert svg.startswith('<svg role="img"')


def test_pictures_are_the_same_each_time_and_carry_no_date() -> None:
    first = page()
    assert first == page.__wrapped__()  # anew
    assert "metadata" not in first and "dc:date" not in first


def test_pictures_take_their_colours_from_the_page() -> None:
    svg = plots.forest("a", {"a": {"base": (1, 0, 2)}}, head="a", xlabel="x", zero=True).svg
    assert "var(--base)" in svg and not re.search(r"#[0-9a-f]{6}\b", svg)
    drawn = re.findall(r'<(?:text|path|use) [^>]*style="([^"]*)"', svg)
    assert drawn and all("var(--" in style or style == "fill: none" for style in drawn)


def test_pictures_bear_missing_figures() -> None:
    nan = float("nan")
    parts: dict[str, dict[str, Cell]] = {
        "a": {"base": (1, nan, nan)},
        "b": {"lora": (nan, nan, nan)},
        "c": {"lora": None},
    }
    assert plots.forest("a", parts, head="a", xlabel="x").svg
    edges, shares = plots.binned({"a": [nan, 1.0], "b": []})
    assert list(shares) == ["a"] and edges[0] == 0
    assert plots.binned({"a": []})[1] == {} and plots.histogram("a", {"a": []}, xlabel="x") == []


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_every_report_is_in_one_bin(counts: list[int]) -> None:
    edges, shares = plots.binned({"a": counts})
    assert shares["a"].sum() == pytest.approx(100)
    assert (np.diff(edges) >= 1).all() and (edges == edges.round()).all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234, "1,234"),
        (-0.04, "0.0"),
        (-1.25, "−1.2"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0.0, "0.0"),
        (-3, "−3"),
    ],
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert number(value) == shown


def test_p_values() -> None:
    assert [number(P(p)) for p in (0.0001, 0.001, 0.0449)] == ["< 0.001", "0.001", "0.045"]
    assert number(None) == "–"


def test_figures_stand_right_and_words_left() -> None:
    rows: list[Sequence[Cell] | str] = ["heading", ["x", P(0.1), "y"], ["x", 1, None]]
    assert [has_words(rows, column) for column in range(3)] == [True, False, True]


def test_a_page_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_page(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", full)
        with pytest.raises(ConfigError, match="report.html") as caught:
            write_page(path, "new")
    assert path.read_text() == "old" and "\n" not in str(caught.value)
    write_page(path, "ünïcode")
    assert path.read_text(encoding="utf-8") == "ünïcode"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_page_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        write_page(tmp_path / "missing" / "report.html", "x")


# The diff of words

WORDS = st.lists(
    st.sampled_from(["no", "the", "left", "right", "nodule", "3", "mm", "1.", ",", "____", "\n"]),
    max_size=12,
).map(" ".join)


@given(WORDS, WORDS, WORDS)
def test_runs_make_up_the_text(output: str, reference: str, source: str) -> None:
    assert "".join(run.text for run in output_runs(output, reference, source)) == output
    assert "".join(run.text for run in omitted_runs(reference, output)) == reference


@given(WORDS, WORDS)
def test_a_copy_of_the_reference_is_unmarked(text: str, source: str) -> None:
    assert {run.kind for run in output_runs(text, text, source)} <= {""}
    assert {run.kind for run in omitted_runs(text, text)} <= {""}


@given(WORDS, WORDS)
def test_a_copy_of_the_source_has_nothing_unsupported(source: str, reference: str) -> None:
    assert "unsupported" not in {run.kind for run in output_runs(source, reference, source)}


def marked(runs: list[Run]) -> list[tuple[str, str]]:
    return [(run.text, run.kind) for run in runs if run.kind]


def test_words_are_told_apart() -> None:
    runs = output_runs(
        "1. Left nodule of 5 mm, unchanged.", "right nodule, unchanged", "a 3 mm right nodule"
    )
    assert marked(runs) == [("Left", "unsupported"), ("5", "unsupported"), ("mm,", "source")]


def test_omitted_words_are_marked_over_little_ones() -> None:
    runs = omitted_runs("no evidence of pneumonia or effusion", "no effusion")
    assert marked(runs) == [("evidence of pneumonia", "omitted")]


def test_moved_words_are_shared_but_each_only_once() -> None:
    assert marked(output_runs("effusion, nodule", "nodule, effusion", "")) == []
    assert marked(output_runs("nodule nodule", "nodule", "")) == [("nodule", "unsupported")]


def test_a_check_marks_words_and_names_itself() -> None:
    runs = output_runs("left nodule", "left nodule", "left nodule", [(0, 4, "laterality")])
    assert runs[0] == Run("left", "unsupported", "laterality")
    assert output_runs("left", "left", "", [(0, 2, "unsupported")]) == [Run("left", "unsupported")]


# The evaluation page


@functools.cache
def page(*, with_text: bool = False, n: int = 1000) -> str:
    return evaluation_page(demo_figures.figures(), **demo_figures.inputs(with_text=with_text, n=n))


def test_report_text_only_on_request() -> None:
    words = ("nodule", "pneumonia", "degenerative")
    assert not any(word in page() for word in words)
    assert "this page holds no report text" in page()
    shown = page(with_text=True)
    assert all(word in shown for word in words)
    assert "This page shows REPORT TEXT" in shown and 'class="notice sensitive"' in shown


def test_figures_are_shown() -> None:
    text = Outline(page()).text
    for figure in ("36.8", "[35.6, 38.0]", "24.9", "< 0.001", "CT abdomen-pelvis", "0.74"):
        assert figure in text
    assert "LoRA is 11.4 ROUGE-L points above the base" in text
    assert "60303ae22b998861bce3b28f33eec1be" in text


def test_what_there_is_not_is_left_out() -> None:
    inputs = demo_figures.inputs() | {"curves": [], "cases": [], "published": {}}
    figures = demo_figures.figures() | {"guard_rails": []}
    html = evaluation_page(figures, **inputs)
    for words in ("Training", "Cases", "Guard rails", "Published"):
        assert words in page() and words not in html


def test_groups_of_few_reports_are_named() -> None:
    figures = demo_figures.figures()
    figures["breakdown"] = {"group": {f"of {n}": demo_figures.part(n, 1, 2) for n in (19, 20)}}
    text = Outline(evaluation_page(figures, **demo_figures.inputs())).text
    assert text.count("Fewer than 20 reports show little, however short the bar: of 19.") == 2


def test_a_whole_test_set_stays_small() -> None:
    assert len(page(n=13_057).encode()) < 2_000_000


def test_ids_are_unique_and_references_lead_somewhere() -> None:
    outline = Outline(page(with_text=True))
    ids = Counter(a["id"] for a in outline.attributes if "id" in a)
    assert set(ids.values()) == {1}
    wanted = {v for a in outline.attributes for v in a.values() if v and v.startswith("#")}
    wanted |= set(re.findall(r"url\((#[^)]*)\)", page(with_text=True)))
    assert {v[1:] for v in wanted} <= set(ids)


def test_nothing_comes_from_outside() -> None:
    outline = Outline(page(with_text=True))
    links = [a[n] for a in outline.attributes for n in ("src", "href", "xlink:href") if n in a]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert not {"script", "iframe", "object", "embed", "form"} & {tag for tag, _ in outline.tags}
    assert not [a for a in outline.attributes if any(name.startswith("on") for name in a)]
    assert "default-src 'none'" in page() and "@import" not in page()


def test_headings_descend_by_one_and_tables_and_pictures_are_named() -> None:
    outline = Outline(page(with_text=True))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    tags = Counter(tag for tag, _ in outline.tags)
    assert tags["table"] == tags["caption"] > 10
    pictures = [a for (t, _), a in zip(outline.tags, outline.attributes, strict=True) if t == "svg"]
    assert len(pictures) > 8
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in pictures)
    headers = [a for (t, _), a in zip(outline.tags, outline.attributes, strict=True) if t == "th"]
    assert all(a.get("scope") in {"col", "row", "rowgroup"} for a in headers)


# In a browser


def show(tab: Browser, folder: Path, html: str, **how: Any) -> None:
    write_page(folder / "page.html", html)
    tab.open(folder / "page.html", **how)


def test_the_browser_tells_of_errors_and_requests(tab: Browser, tmp_path: Path) -> None:
    """What the tests below rely on."""
    code = "<img src='http://example.invalid/x.png'><script>console.error('seen'); lost()</script>"
    show(tab, tmp_path, code)
    assert "http://example.invalid/x.png" in tab.requests
    assert any("seen" in line for line in tab.console) and len(tab.console) >= 2


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_itself_quietly(
    tab: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    show(tab, tmp_path, page(with_text=True), width=width, dark=dark)
    assert tab.console == []
    assert [url.partition(":")[0] for url in tab.requests if not url.startswith("data:")] == [
        "file"
    ]
    assert (
        tab.run("document.querySelector('h1').innerText") == "Base and LoRA on 1,000 test reports"
    )
    assert tab.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert tab.run(SMALLEST_PICTURE) > 250
    assert tab.run(DULL) == []
    assert tab.screenshot(tmp_path / "page.png").startswith(b"\x89PNG")


SMALLEST_PICTURE = (
    "Math.min(...[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width))"
)
# Texts whose contrast with the ground behind them is below 4.5 to 1, and lines and markers below
# 3 to 1 (WCAG AA).
DULL = """(() => {
  const channels = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    throw new Error('no ground');
  };
  const contrast = (ink, e) => {
    const [a, b] = [light(channels(ink)), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const found = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement, style = getComputedStyle(e);
    if (!n.data.trim() || !e.getClientRects().length) continue;
    const ink = e.closest('svg') ? style.fill : style.color;
    if (contrast(ink, e) < 4.5) found.add(e.className + ': ' + n.data.trim().slice(0, 30));
  }
  const painted = [...document.querySelectorAll('svg [style*="stroke: var"]')];
  for (const e of painted.filter(e => !e.getAttribute('style').includes('--line')))
    if (contrast(getComputedStyle(e).stroke, e) < 3) found.add(e.getAttribute('style'));
  return painted.length ? [...found] : ['no pictures'];
})()"""


def test_hostile_texts_do_nothing(tab: Browser, tmp_path: Path) -> None:
    bad, figures = " ".join(HOSTILE), demo_figures.figures()
    figures["breakdown"] = {"group": {text: demo_figures.part(3, 1, 2) for text in HOSTILE}}
    figures["provenance"] = {text: text for text in HOSTILE}
    figures["guard_rails"] = [{"name": bad, "system": bad, "value": 1.0, "message": bad}]
    figures["faithfulness"] = {bad: demo_figures.rates(1, 2, 3)}
    texts = dict.fromkeys(("source", "reference", "base", "lora"), bad) | {"lora": bad[::-1]}
    scores = {"base": 1.0, "lora": 2.0}
    cases = [
        Case(text, text, text, scores, texts, {"lora": [(0, 9, text)], "base": [(3, 99, text)]})
        for text in HOSTILE
    ]
    inputs = demo_figures.inputs() | {"cases": cases, "settings": {t: t for t in HOSTILE}}
    html = evaluation_page(figures, **inputs)
    show(tab, tmp_path, html, width=390)
    assert tab.console == []
    assert [url.partition(":")[0] for url in tab.requests if not url.startswith("data:")] == [
        "file"
    ]
    assert tab.run("document.querySelectorAll('script, img, [onerror], [onload]').length") == 0
    assert tab.run("document.querySelectorAll('style').length") == 1 + html.count("<svg ")
    shown = tab.run("document.body.innerText")
    assert "<script>alert('x')</script>" in shown and "{{ 7 * 7 }}" in shown
    assert "\x00" not in shown and "\u202e" not in shown
    assert tab.run("document.documentElement.scrollWidth") == 390


def test_the_keyboard_reaches_everything(tab: Browser, tmp_path: Path) -> None:
    show(tab, tmp_path, page(with_text=True))
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left") >= 0
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "main"
    wide = "[...document.querySelectorAll('.scroll')]"
    assert tab.run(f"{wide}.every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))")


def test_a_screen_reader_finds_its_way(tab: Browser, tmp_path: Path) -> None:
    show(tab, tmp_path, page(with_text=True))
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = Counter(n["role"]["value"] for n in nodes if not n["ignored"])
    for role in ("banner", "navigation", "main", "contentinfo", "note", "table", "rowheader"):
        assert roles[role], role
    nameless = [
        n
        for n in nodes
        if not n["ignored"]
        and n["role"]["value"] in {"image", "region", "table", "heading", "link"}
        and not n["name"]["value"].strip()
    ]
    assert not nameless
    names = " ".join(n["name"]["value"] for n in nodes if "name" in n)
    assert "[unsupported: " in names and "[left out: " in names
