"""The README.md beside saved weights: what they are, how they were made, how to use them.
Figures only."""

import json
from importlib.metadata import version
from pathlib import Path

from report2impression.reading.licence import Mark
from report2impression.runs.recipe import TrainConfig

LIBRARIES = ("torch", "transformers", "peft", "accelerate")

LOAD_ADAPTER = """import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

base = AutoModelForSeq2SeqLM.from_pretrained({base}, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, FOLDER).merge_and_unload().eval()
"""
LOAD_MODEL = """import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSeq2SeqLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
"""
ANSWER = """ids = tokenizer({prefix} + findings, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens={n})[0], skip_special_tokens=True))
"""
FILL = """
It fills masks (`<extra_id_0>`) and writes no impressions."""
GO_ON = """
It fills masks (`<extra_id_0>`), and goes on with the impression where the word `impression` stands
behind findings."""
NEXT = """ `--model.path FOLDER` trains an adapter on it."""


def usage(config: TrainConfig, *, max_new_tokens: int = 128) -> str:
    """Code that loads the weights from FOLDER and, if they can, answers `findings`."""
    base, prefix = json.dumps(config.model.path), json.dumps(config.data.prefix)
    code = LOAD_ADAPTER.format(base=base) if config.tuning == "lora" else LOAD_MODEL
    if config.objective == "extract":
        code += ANSWER.format(prefix=prefix, n=max_new_tokens)
    words = "" if config.objective == "extract" else GO_ON if config.at_impression else FILL
    return f"```python\n{code}```\n{words}{NEXT if config.tuning == 'full' else ''}".rstrip()


def write_model_card(
    folder: Path,
    config: TrainConfig,
    epoch: int,
    figures: dict[str, float],
    *,
    n_processes: int,
    precision: str,
    family: str = "t5",
) -> None:
    """Write folder/README.md. `figures` are those of the validation data after `epoch` (from 1),
    `precision` is what auto came to, `family` the base's model_type."""
    is_adapter, extracts = config.tuning == "lora", config.objective == "extract"
    method = f"LoRA r={config.lora.r}, alpha={config.lora.alpha:g}" if is_adapter else "all weights"
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in figures.items()
    )
    name = shown_name(family)
    kind = f"{name} LoRA adapter" if is_adapter else name if extracts else f"{name} base"
    task = "summarization" if extracts else "span-corruption"
    mark = config.mark()
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    (folder / "README.md").write_text(
        f"""---
library_name: {"peft" if is_adapter else "transformers"}
tags: [{family}, radiology, {"lora, " if is_adapter else ""}{task}]
credentialed: {str(mark.credentialed).lower()}
---
# {kind}: radiology {"findings to impression" if extracts else "reports"}

Trained by report2impression with objective `{config.objective}` ({method}), learning rate
{config.learning_rate:g}, seed {config.seed}; the weights of epoch {epoch}, the best on validation.

Run on {n_processes} process{"es" * (n_processes > 1)}, with
{config.global_batch_size(n_processes)} reports per optimizer step, in {precision}, by
{versions}.
On as many processes and with these versions, `training.toml` repeats the run:
`accelerate launch train_loop.py --config training.toml --output_dir NEW`.

| validation | |
|---|---|
{rows}

## Use

{usage(config)}

Sources were cut at {config.data.max_source_tokens} tokens, targets at
{config.data.max_target_tokens}.

## Limits

A research model, not a medical device: it can omit, invert or invent findings. Weights trained on
clinical reports may reproduce parts of them; the licence of the training data decides with whom
they may be shared.
{duties(mark)}"""
    )


def shown_name(family: str) -> str:
    """Of a base's model_type: T5, but bart."""
    return family.upper() if family == "t5" else family


def duties(mark: Mark) -> str:
    """What the licence of credentialed data asks of whoever holds the weights."""
    if not mark.credentialed:
        return ""
    return f"""
## Licence

Trained on credentialed data: {mark.source}. It is under the {mark.licence}, and so are these
weights: share them only with people who signed the same agreement (on PhysioNet, not on a hub or a
web page), send nothing made from the data to a third-party service, and do not try to identify
anyone.
"""
