"""The card beside saved weights: right for every kind of run, and its code does what it says."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from model import attach_lora
from report2impression.runs.model_card import write_model_card
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.loading import load_base
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.saving import save_model
from report2impression.weights.tokenizer import load_tokenizer
from tests.programs import ForkServer
from tests.tiny import Tiny

LOSS = """
labels = tokenizer("no acute disease", return_tensors="pt").input_ids
with torch.no_grad():
    print("loss", model(input_ids=ids, labels=labels).loss.item())
"""


def write(folder: Path, **changes: Any) -> str:
    """The card of a run; `changes` are fields of its recipe."""
    config = TrainConfig(micro_batch_size=4, grad_accum_steps=2, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_card(folder, config, 3, {"validation_loss": 1.25}, n_processes=2, precision="bf16")
    return (folder / "README.md").read_text()


def code_of(text: str, folder: Path) -> str:
    """The text's first Python block, its placeholders filled in."""
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return "findings = 'the lungs are clear'\n" + code.replace("FOLDER", repr(str(folder)))


@pytest.mark.parametrize(
    ("objective", "tuning", "title", "tags", "words"),
    [
        (
            "extract",
            "lora",
            "T5 LoRA adapter: radiology findings to impression",
            "lora, summarization",
            ["PeftModel", "findings"],
        ),
        (
            "extract",
            "full",
            "T5: radiology findings to impression",
            "summarization",
            ["'extract: '", "findings", "--model.path"],
        ),
        (
            "denoise",
            "lora",
            "T5 LoRA adapter: radiology reports",
            "lora, span-corruption",
            ["PeftModel", "<extra_id_0>"],
        ),
        (
            "denoise",
            "full",
            "T5 base: radiology reports",
            "span-corruption",
            ["<extra_id_0>", "--model.path"],
        ),
    ],
)
def test_title_tags_and_use_follow_from_both_settings(
    tmp_path: Path, objective: str, tuning: str, title: str, tags: str, words: list[str]
) -> None:
    card = write(tmp_path, objective=objective, tuning=tuning)
    assert f"\n# {title}\n" in card and f"\ntags: [t5, radiology, {tags}]\n" in card
    use = card.partition("## Use")[2].partition("## Limits")[0].replace('"', "'")
    assert [word for word in words if word not in use] == []
    assert ("PeftModel" in use) == (tuning == "lora")
    assert ("generate(" in use) == (objective == "extract")


def test_what_decides_the_figures_is_recorded(tmp_path: Path) -> None:
    card = write(tmp_path)
    text = " ".join(card.split())
    assert "on 2 processes, with 16 reports per optimizer step, in bf16" in text
    for name in ("torch", "transformers", "peft", "accelerate"):
        assert f"{name} {version(name)}" in text
    assert "--config training.toml --output_dir NEW" in text
    assert "| validation loss | 1.2500 |" in card and "epoch 3" in card


def test_the_code_for_an_adapter_gives_the_loss_of_the_model(
    tiny: Tiny, libraries: ForkServer, tmp_path: Path
) -> None:
    base = load_base(ModelConfig(path=str(tiny.talkative)))
    model = attach_lora(base, LoraSettings(r=4)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    config = {"model": ModelConfig(path=str(tiny.talkative))}
    save_model(model, tmp_path / "adapter", write_extras=lambda folder: None)
    card = write(tmp_path / "adapter", **config)
    check(libraries, card, tmp_path / "adapter", model, load_tokenizer(str(tiny.talkative)))


def test_the_code_for_a_model_stored_in_half_gives_its_loss(
    tiny: Tiny, libraries: ForkServer, tmp_path: Path
) -> None:
    model = load_base(ModelConfig(path=str(tiny.talkative)))
    tokenizer = load_tokenizer(str(tiny.talkative))

    def extras(folder: Path) -> None:
        tokenizer.save_pretrained(str(folder))
        write(folder, tuning="full")

    save_model(model, tmp_path / "model", write_extras=extras, half=True)
    stored = load_base(ModelConfig(path=str(tmp_path / "model")))
    check(
        libraries,
        (tmp_path / "model" / "README.md").read_text(),
        tmp_path / "model",
        stored,
        tokenizer,
    )


def check(libraries: ForkServer, card: str, folder: Path, model: Any, tokenizer: Any) -> None:
    """The card's code in a process without any code of ours gives this model's loss."""
    fresh = libraries.run("-c", code_of(card, folder) + LOSS)
    assert "loss " in fresh.stdout, fresh.stderr
    ids = tokenizer("extract: the lungs are clear", return_tensors="pt").input_ids
    labels = tokenizer("no acute disease", return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss.item()
    assert float(fresh.stdout.rpartition("loss ")[2]) == pytest.approx(loss, rel=1e-5)
