"""The README.md beside saved weights: what they are, how they were made, how to use them.
Figures only."""

import json
from pathlib import Path

from recipe import TrainConfig

ADAPTER_USE = """```python
from peft import PeftModel
from transformers import AutoTokenizer, T5ForConditionalGeneration

base = T5ForConditionalGeneration.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, ADAPTER_FOLDER).merge_and_unload().eval()
ids = tokenizer({prefix} + findings, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=128)[0], skip_special_tokens=True))
```"""
MODEL_USE = """A T5 base with its tokenizer. `--model.path FOLDER` trains an adapter on it, and
`T5ForConditionalGeneration.from_pretrained(FOLDER)` loads it."""


def write_model_card(
    folder: Path, config: TrainConfig, epoch: int, figures: dict[str, float]
) -> None:
    """Write folder/README.md. `figures` are those of the validation data after `epoch` (from 1)."""
    is_adapter = config.tuning == "lora"
    use = MODEL_USE
    if is_adapter:
        base, prefix = json.dumps(config.model.path), json.dumps(config.data.prefix)
        use = ADAPTER_USE.format(base=base, prefix=prefix)
    method = f"LoRA r={config.lora.r}, alpha={config.lora.alpha:g}" if is_adapter else "all weights"
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in figures.items()
    )
    title = "T5 LoRA adapter" if is_adapter else "T5 base"
    (folder / "README.md").write_text(
        f"""---
library_name: {"peft" if is_adapter else "transformers"}
tags: [t5, radiology, {"lora, summarization" if is_adapter else "span-corruption"}]
---
# {title}: radiology {"findings to impression" if is_adapter else "reports"}

Trained by report2impression with objective `{config.objective}` ({method}), learning rate
{config.learning_rate:g}, seed {config.seed}; the weights of epoch {epoch}, the best on validation.
`training.toml` holds every setting and repeats the run:
`accelerate launch train_loop.py --config training.toml`.

| validation | |
|---|---|
{rows}

## Use

{use}

Sources were cut at {config.data.max_source_tokens} tokens, targets at
{config.data.max_target_tokens}.

## Limits

A research model, not a medical device: it can omit, invert or invent findings. Weights trained on
clinical reports may reproduce parts of them; the licence of the training data decides with whom
they may be shared.
"""
    )
