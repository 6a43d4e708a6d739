"""openmed 3.1 and radreport 0.4 on the same impressions, in an environment of their own:

    python -m venv PEERS && PEERS/bin/pip install "openmed==3.1.*" "radreport==0.4.*"
    python -m bench.structure --mtsamples DIR --peers PEERS/bin/python

They are judged on the fields that they have (peer_reader.py says which). Texts go through a pipe.
"""

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.structured.labels import Labelled
from bench.structured.matching import Tally, judge_advice, judge_findings
from report2impression.extracting.parts import Finding, Measurement, Recommendation, Span
from report2impression.program.errors import ConfigError

READER = Path(__file__).with_name("peer_reader.py")
FIELDS_OF = {
    "openmed": ("finding", "finding + presence", "laterality", "values_mm"),
    "radreport": ("finding", "finding + presence", "recommendation", "modality", "interval"),
}


def judged(python: str, reports: Sequence[Labelled]) -> dict[str, dict[str, dict[str, Any]]]:
    """tool -> field -> figures. ConfigError where that Python does not have them."""
    texts = json.dumps([report.text for report in reports])
    try:
        done = subprocess.run(
            [python, "-I", READER], input=texts, stdout=subprocess.PIPE, text=True
        )
    except OSError as error:
        raise ConfigError(f"--peers {python} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise ConfigError(
            f"--peers {python} ended with {done.returncode}; see bench/structured/peers.py"
        )
    return {tool: _figures(tool, reports, read) for tool, read in json.loads(done.stdout).items()}


def _figures(
    tool: str, reports: Sequence[Labelled], read: Iterable[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    tally = Tally()
    for report, said in zip(reports, read, strict=True):
        judge_findings(tally, report.findings, list(map(_finding, said["findings"])))
        judge_advice(tally, report.advice, list(map(_advice, said["advice"])))
    return tally.figures(FIELDS_OF[tool])


def _finding(said: dict[str, Any]) -> Finding:
    span, size = Span(*said["span"]), said.get("values_mm")
    none = dict.fromkeys(("location", "level", "severity", "change", "acuity"))
    return Finding(
        term="",
        text="",
        span=span,
        presence=said["presence"],
        certainty="stated",
        laterality=said.get("laterality"),
        measurements=(Measurement(tuple(size), "", False, span),) if size else (),
        codes=(),
        urgency="none",
        evidence=(),
        **none,
    )


def _advice(said: dict[str, Any]) -> Recommendation:
    return Recommendation("", said["modality"], said["interval"], None, Span(*said["span"]))
