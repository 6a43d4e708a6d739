"""The estimate of memory, from a base's files alone, against every tensor of a real step."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_loop
from model import build_engine, build_model
from report2impression.engine import fast, ops
from report2impression.engine.precision import autocast
from report2impression.runs.memory_plan import step_of
from report2impression.runs.recipe import TrainConfig
from report2impression.weights import memory
from report2impression.weights.memory import Shapes, estimate, read_shapes
from report2impression.weights.new_base import NewBaseConfig, new_base
from report2impression.weights.options import LoraSettings, ModelConfig
from tests.families import FAMILIES, make_base
from tests.test_options import needs_bitsandbytes
from tests.tiny import ROOT, Tiny

CPU = torch.device("cpu")
SOURCES, TARGETS = [70, 64, 58, 70], [24, 20, 24, 22]


class Live(TorchDispatchMode):
    """Bytes of all tensors that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out


def measured(config: TrainConfig) -> tuple[int, int]:
    """Bytes of (weights, all tensors at the peak of forward and backward)."""
    engine, collate, _ = build_engine(config, build_model(config, CPU), CPU)
    live = Live()
    for weight in engine.parameters():
        live.see(weight)
        if hasattr(weight, "quant_state"):
            live.see(weight.quant_state.absmax)
    weights = live.now
    lengths = zip(SOURCES, TARGETS, strict=True)
    examples = [(np.full(s, 5, np.int32), np.full(t, 6, np.int32)) for s, t in lengths]
    batch = collate(examples)
    engine.train()
    with live:
        with autocast(CPU, config.precision):
            loss = engine(batch)
        loss.backward()
    return weights, live.peak


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """T5s of another shape than the tests' tiny one, in which the small things would weigh most."""
    folder = tmp_path_factory.mktemp("bases")
    sizes: dict[str, Any] = {"d_model": 96, "d_ff": 320, "d_kv": 24, "n_heads": 4, "n_layers": 3}
    tokenizer = str(ROOT / "assets" / "tiny_base")
    new_base(NewBaseConfig(output_dir=str(folder / "plain"), tokenizer=tokenizer, **sizes))
    of_bart: dict[str, Any] = {"d_model": 96}
    for side in ("encoder", "decoder"):
        sizes = {"layers": 3, "ffn_dim": 320, "attention_heads": 4}
        of_bart |= {f"{side}_{name}": size for name, size in sizes.items()}
    every: dict[str, Any] = {"attention_dropout": 0.1, "activation_dropout": 0.1}
    return {
        "plain": str(folder / "plain"),
        "gated": str(make_base("ByT5", folder / "gated")),
        "BART": str(make_base("BART", folder / "bart", **of_bart)),
        "BART, every dropout": str(make_base("BART", folder / "every", **of_bart | every)),
    }


def recipe(tiny: Tiny, base: str, **changes: Any) -> TrainConfig:
    dropout = changes.pop("dropout", 0.1)
    lora = LoraSettings(
        r=8, dropout=dropout, target_modules=changes.pop("targets", ("all-linear",))
    )
    return tiny.recipe(Path(), model=ModelConfig(base, dropout=dropout), lora=lora, **changes)


SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {},
    "fast, bf16": {"precision": "bf16"},
    "fast, no dropout": {"dropout": 0.0},
    "fast, two targets": {"targets": ("q", "v")},
    "hf": {"engine": "hf"},
    "hf, bf16": {"engine": "hf", "precision": "bf16"},
    "hf, no dropout": {"engine": "hf", "dropout": 0.0},
    "full": {"tuning": "full"},
    "full, bf16": {"tuning": "full", "precision": "bf16"},
    "checkpointing": {"gradient_checkpointing": True},
}
BITS: dict[str, dict[str, Any]] = {
    "4 bits": {"base_quantization": "4bit"},
    "8 bits, bf16": {"base_quantization": "8bit", "precision": "bf16"},
}


CASES = [(base, name) for base in ("plain", "gated") for name in SETTINGS]
CASES += [("BART", name) for name in SETTINGS if "fast" not in name]
CASES += [("BART, every dropout", name) for name in ("hf", "full")]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *CASES,
        *(pytest.param(b, n, marks=needs_bitsandbytes) for b in ("plain", "gated") for n in BITS),
    ],
)
def test_weights_and_peak_of_a_step(
    tiny: Tiny, bases: dict[str, str], base: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pools of masks are up to 4 MiB each, which would be more than all of this.
    monkeypatch.setattr(ops, "POOL_ELEMENTS", (8, 8))
    monkeypatch.setattr(memory, "POOL", 8)
    config = recipe(tiny, bases[base], **{**SETTINGS, **BITS}[name])
    # oneDNN's own copies lie outside torch's storages: the next test counts them.
    step = replace(step_of(config, half=config.precision == "bf16"), cpu=False)
    found = estimate(read_shapes(config.model), step, SOURCES, TARGETS)
    weights, peak = measured(config)
    assert found.weights == pytest.approx(weights, rel=0.01)
    assert found.weights + found.activations == pytest.approx(peak, rel=0.15)
    assert found.gradients == 4 * found.n_trainable and found.optimizer == 8 * found.n_trainable


@pytest.mark.parametrize("targets", [("all-linear",), ("q", "v")])
def test_copies_of_the_frozen_matrices_on_a_cpu(
    tiny: Tiny, bases: dict[str, str], targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def copies(weight: torch.Tensor) -> None:
        copied.append(2 * weight.nbytes)

    monkeypatch.setattr(fast, "reordered", copies)
    config = recipe(tiny, bases["gated"], targets=targets)
    build_engine(config, build_model(config, CPU), CPU)
    base, step = read_shapes(config.model), step_of(config, half=False)
    assert step.cpu

    def weights(**changes: Any) -> float:
        return estimate(base, replace(step, **changes), SOURCES, TARGETS).weights

    assert weights() - weights(cpu=False) == sum(copied) > 0
    monkeypatch.setattr(memory, "COPIED", 2**10)
    assert weights() == weights(cpu=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_every_kind_of_base(tiny: Tiny, tmp_path: Path, name: str) -> None:
    make_base(name, tmp_path / "base")
    config = recipe(tiny, str(tmp_path / "base"), engine="hf")
    model = build_model(config, CPU)
    step = step_of(config, half=False)
    found = estimate(read_shapes(config.model), step, SOURCES, TARGETS)
    assert found.n_parameters == sum(p.numel() for p in model.parameters())
    assert found.n_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    _, peak = measured(config)  # where attention or dropout are less than T5's: a bound
    assert 0.9 * peak < found.weights + found.activations < 1.7 * peak


def test_a_published_t5_whose_table_is_stored_three_times(tiny: Tiny) -> None:
    found = read_shapes(ModelConfig(str(tiny.base)))
    assert isinstance(found, Shapes)
    assert (
        sum(name.endswith(("shared.weight", "embed_tokens.weight")) for name in found.shapes) == 1
    )


def test_a_dry_run_tells_it_before_anything_is_loaded(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(**changes: Any) -> str:
        with pytest.raises(SystemExit):
            train_loop.main([*tiny.flags(tmp_path / "run", **changes), "--dry_run"])
        return capsys.readouterr().out

    out = told(precision="auto", data__max_source_tokens=300)
    assert "estimated: engine fast" in out and "bf16 or fp16" in out
    assert "activations of a report of 300 + 256 tokens" in out
    assert "engine hf" in told(base_quantization="4bit")
    missing = told(model__path=tmp_path / "nothing")
    assert "no estimate of memory: " in missing and "Dry run" in missing
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_the_engines() -> None:
    """Repeated, so that an estimate loads no torch."""
    own = (memory.COPIED, memory.LOGIT_ROWS, memory.POOL)
    assert own == (fast.REORDERED_BYTES, ops.CROSS_ENTROPY_ROWS, ops.POOL_ELEMENTS[1])
