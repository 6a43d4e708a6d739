"""Run by a Python that has openmed and radreport, not this project: texts in, what they find out.

Standard input is a JSON list of texts, standard output {tool: [{"findings", "advice"}, ...]}, one
for each text. openmed gives a place, a side and a size, no presence; radreport gives critical terms
once a text, without a place, whether denied, and follow-ups. Both are rules: no weights.
"""

import json
import sys
from typing import Any

from openmed.clinical.radiology_finding import extract_radiology_findings
from radreport.critical_findings import CriticalFindingsDetector
from radreport.recommendation_extractor import RecommendationExtractor
from radreport.report_parser import ReportParser

MM = {"mm": 1.0, "cm": 10.0}
IMPRESSION = "IMPRESSION:\n"


def of_openmed(text: str) -> dict[str, Any]:
    return {"findings": list(map(_finding, extract_radiology_findings(text))), "advice": []}


def _finding(found: Any) -> dict[str, Any]:
    place, side = found["provenance_spans"]["finding"], found["laterality"]
    size, unit = found["size_value"], found["size_unit"]
    return {
        "span": [place["start"], place["end"]],
        "presence": "present",
        "laterality": None if side == "unknown" else side,
        "values_mm": None if size is None else [size * MM[unit]],
    }


def of_radreport(text: str) -> dict[str, Any]:
    report = ReportParser().parse(IMPRESSION + text)
    CriticalFindingsDetector().detect(report)
    RecommendationExtractor().extract(report)
    findings = [
        {
            "span": _place(text, found.context, found.term),
            "presence": "absent" if found.negated else "present",
        }
        for found in report.critical_findings
    ]
    advice = [
        {
            "span": _place(text, said.text, said.text),
            "modality": {"US": "ultrasound", "XR": "radiography"}.get(said.modality, said.modality),
            "interval": _iso(said.interval),
        }
        for said in report.recommendations
    ]
    return {"findings": findings, "advice": advice}


def _place(text: str, context: str, words: str) -> list[int]:
    """Where the words stand, by the sentence that the tool quotes."""
    low, sentence = text.lower(), context.removeprefix(IMPRESSION).strip().lower()
    start = low.find(words.lower(), max(0, low.find(sentence)))
    return [max(0, start), max(0, start) + len(words)]


def _iso(interval: str | None) -> str | None:
    number, _, unit = (interval or "").partition(" ")
    if number == "annual":
        return "P1Y"
    return f"P{number}{unit[0].upper()}" if number.isdigit() else None


if __name__ == "__main__":
    texts = json.load(sys.stdin)
    tools = {"openmed": of_openmed, "radreport": of_radreport}
    json.dump({name: list(map(read, texts)) for name, read in tools.items()}, sys.stdout)
