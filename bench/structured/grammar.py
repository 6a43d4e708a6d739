"""What a synthetic impression says, from the grammar that made it: its slots are the truth.

An impression is taken apart by the phrases of its study (corpora/synthetic_grammar.txt), read as
patterns. The words of a phrase that name a finding are listed here, by hand and not from the
lexicon; the first takes the slots, of the others ("with midline shift") only presence is judged.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

from bench.structured.matching import FIELDS, Label
from report2impression.corpora.synthetic import CHANGES, SLOTS, studies

NAMES = (
    "subdural hematoma|midline shift|(?:intraparenchymal|intracranial) hemorrhage|infarct",
    "hydrocephalus|fractures?|small vessel ischemic disease|pulmonary embolism|mass|malignancy",
    "pneumonia|pleural effusion|adenopathy|nodule|emphysema|pneumoperitoneum|appendicitis",
    "bowel obstruction|ureteral stone|hydronephrosis|aneurysm|cholelithiasis|displacement",
    "anterolisthesis|swelling|pneumothorax|stenosis|meningioma|demyelinating disease",
    "microhemorrhages|microadenoma|abscess|lesion|metastasis|disc herniation|impingement|cyst",
    "cholecystitis|dilated common bile duct|thrombosis|ascites|splenomegaly|steatosis",
    "lymph nodes?|adenoma|thyroiditis|endotracheal tube|catheter|pulmonary edema|cardiomegaly",
    "depression|distraction|loosening|knee effusion|osteoarthritis|loose body|malalignment",
    "aortic dissection|compression(?! fracture)|biliary dilatation|consolidation|dislocation",
    r"acute (?:\w+ ){0,3}(?:process|abnormality)",
)
NAMED = re.compile(rf"\b(?:{'|'.join(NAMES)})\b")
# Said of the fracture, no findings of their own.
OF_A_FRACTURE = ("displacement", "depression", "distraction")
HEDGED = {"malignancy", "metastasis"}  # "concerning for ..."
ADVISED = {
    "follow up ct recommended": "CT", "ultrasound recommended": "ultrasound",
    "mrcp recommended": "MRCP", "biopsy recommended": "biopsy", "follow up recommended": None,
}  # fmt: skip
LEVELS = ("lobe", "region", "pole", "cervical", "cdisc", "lumbar", "disc")
SAID_LEVELS = (("lower quadrant", "lower quadrant"), ("apical", "apical"))
AMOUNTS = {"small": "mild", "moderate": "moderate", "large": "severe"}
SIZE = r"\d+ (?:mm|cm)"


def labels(group: str, impression: str) -> tuple[list[Label], list[Label]]:
    """(findings, advice) of the impression of that group's study."""
    findings: list[Label] = []
    advice: list[Label] = []
    for start, text in _items(group, impression):
        match, phrase = next(
            (m, phrase) for pattern, phrase in _patterns(group) if (m := pattern.fullmatch(text))
        )
        findings += _findings(match, phrase, start)
        advice += _advice(text, start)
    return findings, advice


def _items(group: str, impression: str) -> Iterator[tuple[int, str]]:
    """Where each item begins, and its words: the numbers are those that leave whole phrases."""
    if not impression.startswith("1 "):
        yield 0, impression
        return
    number, at = 1, 0
    while number:
        at += len(f"{number} ")
        nexts = (m.start() for m in re.finditer(rf" {number + 1} ", impression[at:]))
        ends = [*nexts, len(impression) - at]
        end = next(e for e in ends if _is_phrase(group, impression[at : at + e]))
        yield at, impression[at : at + end]
        number = number + 1 if at + end < len(impression) else 0
        at += end + 1


def _is_phrase(group: str, text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern, _ in _patterns(group))


@functools.cache
def _patterns(group: str) -> list[tuple[re.Pattern[str], str]]:
    study = next(s for s in studies() if s.group == group)
    changes = "|".join(change for change in CHANGES if change)
    phrases = [*(row.phrase for row in study.rows if row.phrase), *study.negatives.values()]
    found = []
    for phrase in dict.fromkeys([*phrases, study.normal]):
        pattern = re.escape(phrase)
        for slot in ("size", *SLOTS):
            values = SIZE if slot == "size" else "|".join(SLOTS[slot])
            pattern = pattern.replace(re.escape(f"{{{slot}}}"), f"(?P<{slot}>{values})")
        found.append((re.compile(rf"(?:(?P<change>{changes}) )?{pattern}"), phrase))
    return found


def _findings(match: re.Match[str], phrase: str, start: int) -> Iterator[Label]:
    denied = phrase.startswith("no ")
    text = match[0]
    first = True
    for name in NAMED.finditer(text):
        if name[0] in OF_A_FRACTURE:
            continue
        hedged = name[0] in HEDGED and "concerning for" in text
        values: dict[str, Any] = {
            "presence": "absent" if denied else "possible" if hedged else "present"
        }
        if first and not denied:
            values |= _slots(match, phrase)
        elif denied and "acute" in text[: name.end()].split():
            values["acuity"] = "acute"
        taste = frozenset() if first else frozenset(FIELDS)
        yield Label(start + name.start(), start + name.end(), values, taste)
        first = False


def _slots(match: re.Match[str], phrase: str) -> dict[str, Any]:
    """The attributes by the schema's names; "with {grade} ..." is of the second finding."""
    text = match[0]
    slots = {key: value for key, value in match.groupdict().items() if value}
    sides = [side for side in ("left", "right") if side in text.split()]
    found: dict[str, Any] = {"laterality": sides[0] if sides else None}
    level = next((slots[name] for name in LEVELS if name in slots), None)
    said = (value for word, value in SAID_LEVELS if word in text)
    found["level"] = level or next(said, None)
    found["severity"] = AMOUNTS.get(slots.get("amount", ""))
    if "grade" in slots and "with {grade}" not in phrase:
        found["severity"] = slots["grade"]
    found["change"] = slots.get("change")
    found["acuity"] = next((word for word in ("acute", "chronic") if word in text.split()), None)
    if "size" in slots:
        number, unit = slots["size"].split()
        found["values_mm"] = [float(number) * (10 if unit == "cm" else 1)]
    return {key: value for key, value in found.items() if value is not None}


def _advice(text: str, start: int) -> Iterator[Label]:
    for said, modality in ADVISED.items():
        if text.endswith(said) and not (said.startswith("follow up rec") and "ct" in said):
            at = start + len(text) - len(said)
            yield Label(at, at + len(said), {"modality": modality})
            return
