"""Reports in, structured impressions out: a plain callable on a batch, the one way to use a model.

    extractor = Extractor("RUN/adapter")
    for impression in extractor(["FINDINGS: ..."]):
        print(impression.text, impression.items)
    dataset.map(extractor, batched=True)            # columns in, columns out

The flow, shared with eval.py from the third step on, so that both write the same tokens:

    text -> its findings (reports.py) -> spelled, prefixed, cut (batching/prompts.py) -> tokens
    (decoding/generate.py) -> text -> items and checks (items.py) -> kept, flagged or withheld
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from report2impression.batching.prompts import Prompts
from report2impression.decoding.generate import Generator, longest_first, to_text
from report2impression.decoding.options import Output
from report2impression.extracting.impressions import (
    ABSTAINED,
    DRAFT,
    ERROR,
    NO_FINDINGS,
    TRUNCATED,
    Impression,
    moved,
    now,
    origin,
)
from report2impression.extracting.items import structure
from report2impression.extracting.options import ExtractorConfig
from report2impression.extracting.reports import FINDINGS, Columns, Report, findings_of
from report2impression.extracting.urgency import read_table
from report2impression.program.config import load
from report2impression.program.errors import ConfigError
from report2impression.program.unseen import has_ink
from report2impression.runs.evaluation import BaseConfig, as_trained
from report2impression.runs.recipe import TrainConfig
from report2impression.scoring.faithfulness.claims import read
from report2impression.weights.folders import find_trained
from report2impression.weights.loading import load_base
from report2impression.weights.trained import trained_model, trained_tokenizer, weights_sha256


class Extractor:
    """A trained model, ready for reports."""

    def __init__(
        self,
        adapter: str | Path,
        *,
        base: BaseConfig | None = None,
        device: str | torch.device | None = None,
        untrained: bool = False,
        **options: Any,
    ) -> None:
        """What a run trained (RUN/adapter or RUN/model), or a merged model; `base`: another place
        of the base; `device`: none = a GPU where there is one; `untrained`: the adapter's base, as
        it was before; `options`: ExtractorConfig's.

        Raises ConfigError if there is no such model or option.
        """
        places: dict[str, Any] = {"base": base, "device": device, "untrained": untrained}
        self._made_by = partial(Extractor, adapter, **places, **options)
        self.config = config = ExtractorConfig(**options)
        self.table = read_table(config.urgency) if config.urgency else None
        found = find_trained(adapter)
        if untrained and not found.is_adapter:
            raise ConfigError(f"{adapter} is no adapter: there is no base to compare it with")
        trained = load(TrainConfig, found.recipe)
        model_config = as_trained(base or BaseConfig(), trained.model)
        self.tokenizer = trained_tokenizer(found, model_config)
        model = load_base(model_config) if untrained else trained_model(found, model_config)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.prompts = Prompts(self.tokenizer, trained.data)
        own = filter(None, [trained.data.source_column])
        self.columns = Columns(as_is=(*own, *FINDINGS), asked=config.column)
        self._generator = Generator(model, config, self.tokenizer, scored=config.confidence)
        self._origin = partial(
            origin,
            model=Path(trained.model.path).name if found.is_adapter else found.path.name,
            sha256="" if untrained else weights_sha256(found),
            decoding=_described(config),
        )

    def __reduce__(self) -> Any:
        """Another process loads the model itself: `datasets`, Ray and Spark send this object."""
        return self._made_by, ()

    def __call__(self, batch: Any) -> Any:
        """Texts or rows -> Impressions; columns -> the columns and these: generated, status,
        urgency, confidence, supported, record (JSON by impression.schema.json)."""
        if isinstance(batch, Mapping):
            return {**batch, **self._columns(batch)}
        return self._rows(batch)

    def _rows(self, batch: Sequence[Any]) -> list[Impression]:
        rows = [{"text": row} if isinstance(row, str) else row for row in batch]
        return self.extract([self.columns.report(row, str(i)) for i, row in enumerate(rows)])

    def _columns(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        cells = zip(*batch.values(), strict=True)
        # Not by a call of self: Ray's wrapper of it has one thread, which would wait for itself.
        found = self._rows([dict(zip(batch, map(_plain, row), strict=True)) for row in cells])
        return {
            "generated": [one.text for one in found],
            "status": [one.status for one in found],
            "urgency": [one.urgency for one in found],
            "confidence": [one.confidence for one in found],
            "supported": [one.supported for one in found],
            "record": [json.dumps(one.as_json(), ensure_ascii=False) for one in found],
        }

    def extract(self, reports: Sequence[Report]) -> list[Impression]:
        """One impression for each report, in their order, whatever is in them."""
        at, found = now(), {}
        readable: list[tuple[int, str, Any]] = []
        for i, report in enumerate(reports):
            made_by = self._origin(report.text, at=at)
            said = partial(Impression, report.id, provenance=made_by, group=report.group)
            findings = None if report.problem else findings_of(report, self.config.sections)
            if findings is not None:
                readable.append((i, findings[0], partial(self._judged, said, findings)))
            elif report.problem:
                found[i] = said(status=ERROR, reason=report.problem)
            else:
                found[i] = said(status=NO_FINDINGS, reason="the report has no findings")
        outputs = self._written([text for _, text, _ in readable])
        for (i, _, judged), (output, text, is_cut) in zip(readable, outputs, strict=True):
            found[i] = judged(output, text, is_cut)
        read.cache_clear()
        return [found[i] for i in range(len(reports))]

    def _written(self, findings: Sequence[str]) -> Iterator[tuple[Output, str, bool]]:
        """Tokens, text, and whether the findings had to be cut, of each."""
        if not findings:
            return iter(())
        spelled = list(map(self.prompts.spelled, findings))
        source = self.prompts.tokens(spelled)
        stream = self._generator.stream(source, longest_first(source))
        outputs = sorted(stream, key=lambda output: output.report)
        texts = to_text(self.tokenizer, [output.ids for output in outputs])
        cut = self.prompts.cut(spelled, source).tolist()
        return zip(outputs, texts, cut, strict=True)

    def _judged(
        self, said: Any, findings: tuple[str, Any], output: Output, text: str, is_cut: bool
    ) -> Impression:
        """The impression, or what the settings make of it."""
        config, (source, places) = self.config, findings
        known = {"confidence": output.confidence, "truncated_source": is_cut}
        if config.min_confidence and (output.confidence or 0.0) < config.min_confidence:
            reason = f"the confidence is below {config.min_confidence:g}"
            return said(status=ABSTAINED, reason=reason, **known)
        if not has_ink(text):
            return said(status=ABSTAINED, reason="the model wrote nothing", **known)
        built = moved(structure(text, source, urgency=self.table), places())
        reasons = [
            f"the findings were cut at {self.prompts.longest} tokens" if is_cut else "",
            f"the impression was cut at {config.max_new_tokens} tokens" if output.cut else "",
        ]
        whole: Impression = said(
            status=TRUNCATED if any(reasons) else DRAFT, text=text, structure=built, **known
        )
        if whole.unsupported and config.on_unsupported != "keep":
            unsupported = "not in the report: " + ", ".join(whole.unsupported)
            if config.on_unsupported == "abstain":
                return said(status=ABSTAINED, reason=unsupported, **known)
            reasons.append(unsupported)
        return replace(whole, reason="; ".join(filter(None, reasons)) or None)


def _described(config: ExtractorConfig) -> str:
    search = "greedy" if config.num_beams == 1 else f"{config.num_beams} beams"
    limit = f"at most {config.max_new_tokens} tokens"
    return f"{search}, {limit}, {config.precision}, engine {config.engine}"


def _plain(cell: Any) -> Any:
    """A cell of a column as Python holds it: numpy's integers and such have `item`."""
    return cell.item() if hasattr(cell, "item") and not hasattr(cell, "__len__") else cell
