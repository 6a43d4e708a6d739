"""What an impression is made of: the schema's names and nesting (impression.schema.json).

Every span is characters [start, end): of the impression, but `evidence` of the source report.
"""

from dataclasses import dataclass

PRESENCE = ("present", "absent", "possible")
CERTAINTY = ("stated", "probable", "possible", "unlikely")
SEVERITY = ("trace", "mild", "moderate", "severe")
CHANGE = ("new", "increased", "decreased", "unchanged", "resolved")
ACUITY = ("acute", "subacute", "chronic")
URGENCY = ("category_1", "category_2", "category_3", "none")  # the most urgent first


@dataclass(frozen=True, slots=True, order=True)
class Span:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Measurement:
    values_mm: tuple[float, ...]  # one to three
    text: str
    of_prior: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Recommendation:
    text: str
    modality: str | None
    interval: str | None  # ISO 8601, of "3 to 6 months" the P3M
    condition: str | None
    span: Span


@dataclass(frozen=True, slots=True)
class Assessment:
    """A RADS category as written."""

    system: str
    category: str
    span: Span


@dataclass(frozen=True, slots=True)
class Code:
    system: str
    code: str
    display: str


@dataclass(frozen=True, slots=True)
class Finding:
    term: str  # the lexicon's name of it
    text: str
    span: Span
    presence: str
    certainty: str
    laterality: str | None
    location: str | None
    level: str | None
    severity: str | None
    change: str | None
    acuity: str | None
    measurements: tuple[Measurement, ...]
    codes: tuple[Code, ...]
    urgency: str
    evidence: tuple[Span, ...]  # empty: unsupported, or there is no source


@dataclass(frozen=True, slots=True)
class Item:
    number: int
    text: str
    span: Span
    findings: tuple[Finding, ...]
    recommendations: tuple[Recommendation, ...]
    assessment: Assessment | None


@dataclass(frozen=True, slots=True)
class Unsupported:
    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Checks:
    """What of the impression its source does not support."""

    unsupported: tuple[Unsupported, ...]
    omitted_measurements: int  # of the source, not in the impression


@dataclass(frozen=True, slots=True)
class Structure:
    items: tuple[Item, ...]
    urgency: str  # the highest of its findings
    checks: Checks | None  # None: no source was given
