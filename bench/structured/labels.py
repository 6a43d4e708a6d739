"""Real impressions with labels (labels.jsonl): offsets and values, without the text.

The texts are MTSamples and PARROT, which the project does not ship; a folder of them is given. A
label belongs to its text by SHA-256. They were made by the builders of this project, not by
radiologists: `development` and `grown` by two readers apart, the first with the rules' output in
view, the second with neither that nor the first's labels, reconciled by the rules below; `unseen`
and `parrot` by the second reader alone, before anything that reads them was changed.

A finding is each mention of something abnormal, of a device or of what surgery left, or of
a general "acute process"; not: normal statements of organs, values such as an ejection fraction,
symptoms and what the clinician felt, or what was done. "May be", "consider", "cannot be excluded"
make it possible; "probable", "likely", "suspicious for" possible and probable; "consistent with"
present and probable.

What the readers did not agree on was decided so. A study that is only called abnormal, a technical
artifact, a word that describes another finding (displacement of a fracture, "non-malignant") and
what is said of no patient (the small print of a mammogram) are no findings; abnormal signal or
shape without a diagnosis, and a denied complication, are. A hedge holds for all that an "and" joins
to the first. What has ended is absent and resolved. An operation after "changes of" is one finding
with them. A side that belongs to an organ's name (left atrium), and "extensive" or "tiny" of what
has no grades, are open.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.structured.matching import Label

LABELS = Path(__file__).with_name("labels.jsonl")
# The lexicon was grown with the first, and with what it missed in the second at first sight.
PARTS = ("development", "grown", "unseen", "parrot")


@dataclass(frozen=True)
class Labelled:
    id: str
    part: str
    text: str
    findings: list[Label]
    advice: list[Label]


def labelled(folder: Path) -> list[Labelled]:
    """The labelled impressions of which the folder has the text."""
    lines = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    every = [*_texts(folder), *_of_notes(folder, lines)]
    texts = {_sha256(text): text for text in every}
    return [_labelled(line, texts[line["sha256"]]) for line in lines if line["sha256"] in texts]


def impressions(file: Path) -> list[str]:
    """The impressions of a JSONL file of pairs."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [pair.get("impression") or pair["impressions"] for pair in map(json.loads, lines)]


def _texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl")):
        yield from impressions(file)


def _of_notes(folder: Path, lines: list[dict[str, Any]]) -> Iterator[str]:
    """Impressions that are parts of a whole note: its characters [start, end), a line each."""
    for line in lines:
        file = next(folder.glob(f"*/{line['id']}.txt"), None)
        if file and "parts" in line:
            note = file.read_text(encoding="utf-8")
            yield "\n".join(note[start:end] for start, end in line["parts"])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _labelled(line: dict[str, Any], text: str) -> Labelled:
    findings = [_label(f) for f in line["findings"]]
    return Labelled(
        line["id"], line["part"], text, findings, [_label(r) for r in line["recommendations"]]
    )


def _label(said: dict[str, Any]) -> Label:
    values = {k: v for k, v in said.items() if k not in ("span", "open") and v is not None}
    start, end = said["span"]
    return Label(start, end, values, frozenset(said.get("open", ())))
