"""A record of extracted impressions as FHIR: plain data, no library at run time.

One `DiagnosticReport` a record, always preliminary and marked as asserted by artificial
intelligence (HL7's AI transparency guide: meta.security AIAST); one contained `Observation` an item
(LOINC 19005-8, as IHE's interactive multimedia report has it); a contained `Provenance` of the
model, the adapter and the source by their hashes. Its target "#" is the report that contains it.
A record that holds no draft (abstained, no findings, error) gives a report without conclusion.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Json = dict[str, Any]
Version = Literal["R4B", "R5"]

AI_MARK = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
META = {"security": [AI_MARK]}
IMPRESSION = {
    "system": "http://loinc.org",
    "code": "19005-8",
    "display": "Radiology Imaging study [Impression] (narrative)",
}
STUDY = {
    "system": "http://loinc.org",
    "code": "18748-4",
    "display": "Diagnostic imaging study",
}
RADLEX = "http://radlex.org"
UCUM = "http://unitsofmeasure.org"
URGENCIES = {  # ACR's actionable findings in RadLex
    "category_1": {"code": "RID49480", "display": "category 1 actionable finding"},
    "category_2": {"code": "RID49481", "display": "category 2 actionable finding"},
    "category_3": {"code": "RID49482", "display": "category 3 actionable finding"},
}
SAID = ("certainty", "laterality", "location", "level", "severity", "change", "acuity")
DRAFTED = ("draft", "truncated")
ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
NOT_TEXT = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\U0010ffff]")  # FHIR's strings have none
SHA256 = re.compile(r"[0-9a-f]{64}")


def diagnostic_report(
    record: Mapping[str, Any], version: Version, *, urgency: bool = False
) -> Json:
    """The DiagnosticReport of one line of impressions (impression.schema.json).

    `urgency` adds the ACR category of each item as its interpretation; off unless asked for, as
    the table behind it is the user's. ValueError for another version than R4B and R5.
    """
    if version not in ("R4B", "R5"):
        raise ValueError(f"FHIR {version}: R4B or R5")
    drafted = record["status"] in DRAFTED
    items = record["items"] if drafted else []
    observations = [_observation(item, urgency) for item in items if _text(item["text"])]
    codes = [_concept(f["codes"]) for item in items for f in item["findings"] if _is_coded(f)]
    report: Json = {
        "resourceType": "DiagnosticReport",
        "id": _id(record["id"]),
        "meta": META,
        "contained": [*observations, _provenance(record["provenance"], version)],
        "identifier": [{"system": "urn:report2impression:report", "value": _text(record["id"])}],
        "status": "preliminary",
        "category": [_coded("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD")],
        "code": {"coding": [STUDY]},
        "issued": record["provenance"]["generated_at"],
        "result": [{"reference": f"#{seen['id']}"} for seen in observations],
        "conclusion": _text(record["impression"]) if drafted else "",
        "conclusionCode": codes,
    }
    return _filled(report)


def _observation(item: Mapping[str, Any], urgency: bool) -> Json:
    """One item: its text, and a component for each thing that it says of a finding."""
    most = min((f["urgency"] for f in item["findings"] if "urgency" in f), default="none")
    coded = URGENCIES.get(most) if urgency else None
    components = [part for finding in item["findings"] for part in _finding(finding)]
    components += [_advice(advice) for advice in item["recommendations"]]
    if item.get("assessment"):
        rads = item["assessment"]
        components.append(_said(rads["system"], rads["category"]))
    return _filled(
        {
            "resourceType": "Observation",
            "id": f"item-{item['number']}",
            "meta": META,
            "status": "preliminary",
            "category": [
                _coded("http://terminology.hl7.org/CodeSystem/observation-category", "imaging")
            ],
            "code": {"coding": [IMPRESSION]},
            "valueString": _text(item["text"]),
            "interpretation": [{"coding": [{"system": RADLEX, **coded}]}] if coded else [],
            "component": components,
        }
    )


def _finding(finding: Mapping[str, Any]) -> list[Json]:
    """Presence, then what else is said, then its sizes: each by the finding's name."""
    name = finding["term"]
    code: Json = {"text": name}
    if _is_coded(finding):
        code = {**_concept(finding["codes"]), **code}
    parts = [{"code": code, "valueCodeableConcept": {"text": finding["presence"]}}]
    parts += [_said(f"{name}: {key}", finding[key]) for key in SAID if finding.get(key)]
    for size in finding.get("measurements", []):
        which = "size in the prior study" if size.get("of_prior") else "size"
        parts += [
            {
                "code": {"text": f"{name}: {which}"},
                "valueQuantity": {"value": value, "unit": "mm", "system": UCUM, "code": "mm"},
            }
            for value in size["values_mm"]
        ]
    return parts


def _said(what: str, value: str) -> Json:
    return {"code": {"text": what}, "valueCodeableConcept": {"text": _text(value)}}


def _advice(advice: Mapping[str, Any]) -> Json:
    return {"code": {"text": "recommendation"}, "valueString": _text(advice["text"])}


def _provenance(told: Mapping[str, Any], version: Version) -> Json:
    """Who wrote it (the adapter on its base), from what (the report), and when."""
    when = {"occurredDateTime": told["generated_at"]} if version == "R5" else {}
    model = _hash(told["adapter_sha256"]) | {"display": _text(told["model"])}
    source = [{"role": "source", "what": _hash(told.get("source_sha256", ""))}]
    return _filled(
        {
            "resourceType": "Provenance",
            "id": "provenance",
            "target": [{"reference": "#"}],
            **when,
            "recorded": told["generated_at"],
            "activity": {"text": _text(f"{told['decoding']}; rules {told['rules']}")},
            "agent": [
                {
                    "type": _coded(
                        "http://terminology.hl7.org/CodeSystem/provenance-participant-type",
                        "assembler",
                    ),
                    "who": model,
                }
            ],
            "entity": [part for part in source if part["what"]],
        }
    )


def _hash(sha256: str) -> Json:
    if not SHA256.fullmatch(sha256):
        return {}
    return {"identifier": {"system": "urn:report2impression:sha256", "value": sha256}}


def _coded(system: str, code: str) -> Json:
    return {"coding": [{"system": system, "code": code}]}


def _is_coded(finding: Mapping[str, Any]) -> bool:
    return bool(finding.get("codes"))


def _concept(codes: Sequence[Mapping[str, Any]]) -> Json:
    return {"coding": [dict(code) for code in codes]}


def _id(name: str) -> str:
    """The record's own id where FHIR allows it, else a hash of it."""
    if ID.fullmatch(name):
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _text(text: str) -> str:
    """Without the characters that no FHIR string may hold, and without blanks around it."""
    return NOT_TEXT.sub(" ", text).strip()


def _filled(resource: Json) -> Json:
    """FHIR has no empty list, object or string: they are left out."""
    return {key: value for key, value in resource.items() if value not in ("", [], {})}
