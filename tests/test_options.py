"""Settings that trade speed for memory: 8-bit AdamW, quantized bases, checkpointing, compile. Each
really runs: the loss falls, and the adapter is saved and loads."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_loop
from model import build_engine, build_model
from report2impression.engine.fast import FastEngine
from report2impression.program.config import load, save
from report2impression.program.errors import ConfigError
from report2impression.runs import run as run_module
from report2impression.runs.recipe import OptimizerName, TrainConfig
from report2impression.training.updates import apply_update, build_optimizer
from report2impression.weights.loading import load_adapter, load_base
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.saving import save_model
from tests.families import make_base
from tests.tiny import ROOT, Recorder, Tiny, metrics, run_loop

needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes (extra bnb)"
)


def learns_and_saves(tiny: Tiny, folder: Path, **changes: Any) -> Recorder:
    """Three epochs of the tiny recipe; its adapter is then read by a fresh, unquantized base."""
    config = tiny.recipe(folder, epochs=3, **changes)
    run = run_loop(config, tiny.training_data(config))
    losses = run.column("loss")
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    save_model(run.model, folder / "adapter", write_extras=lambda _: None)
    again = load_adapter(load_base(ModelConfig(path=str(tiny.base))), folder / "adapter")
    saved = {n: p for n, p in run.model.named_parameters() if ".lora_" in n}
    loaded = {n: p for n, p in again.named_parameters() if ".lora_" in n}
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    return run


@needs_bitsandbytes
def test_adamw_with_8_bit_states(tiny: Tiny, tmp_path: Path) -> None:
    wide = LoraSettings(r=128, alpha=256.0, dropout=0.0)  # bitsandbytes leaves < 4,096 in fp32
    run = learns_and_saves(tiny, tmp_path, optimizer="adamw8bit", lora=wide)
    plain = run_loop(
        tiny.recipe(tmp_path, epochs=3, lora=wide),
        tiny.training_data(tiny.recipe(tmp_path, lora=wide)),
    )
    assert run.column("loss") == pytest.approx(plain.column("loss"), rel=0.05)
    assert run.column("loss") != plain.column("loss")


@pytest.mark.parametrize("name", [pytest.param("adamw8bit", marks=needs_bitsandbytes), "adafactor"])
def test_what_is_not_finite_is_skipped_and_the_rate_is_followed(name: OptimizerName) -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128))
    rate, scaler = torch.tensor(0.1), torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(name, [weight], rate, weight_decay=0.0)
    weight.grad = torch.full_like(weight, float("nan"))
    apply_update(optimizer, scaler, torch.tensor(False))
    assert torch.equal(weight, torch.ones(64, 128))
    weight.grad = torch.ones_like(weight)
    apply_update(optimizer, scaler, torch.tensor(True))
    assert weight.mean().item() == pytest.approx(0.9, abs=0.01)
    rate.fill_(0.0)
    before = weight.detach().clone()
    apply_update(optimizer, scaler, torch.tensor(True))
    assert torch.equal(weight, before)
    state = [s for s in optimizer.state[weight].values() if torch.is_tensor(s)]
    if name == "adamw8bit":
        assert torch.uint8 in {s.dtype for s in state}
    else:  # of rows and columns, not of weights
        assert sum(s.numel() for s in state) == 64 + 128 + 1


def test_adafactor_steps_are_relative_to_the_weight() -> None:
    rate, scaler = torch.tensor(0.1), torch.amp.GradScaler("cpu", enabled=False)
    weights = [torch.nn.Parameter(torch.full((8, 8), size)) for size in (0.01, 1.0, 100.0)]
    optimizer = build_optimizer("adafactor", weights, rate, weight_decay=0.0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    apply_update(optimizer, scaler, torch.tensor(True))
    assert [w.mean().item() for w in weights] == pytest.approx([0.009, 0.9, 90.0], rel=1e-3)


class Reads(TorchDispatchMode):
    """How often the host reads a value of the device's, each time a wait on CUDA."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@needs_bitsandbytes
def test_8_bit_adamw_reads_the_rate_once_a_step_however_many_weights() -> None:
    weights = [torch.nn.Parameter(torch.ones(64, 128)) for _ in range(5)]
    rate, scaler = torch.tensor(0.1), torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer("adamw8bit", weights, rate, weight_decay=0.0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    with Reads() as seen:
        apply_update(optimizer, scaler, torch.tensor(True))
    assert seen.n == 0  # what `tolist` reads, in one piece, is not counted
    assert optimizer.param_groups[0]["lr"] is rate


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_base(tiny: Tiny, tmp_path: Path, bits: str) -> None:
    config = tiny.recipe(tmp_path, base_quantization=bits)
    model = build_model(config, torch.device("cpu"))
    stored = {p.dtype for n, p in model.named_parameters() if n.endswith("q.base_layer.weight")}
    assert stored == {torch.int8 if bits == "8bit" else torch.uint8}
    _, _, kind = build_engine(config, model, torch.device("cpu"))
    assert kind.startswith("hf (one of its linear layers is a Linear")
    learns_and_saves(tiny, tmp_path, base_quantization=bits)


@needs_bitsandbytes
def test_the_recipe_of_qlora_on_a_small_base_of_flans_kind(tiny: Tiny, tmp_path: Path) -> None:
    # bitsandbytes' product on a CPU wants multiples of 32.
    sizes = {"d_model": 64, "d_kv": 32, "d_ff": 128}
    base = str(make_base("T5 1.1, Flan-T5", tmp_path / "base", **sizes))
    recipe = load(TrainConfig, ROOT / "recipes" / "flan_t5_xl_qlora.toml")
    data = replace(recipe.data, path=str(tiny.data), cache_dir=str(tiny.cache))
    config = replace(
        replace(recipe, cpu=True, warmup_steps=2, learning_rate=3e-3, log_every=1),
        model=ModelConfig(base),
        output_dir=str(tmp_path / "run"),
        data=replace(data, max_source_tokens=80, max_target_tokens=40),
    )
    save(config, tmp_path / "recipe.toml")
    train_loop.main([f"--config={tmp_path / 'recipe.toml'}"])
    losses = [epoch["validation_loss"] for epoch in metrics(tmp_path / "run", "epoch")]
    assert len(losses) == recipe.epochs and losses[-1] < losses[0]
    adapted = load_adapter(load_base(ModelConfig(base)), tmp_path / "run" / "adapter")
    updates = [p for n, p in adapted.named_parameters() if ".lora_B" in n]
    assert len(updates) == 2 * (4 + 3) + 2 * (8 + 3) and all(p.abs().max() > 0 for p in updates)


def test_gradient_checkpointing_changes_no_figure(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path, gradient_checkpointing=True, dropout=0.1)
    engine, _, kind = build_engine(
        config, build_model(config, torch.device("cpu")), torch.device("cpu")
    )
    assert kind == "hf (gradient checkpointing is on)" and not isinstance(engine, FastEngine)
    run = learns_and_saves(tiny, tmp_path, gradient_checkpointing=True, dropout=0.1)
    plain = tiny.recipe(tmp_path, epochs=3, engine="hf", dropout=0.1)
    reference = run_loop(plain, tiny.training_data(plain))
    assert run.column("loss") == pytest.approx(reference.column("loss"), rel=1e-5)


def test_a_missing_bitsandbytes_is_told_first(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "find_spec", lambda name: None)
    wishes: list[dict[str, Any]] = [{"optimizer": "adamw8bit"}, {"base_quantization": "4bit"}]
    for wish in wishes:
        with pytest.raises(ConfigError, match="need bitsandbytes: pip install"):
            run_module.require_extras(tiny.recipe(tmp_path, **wish))
    run_module.require_extras(tiny.recipe(tmp_path))


def test_a_quantized_base_cannot_be_tuned_whole(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs tuning = lora"):
        tiny.recipe(tmp_path, base_quantization="8bit", tuning="full")
