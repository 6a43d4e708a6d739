"""Recited training text: the fast search equals a search through all runs, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report2impression.audit import memorisation as m
from report2impression.audit.verbatim import longest_memorised

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=5)
PAIRS = st.lists(
    st.tuples(*(st.lists(st.sampled_from("abcd"), max_size=9) for _ in range(2))), max_size=5
)


def holds(text: list[str], run: list[str]) -> bool:
    return any(text[i : i + len(run)] == run for i in range(len(text) - len(run) + 1))


def slowly(output: list[str], source: list[str], known: list[list[str]]) -> int:
    runs = (output[i:j] for i in range(len(output)) for j in range(i + 1, len(output) + 1))
    fit = (r for r in runs if not holds(source, r) and any(holds(text, r) for text in known))
    return max(map(len, fit), default=0)


@given(PAIRS, TEXTS)
def test_the_fast_search_equals_the_slow_one(pairs: Any, known: Any) -> None:
    outputs, sources = [o for o, _ in pairs], [s for _, s in pairs]
    found = longest_memorised(outputs, sources, known)
    assert [n for _, n in found] == [slowly(o, s, known) for o, s in pairs]
    for (start, n), output, source in zip(found, outputs, sources, strict=True):
        run = output[start : start + n]
        assert not n or (any(holds(t, run) for t in known) and not holds(source, run))


def predictions(folder: Path) -> Path:
    row = {
        "id": "r1",
        "source": "the heart is large",
        "reference": "large heart",
        "base": "the heart is large",
        "lora": "Zebra was seen by doctor quokka.",
    }
    (folder / m.FILE).write_text(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text(
        json.dumps({"prompt": "the heart is large today", "impressions": row["lora"].lower()})
        + "\n"
    )
    return folder


@pytest.mark.parametrize("asked", [False, True])
def test_figures_and_no_text_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: bool
) -> None:
    folder = predictions(tmp_path)
    flags = [f"--predictions={folder}", f"--data.path={folder}", *(["--show_text"] * asked)]
    m.main(flags)
    out = capsys.readouterr().out
    assert ("quokka" in out) == asked
    line = next(line for line in out.splitlines() if line.startswith("{"))
    systems = json.loads(line)["systems"]
    assert systems["lora"]["max"] == 6 and systems["lora"]["worst"] == [["r1", 6]]
    assert systems["lora"]["copies_of_training_impressions"] == 1
    assert systems["base"]["max"] == 0  # what stands in the source is copied


@pytest.mark.parametrize("text", ["", "[]\n", "{\n", '{"id": 1}\n'])
def test_broken_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    predictions(tmp_path)
    (tmp_path / m.FILE).write_text(text)
    with pytest.raises(SystemExit) as stop:
        m.main([f"--predictions={tmp_path}", f"--data.path={tmp_path}"])
    assert stop.value.code == 3 and "run eval.py again" in capsys.readouterr().err
