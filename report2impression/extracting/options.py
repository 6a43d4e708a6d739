"""Settings of extraction; loads nothing heavy."""

import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from report2impression.decoding.options import DecodingConfig
from report2impression.program.errors import ConfigError, check_least
from report2impression.runs.evaluation import BaseConfig, EvalData

OnUnsupported = Literal["keep", "flag", "abstain"]
Sections = Literal["auto", "cut", "keep"]
Format = Literal["text", "json", "csv", "fhir"]
ENDINGS: dict[str, Format] = {
    **{".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text", ".ndjson": "fhir"}
}
NAMES: dict[Format, str] = {
    **{"json": "impressions.jsonl", "csv": "impressions.csv", "text": "impressions.txt"},
    "fhir": "impressions.ndjson",
}


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig(DecodingConfig):
    """How reports become structured impressions."""

    column: str | None = None
    """Column of the report or of its findings; none = the first of the training's own column,
    prompt, findings, report and text that is there."""
    sections: Sections = "auto"
    """cut = take the findings section of each report, none where it has none; keep = take each text
    as it is; auto = keep the columns trained on, prompt and findings, cut others where they have
    headings."""
    confidence: bool = True
    """Tell how sure the model is: exp(mean log-probability of the tokens), 0 to 1. Decoding takes
    1.36 times as long in fp32, 1.04 times in bf16 (T5-small's shape, 48 tokens, CPU with AMX)."""
    min_confidence: float = 0.0
    """Abstain below this confidence: the report gets no impression."""
    on_unsupported: OnUnsupported = "keep"
    """What follows where the report does not support a span of the impression: keep = it is listed
    in the checks; flag = the record's reason names it, too; abstain = no impression is given."""
    urgency: str | None = None
    """Your table of urgent findings, written like extracting/urgency.txt; none = that one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence must be 0 to 1, not {self.min_confidence}")
        if self.min_confidence and not self.confidence:
            raise ConfigError("min_confidence needs the confidence: leave --confidence true")
        if self.min_confidence and self.engine == "ctranslate2":
            forbids = self.min_new_tokens or self.no_repeat_ngram
            if forbids:
                raise ConfigError(
                    "min_confidence: engine = ctranslate2 gives no confidence with min_new_tokens "
                    "or no_repeat_ngram; use engine = torch"
                )


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ExtractorConfig):
    """Reports in, impressions out."""

    adapter: str | None = None
    """What a run trained (RUN/adapter, or RUN/model), or a merged model; none: --structure_only."""
    input: str = "-"
    """Folder of .txt reports; a .txt, .jsonl, .csv, .tsv (also .gz, .zst) or .parquet file; a
    folder or hub id of report pairs (its --split); - = standard input, one report or JSON lines."""
    split: str = "test"
    """Which split of a folder of pairs or of a hub data set."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = its main branch."""
    id_column: str = "id"
    """Column of the id; where a row has none it is named by its place."""
    group_column: str = "group"
    """Column of the group (such as CT_head)."""
    output: str = "-"
    """File (.jsonl, .csv, .txt, .ndjson) or folder of the results, REPORT TEXT, readable by its
    owner only; - = standard output."""
    format: Format | None = None
    """text, json (impression.schema.json), csv or fhir (DiagnosticReport as NDJSON), a line each;
    none = as --output ends, else json; text on standard output."""
    fhir_version: Literal["R4B", "R5"] = "R4B"
    """Version of FHIR that format = fhir writes."""
    fhir_urgency: bool = False
    """Write into FHIR, too, how urgent each item is by the table (ACR's categories 1 to 3)."""
    structure_only: bool = False
    """Structure the impressions of the input (columns impressions, impression, summary or text);
    no model is loaded."""
    resume: bool = False
    """Go on with --output: ids that it holds are skipped."""
    shard: str = "1/1"
    """i/n = only the i-th of n parts of the input, block by block (1/3, 2/3, 3/3)."""
    block_size: int = 512
    """Reports decoded together and put onto the disk at once; the same in all shards."""
    cpu: bool = False
    """Decode on the CPU even if a GPU is there."""
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, self, "block_size")
        number, n = self.part()
        if not 1 <= number <= n:
            raise ConfigError(f"--shard {self.shard}: give i/n with i from 1 to n, such as 2/16")
        if self.structure_only == (self.adapter is not None):
            raise ConfigError(
                "give --adapter RUN/adapter, or --structure_only for impressions that are there"
            )
        if self.resume and self.output == "-":
            raise ConfigError("--resume needs --output: standard output remembers nothing")

    def part(self) -> tuple[int, int]:
        """(i, n) of the shard, counted from 1; (0, 0) if it is none."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard, re.ASCII)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def kind(self) -> Format:
        """Of the results."""
        if self.format or self.output == "-":
            return self.format or "text"
        return ENDINGS.get(PurePath(self.output).suffix, "json")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One model for other programs."""

    adapter: str
    """What a run trained (RUN/adapter or RUN/model)."""
    to: Literal["merged", "ctranslate2"]
    """merged = a plain folder of transformers (safetensors); ctranslate2 = that library's format
    (extra "ct2")."""
    output: str
    """New folder of the model; must not exist, or be empty."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Of ctranslate2's weights; fp32 must give all of our tokens, of the others the share is
    told. A merged folder has fp32."""
    max_new_tokens: int = 128
    """Longest impression in tokens; a merged folder keeps it in its generation config."""
    n: int = 1000
    """Validation reports that the export is tried on; 0 or more than there are = all."""
    data: EvalData = field(default_factory=EvalData)
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        check_least(0, self, "n")
        check_least(1, self, "max_new_tokens")
        if self.to == "merged" and self.precision != "fp32":
            raise ConfigError("a merged folder has fp32; --precision is of --to ctranslate2")
