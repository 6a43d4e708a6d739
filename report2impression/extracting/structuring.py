"""--structure_only: the impressions of radiologists, or of any other tool, as items; no model."""

from collections.abc import Callable, Sequence
from functools import partial

from report2impression.extracting.impressions import (
    DRAFT,
    ERROR,
    NO_FINDINGS,
    Impression,
    moved,
    now,
    origin,
)
from report2impression.extracting.items import structure
from report2impression.extracting.options import ExtractorConfig
from report2impression.extracting.reports import Report
from report2impression.extracting.urgency import read_table
from report2impression.program.unseen import has_ink
from report2impression.reading.sections import NAMES, find_sections, places_of, texts_of
from report2impression.scoring.faithfulness.claims import read


class Structurer:
    """As an Extractor, of impressions that are there."""

    def __init__(self, config: ExtractorConfig) -> None:
        self.table = read_table(config.urgency) if config.urgency else None

    def extract(self, reports: Sequence[Report]) -> list[Impression]:
        """One record for each, in their order."""
        at = now()
        found = [self._structured(report, at) for report in reports]
        read.cache_clear()
        return found

    def _structured(self, report: Report, at: str) -> Impression:
        made_by = origin(report.text, model="none", sha256="", decoding="none", at=at)
        said = partial(Impression, report.id, provenance=made_by, group=report.group)
        if report.problem:
            return said(status=ERROR, reason=report.problem)
        found = _parts(report)
        if found is None:
            return said(status=NO_FINDINGS, reason="the report has no impression")
        text, source, places = found
        built = structure(text, source, urgency=self.table)
        return said(status=DRAFT, text=text, structure=moved(built, places()))


def _parts(report: Report) -> tuple[str, str | None, Callable[[], list[int]]] | None:
    """The impression, its findings, and where their characters stand in what was given; none:
    there is no impression."""
    text, source = report.text.strip(), report.source
    if not has_ink(text):
        return None
    if not report.as_is:
        parts = texts_of(report.text)
        if "impression" in parts:
            places = partial(places_of, report.text, "findings")
            return parts["impression"], parts.get("findings"), places
        if {section.name for section in find_sections(report.text)} & {*NAMES, "examination"}:
            return None
    return text, source, lambda: list(range(len(source or "")))
