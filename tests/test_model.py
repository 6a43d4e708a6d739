"""Loading, adapting, saving, counting; the engine's loss; decoding in any batch, order restored."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from model import PaddedEngine, attach_lora, shift_right
from report2impression.batching.collation import collate_padded
from report2impression.batching.tokens import Tokens, tokenise
from report2impression.decoding import generate as decoding
from report2impression.decoding.generate import generate, to_text
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.engine.models import count_parameters
from report2impression.program.errors import ConfigError
from report2impression.reading.pairs import read_split
from report2impression.weights.loading import (
    load_adapter,
    load_base,
    merged,
)
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.saving import save_model
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import Tiny, difference, trainable

# --- the adapter ---------------------------------------------------------------------------------


def t5_small() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)
    with torch.device("meta"):
        return T5ForConditionalGeneration(config)


def test_the_published_adapter_has_96_modules_and_2_162_688_parameters() -> None:
    base = t5_small()
    assert count_parameters(base) == (60_506_624, 60_506_624)
    model = attach_lora(base, LoraSettings())
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len({name.rpartition(".lora_")[0] for name in names}) == 96
    assert count_parameters(model) == (2_162_688, 60_506_624 + 2_162_688)
    assert not [name for name in names if "lm_head" in name or "shared" in name]


def base_of(tiny: Tiny, dropout: float | None = None) -> T5ForConditionalGeneration:
    return load_base(ModelConfig(path=str(tiny.base), dropout=dropout))


def test_target_modules_and_scale_are_heeded(tiny: Tiny) -> None:
    settings = LoraSettings(r=4, alpha=8.0, target_modules=("q", "v"), use_rslora=True)
    model = attach_lora(base_of(tiny), settings)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 2 * (2 + 2 + 2)  # A and B of q and v, in 2 + 2 blocks, cross too
    layer = model.get_submodule("base_model.model.encoder.block.0.layer.0.SelfAttention.q")
    assert layer.scaling["default"] == 8.0 / 2.0


def test_a_fresh_adapter_changes_nothing(tiny: Tiny) -> None:
    plain, adapted = base_of(tiny), attach_lora(base_of(tiny), LoraSettings()).eval()
    ids = torch.randint(3, 400, (2, 9))
    with torch.no_grad():
        logits = [m(input_ids=ids, decoder_input_ids=ids).logits for m in (plain, adapted)]
    assert torch.equal(*logits)


def test_dropout_of_the_base_is_set_or_left(tiny: Tiny) -> None:
    def rates(dropout: float | None) -> set[float]:
        modules = base_of(tiny, dropout).modules()
        return {m.p for m in modules if isinstance(m, torch.nn.Dropout)}

    assert rates(None) == {0.1} and rates(0.0) == {0.0} and rates(0.3) == {0.3}


@pytest.mark.parametrize("half", [False, True])
def test_dropout_of_one_run_is_not_stored(tiny: Tiny, tmp_path: Path, half: bool) -> None:
    model = base_of(tiny, 0.3)
    save_model(model, tmp_path / "model", write_extras=lambda folder: None, half=half)
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["dropout_rate"] == 0.1 and model.config.dropout_rate == 0.3
    assert stored["dtype"] == ("float16" if half else "float32")


def test_home_is_expanded_and_not_stored(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny.base.parent))
    base = load_base(ModelConfig(path="~/base"))
    assert load_tokenizer("~/base").eos_token_id == 1
    model = attach_lora(base, LoraSettings(r=4))
    save_model(model, tmp_path / "adapter", write_extras=lambda folder: None)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])  # else any order
    assert settings["base_model_name_or_path"] == "~/base"
    monkeypatch.setenv("HOME", str(tmp_path))
    load_adapter(base_of(tiny), "~/adapter")


# --- loading and saving --------------------------------------------------------------------------


def refusal(error: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(error.value)
    assert "\n" not in message and message
    return message


@pytest.mark.parametrize("stray", ["vv", "lm_head", "shared", "all-linear", "SelfAttention"])
def test_one_unknown_target_module_among_known_ones(tiny: Tiny, stray: str) -> None:
    """PEFT alone would adapt the others and say nothing."""
    with pytest.raises(ConfigError) as caught:
        attach_lora(base_of(tiny), LoraSettings(target_modules=("q", stray)))
    assert repr(stray) in refusal(caught) and "q, k, v, o, wi, wo" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [{"alpha": 0.0}, {"alpha": float("nan")}, {"alpha": float("inf")}, {"alpha": -1.0}]
    + [{"r": 0}, {"r": 4097}, {"dropout": 1.0}, {"target_modules": ()}],
)
def test_settings_of_no_use_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        LoraSettings(**bad)
    assert f"lora.{min(bad)}" in refusal(caught)


def test_folder_without_an_adapter(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_adapter(base_of(tiny), tmp_path)
    assert str(tmp_path) in refusal(caught) and "adapter_config.json" in str(caught.value)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_adapter(base_of(tiny), tmp_path)
    assert "adapter_model.safetensors" in refusal(caught)


def test_no_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_base(ModelConfig(path=str(tmp_path)))
    assert str(tmp_path) in refusal(caught)


def test_no_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    """transformers would make up one without words, and every report would be <unk> <unk>."""
    base_of(tiny).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(tmp_path))
    assert "tokenizer" in refusal(caught)


def test_save_load_merge(tiny: Tiny, tmp_path: Path) -> None:
    model = attach_lora(base_of(tiny), LoraSettings(r=4)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    save_model(model, tmp_path / "adapter", write_extras=lambda folder: None)
    assert not [
        name
        for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
        if "lora_" not in name
    ]
    ids = torch.randint(3, 400, (2, 9))
    loaded = merged(load_adapter(base_of(tiny), tmp_path / "adapter")).eval()
    with torch.no_grad():
        ours, theirs, plain = (
            m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, loaded, base_of(tiny))
        )
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_a_failed_save_leaves_the_old_folder(tiny: Tiny, tmp_path: Path) -> None:
    model = attach_lora(base_of(tiny), LoraSettings(r=4))
    folder = tmp_path / "adapter"
    save_model(model, folder, write_extras=lambda folder: None)
    before = (folder / "adapter_model.safetensors").read_bytes()

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    changed = attach_lora(base_of(tiny), LoraSettings(r=2))
    with pytest.raises(OSError, match="disk full"):
        save_model(changed, folder, write_extras=fail)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    save_model(changed, folder, write_extras=lambda folder: None)
    assert (folder / "adapter_model.safetensors").read_bytes() != before
    assert os.listdir(tmp_path) == ["adapter"]


def test_storing_half_leaves_the_model_whole(tiny: Tiny, tmp_path: Path) -> None:
    model = base_of(tiny)
    before = trainable(model)
    save_model(model, tmp_path / "model", write_extras=lambda folder: None, half=True)
    assert difference(before, trainable(model)) == 0.0
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    again = load_base(ModelConfig(path=str(tmp_path / "model")))
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert 0 < difference(before, trainable(again)) < 1e-2


# --- the engine ----------------------------------------------------------------------------------


def examples(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return np.append(draw.integers(3, 400, draw.integers(0, 12)), 1).astype(np.int32)

    return [(ids(), ids()) for _ in range(n)]


def test_shift_right_is_transformers_own(tiny: Tiny) -> None:
    model = base_of(tiny)
    labels = collate_padded(examples(7), pad_id=0).labels
    assert (labels == -100).any()
    theirs = model.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(shift_right(labels, start_id=0, pad_id=0), theirs)


@pytest.mark.parametrize("multiple", [1, 16])
def test_engine_loss_is_the_models_own_times_the_label_tokens(tiny: Tiny, multiple: int) -> None:
    model = base_of(tiny)
    batch = collate_padded(examples(7), pad_id=0, multiple=multiple)
    n_tokens = int((batch.labels != -100).sum())
    with torch.no_grad():
        ours = PaddedEngine(model)(batch)
        theirs = model(**batch._asdict()).loss * n_tokens
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_an_empty_batch_costs_nothing_and_still_has_gradients(tiny: Tiny) -> None:
    engine = PaddedEngine(attach_lora(base_of(tiny), LoraSettings(r=4)))
    loss = engine(collate_padded([], pad_id=0))
    loss.backward()
    gradients = [w.grad for w in engine.parameters() if w.requires_grad]
    assert loss.item() == 0.0
    assert all(g is not None and not g.any() for g in gradients)


def test_padding_does_not_change_the_loss(tiny: Tiny) -> None:
    engine = PaddedEngine(base_of(tiny))
    rows = examples(7)
    with torch.no_grad():
        together = engine(collate_padded(rows, pad_id=0, multiple=16))
        apart = sum(float(engine(collate_padded([row], pad_id=0))) for row in rows)
    assert float(together) == pytest.approx(apart, rel=1e-6)


# --- decoding ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talkative(tiny: Tiny) -> T5ForConditionalGeneration:
    return load_base(ModelConfig(path=str(tiny.talkative)))


@pytest.fixture(scope="module")
def source(tiny: Tiny) -> Tokens:
    pairs = read_split(str(tiny.data), "test").pairs
    texts = [pair.prompt for pair in pairs] + ["short", "no acute disease", "x"]
    return tokenise(texts, load_tokenizer(str(tiny.base)), max_tokens=512)


@pytest.fixture(scope="module")
def one_by_one(talkative: T5ForConditionalGeneration, source: Tokens) -> list[list[int]]:
    """HF generate on each report alone, without padding."""
    rows = []
    for i in range(len(source.lengths)):
        ids = torch.from_numpy(source.row(i).astype(np.int64))[None]
        row = talkative.generate(input_ids=ids, max_new_tokens=16, do_sample=False)[0, 1:].tolist()
        rows.append(row[: row.index(1)] if 1 in row else row)
    assert len({tuple(row) for row in rows}) > len(rows) * 0.8  # order can be told
    assert len({len(row) for row in rows}) > 3  # and rows end at different places
    return rows


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_generate_is_hf_generate_one_by_one(
    talkative: T5ForConditionalGeneration,
    source: Tokens,
    one_by_one: list[list[int]],
    batch_size: int,
) -> None:
    outputs = generate(talkative, source, DecodingConfig(max_new_tokens=16, batch_size=batch_size))
    assert [output.ids for output in outputs] == one_by_one


def test_ranks_together_give_every_report_once(
    talkative: T5ForConditionalGeneration,
    source: Tokens,
    one_by_one: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts: list[list[Output]] = []

    def keep(done: list[Output]) -> list[Output]:
        parts.append(done)
        return [output for part in parts for output in part]

    monkeypatch.setattr(decoding, "gather_object", keep)
    config = DecodingConfig(max_new_tokens=16, batch_size=4)
    with pytest.raises(RuntimeError, match="lost or decoded twice"):  # one of two has come so far
        generate(talkative, source, config, rank=0, n_ranks=2)
    again = generate(talkative, source, config, rank=1, n_ranks=2)
    assert [output.ids for output in again] == one_by_one
    assert [len(part) for part in parts] == [8, 8]


def test_generate_restores_the_mode_and_text_has_no_special_tokens(
    tiny: Tiny, talkative: T5ForConditionalGeneration, source: Tokens
) -> None:
    talkative.train()
    try:
        outputs = [o.ids for o in generate(talkative, source, DecodingConfig(max_new_tokens=4))]
        assert all(module.training for module in talkative.modules())
    finally:
        talkative.eval()
    texts = to_text(load_tokenizer(str(tiny.base)), [*outputs, [0, 499, 498, 1]])
    assert texts[-1] == "" and all(text == text.strip() for text in texts)
    assert not any("<" in text for text in texts)
