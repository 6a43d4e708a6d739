"""One report's impression with its items, and why it may be none: the record of
impression.schema.json.

No status is final: a radiologist signs. Of a report without an impression (abstained, no findings,
error) the record says why, and holds no text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from report2impression.extracting.items import RULES, as_json
from report2impression.extracting.parts import Item, Span, Structure

DRAFT, ABSTAINED, NO_FINDINGS, TRUNCATED, ERROR = (
    *("draft", "abstained", "no_findings", "truncated"),
    "error",
)
STATUSES = (DRAFT, TRUNCATED, ABSTAINED, NO_FINDINGS, ERROR)
NOTHING = Structure((), "none", None)


@dataclass(frozen=True)
class Impression:
    """What was written for one report. Offsets of `items` are of `text`, those of their evidence of
    the report as it was given."""

    id: str
    status: str
    provenance: Mapping[str, str]
    text: str = ""
    structure: Structure = NOTHING
    group: str | None = None
    reason: str | None = None
    confidence: float | None = None
    truncated_source: bool = False

    @property
    def items(self) -> tuple[Item, ...]:
        return self.structure.items

    @property
    def urgency(self) -> str:
        return self.structure.urgency

    @cached_property
    def unsupported(self) -> tuple[str, ...]:
        """Kinds of what the report does not say, each once."""
        said = self.structure.checks
        return tuple(dict.fromkeys(span.kind for span in said.unsupported)) if said else ()

    @property
    def supported(self) -> bool:
        """Held against its report, and nothing found."""
        return self.structure.checks is not None and not self.unsupported

    def as_json(self) -> dict[str, Any]:
        """Plain data, valid by impression.schema.json."""
        plain = as_json(self.structure)
        plain["checks"] |= {
            "truncated_source": self.truncated_source,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
        }
        head = {"schema_version": 1, "id": self.id, "group": self.group, "status": self.status}
        said = {"reason": self.reason, "impression": self.text}
        return head | said | plain | {"provenance": dict(self.provenance)}


def now() -> str:
    """UTC to the second, RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def origin(source: str, *, model: str, sha256: str, decoding: str, at: str) -> dict[str, str]:
    """The record's provenance; of the source its hash alone."""
    return {
        "model": model,
        "adapter_sha256": sha256,
        "decoding": decoding,
        "rules": RULES,
        "source_sha256": hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest(),
        "generated_at": at,
    }


def moved(found: Structure, places: list[int]) -> Structure:
    """Evidence in the findings -> where it stands in the report; `places` of each character."""

    def there(span: Span) -> Span:
        return Span(places[span.start], places[span.end - 1] + 1)

    def item(old: Item) -> Item:
        seen = [replace(f, evidence=tuple(map(there, f.evidence))) for f in old.findings]
        return replace(old, findings=tuple(seen))

    return replace(found, items=tuple(map(item, found.items)))
