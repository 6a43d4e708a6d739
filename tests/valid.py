"""Is a record valid by our schema, and its FHIR by fhir.resources and by the codes it may hold?"""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from report2impression.extracting import fhir
from report2impression.extracting.impressions import DRAFT, TRUNCATED

SCHEMA = Path(fhir.__file__).with_name("impression.schema.json")
MODULES = {"R4B": "fhir.resources.R4B.diagnosticreport", "R5": "fhir.resources.diagnosticreport"}


@cache
def _validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def check_record(record: dict[str, Any]) -> None:
    """As it is read again: JSON knows no infinite numbers."""
    _validator().validate(json.loads(json.dumps(record, allow_nan=False)))


def check_fhir(report: dict[str, Any], version: str) -> None:
    """The structure by fhir.resources, which knows no value sets: codes by ourselves."""
    pytest.importorskip("fhir.resources")
    model = importlib.import_module(MODULES[version]).DiagnosticReport
    model.model_validate_json(json.dumps(report, allow_nan=False))
    assert report["status"] == "preliminary"
    assert report["meta"]["security"][0]["code"] == "AIAST"
    *observations, provenance = report["contained"]
    assert [f"#{seen['id']}" for seen in observations] == [
        result["reference"] for result in report.get("result", [])
    ]
    for seen in observations:
        assert seen["status"] == "preliminary" and seen["valueString"].strip()
        assert seen["code"]["coding"][0]["code"] == "19005-8"
    assert provenance["agent"][0]["type"]["coding"][0]["code"] == "assembler"
    assert provenance["entity"][0]["role"] == "source"


def has_text(record: dict[str, Any]) -> bool:
    """Whether its status promises an impression."""
    return record["status"] in (DRAFT, TRUNCATED)
