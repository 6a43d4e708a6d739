"""A trained model for other programs: a plain folder of transformers, or CTranslate2's format.

    report2impression export --adapter RUN/adapter --to merged --output DIR
    report2impression export --adapter RUN/adapter --to ctranslate2 --precision int8 --output DIR

Before the folder is there, what lies in it has decoded the validation reports as its users will:
"N of N reports, the same tokens as our decoder", or it is not written (of int8 and bf16 the share
is told). The licence mark of the weights goes with them.
"""

from report2impression.extracting.settings import export_settings
from report2impression.program.errors import exits_cleanly

if __name__ == "__main__":
    export_settings()  # --help and mistakes are answered before torch is loaded

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from report2impression.batching.prompts import Prompts
from report2impression.batching.tokens import Tokens
from report2impression.decoding.ct2 import COMPUTE_TYPES, Converted, convert
from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig
from report2impression.decoding.search import until
from report2impression.decoding.special import special_ids
from report2impression.extracting.options import ExportConfig
from report2impression.program.config import save
from report2impression.program.errors import DataError
from report2impression.program.files import new_folder
from report2impression.program.process import keep_freed_memory
from report2impression.reading.licence import Mark, read_mark, write_mark
from report2impression.reading.sources import read_pairs, sample_indices
from report2impression.runs.evaluation import as_trained
from report2impression.runs.model_card import duties, shown_name, usage
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.folders import RECIPE, find_trained
from report2impression.weights.options import ModelConfig
from report2impression.weights.trained import trained_model, trained_tokenizer

PLAIN_BATCH = 16  # reports
CARD = """---
library_name: {library}
tags: [{family}, radiology, summarization]
credentialed: {credentialed}
---
# {name}: radiology findings to impression

Exported by report2impression as {form}, from weights trained on {base}.

## Use

{use}

Sources were cut at {longest} tokens in training. Greedy search, at most {n} tokens.

## Limits

A research model, not a medical device: it can omit, invert or invent findings.
{duties}"""
CT2_USE = """```python
import ctranslate2
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
translator = ctranslate2.Translator(FOLDER, compute_type={kind})
tokens = tokenizer.convert_ids_to_tokens(tokenizer({prefix} + findings).input_ids)
found = translator.translate_batch(
    [tokens], beam_size=1, min_decoding_length=0, max_decoding_length={n}
)
ids = tokenizer.convert_tokens_to_ids(found[0].hypotheses[0])
print(tokenizer.decode(ids, skip_special_tokens=True))
```"""


@dataclass(frozen=True)
class Exported:
    """What is handed on."""

    config: ExportConfig
    trained: TrainConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def write(self, folder: Path) -> None:
        """All files. ConfigError: ctranslate2 is not there or cannot."""
        self.tokenizer.save_pretrained(str(folder))
        if self.config.to == "merged":
            self._write_merged(folder)
        else:
            inner = folder / ".ct2"
            convert(self.model, self.tokenizer, inner, self.config.precision)
            for file in inner.iterdir():
                file.rename(folder / file.name)
            inner.rmdir()
        (folder / "README.md").write_text(self._card(), encoding="utf-8")
        write_mark(folder, self.mark())

    def mark(self) -> Mark:
        """That of the weights, else of what they were trained on."""
        return read_mark(find_trained(self.config.adapter).path) or self.trained.mark()

    def _write_merged(self, folder: Path) -> None:
        model, special = self.model, special_ids(self.model)
        model.config.task_specific_params = None  # a pipeline would obey them
        model.generation_config = GenerationConfig(
            decoder_start_token_id=special.start,
            pad_token_id=special.pad,
            eos_token_id=list(special.ends),
            max_new_tokens=self.config.max_new_tokens,
            num_beams=1,
            do_sample=False,
        )
        model.save_pretrained(str(folder))
        save(self.trained, folder / RECIPE)

    def _card(self) -> str:
        config, data, mark = self.config, self.trained.data, self.mark()
        merged = config.to == "merged"
        use = usage(replace(self.trained, tuning="full"), max_new_tokens=config.max_new_tokens)
        kind = COMPUTE_TYPES[config.precision]
        return CARD.format(
            library="transformers" if merged else "ctranslate2",
            family=self.model.config.model_type,
            name=shown_name(self.model.config.model_type),
            credentialed=str(mark.credentialed).lower(),
            form="a merged folder" if merged else f"CTranslate2 ({kind})",
            base=self.trained.model.path,
            use=use
            if merged
            else CT2_USE.format(kind=repr(kind), prefix=repr(data.prefix), n=config.max_new_tokens),
            longest=data.max_source_tokens,
            n=config.max_new_tokens,
            duties=duties(mark),
        )


def reports_of(
    split: str, config: ExportConfig, trained: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], Tokens]:
    """Sources of the split: whole texts, and tokens as our decoder gets them. DataError: there is
    none."""
    data = as_trained(config.data, trained.data)
    pairs = read_pairs(data, split).pairs
    prompts = Prompts(tokenizer, data)
    chosen = sample_indices(len(pairs), config.n, trained.seed)
    findings = [prompts.spelled(pairs[i].prompt) for i in chosen]
    return prompts.written(findings), prompts.tokens(findings)


def plain_tokens(folder: Path, texts: Sequence[str], longest: int) -> list[list[int]]:
    """What transformers alone makes of a merged folder: its tokenizer, its `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    ).eval()
    special = special_ids(model)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows: list[list[int]] = [[]] * len(texts)
    for start in range(0, len(order), PLAIN_BATCH):
        some = order[start : start + PLAIN_BATCH]
        batch = tokenizer(
            [texts[i] for i in some],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        with torch.no_grad():
            found = model.generate(**batch)[:, 1:].tolist()
        for i, row in zip(some, found, strict=True):
            rows[i] = until(row, special)
    return rows


def n_same(exported: Exported, folder: Path, texts: Sequence[str], source: Tokens) -> int:
    """On how many reports the folder gives our decoder's tokens."""
    config = exported.config
    decoding = DecodingConfig(max_new_tokens=config.max_new_tokens)
    ours = [o.ids for o in generate(exported.model, source, decoding, progress="our decoder")]
    if config.to == "merged":
        theirs = plain_tokens(folder, texts, exported.trained.data.max_source_tokens)
    else:
        engine = Converted(exported.model, exported.tokenizer, config.precision, folder)
        theirs = [o.ids for o in engine.decode(source, range(len(texts)), decoding)]
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config, trained = export_settings(argv)
    keep_freed_memory()
    found = find_trained(config.adapter)
    base: ModelConfig = as_trained(config.model, trained.model)
    tokenizer = trained_tokenizer(found, base)
    texts, source = reports_of("validation", config, trained, tokenizer)
    exported = Exported(config, trained, trained_model(found, base), tokenizer)
    target = Path(config.output).expanduser()
    with new_folder(target) as folder:
        exported.write(folder)
        same = n_same(exported, folder, texts, source)
        share = f"{same:,} of {len(texts):,} reports, the same tokens as our decoder"
        if same < len(texts) and config.precision == "fp32":
            raise DataError(f"{share}: not exported")
    print(f"{share}; written: {target}")


if __name__ == "__main__":
    main()
