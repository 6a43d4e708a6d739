"""A T5 and reports so small that a run takes seconds: what the tests of the training loop share."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from data import ExtractDataset, build_dataset
from model import attach_lora, build_engine, build_model
from report2impression.batching.token_store import survey
from report2impression.corpora.synthetic import write_splits
from report2impression.engine.models import T5Model
from report2impression.program.config import save
from report2impression.reading.licence import Mark, write_mark
from report2impression.reading.options import DataConfig, SourceConfig
from report2impression.reading.pairs import read_split
from report2impression.reading.sources import stream_pairs
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.tracking import Tracker
from report2impression.weights import new_base as new_base_module
from report2impression.weights.folders import find_trained
from report2impression.weights.loading import load_base
from report2impression.weights.new_base import NewBaseConfig, new_base
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.saving import save_model
from report2impression.weights.tokenizer import load_tokenizer
from report2impression.weights.trained import trained_model
from tests.waiting import HANG_S
from train_loop import train

ROOT = Path(__file__).parents[1]
N_TRAIN, N_VALIDATION, N_TEST = 57, 12, 13  # 57 = 7 x 8 + 1: the last step leaves a rank empty

# Whole reports would take twice the time.
SHORT: dict[str, Any] = {"max_source_tokens": 80, "max_target_tokens": 40}

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Tiny:
    """What lies in the session's folder."""

    base: Path  # untrained, with a tokenizer trained on 200 reports
    talkative: Path  # the same, changed so that greedy outputs differ in tokens and length
    data: Path
    cache: Path

    def recipe(self, folder: Path, *, dropout: float = 0.0, **changes: Any) -> TrainConfig:
        """A run in fp32 on the CPU, `dropout` in T5 and in the adapter; reports are cut."""
        config = TrainConfig(
            output_dir=str(folder),
            epochs=1,
            micro_batch_size=8,
            learning_rate=3e-3,
            warmup_steps=2,
            precision="fp32",
            log_every=1,
            cpu=True,
            data=DataConfig(path=str(self.data), cache_dir=str(self.cache), **SHORT),
            model=ModelConfig(path=str(self.base), dropout=dropout),
            lora=LoraSettings(r=4, alpha=8.0, dropout=dropout),
        )
        return replace(config, **changes)

    def flags(self, folder: Path, **changes: Any) -> list[str]:
        """The same run as flags of train_loop.py; `changes` use __ where a flag has a dot."""
        flags: dict[str, Any] = {
            "output_dir": folder,
            "epochs": 1,
            "micro_batch_size": 8,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
            "precision": "fp32",
            "log_every": 1,
            "data.path": self.data,
            "data.cache_dir": self.cache,
            "model.path": self.base,
            "model.dropout": 0.0,
            "lora.r": 4,
            "lora.alpha": 8.0,
            "lora.dropout": 0.0,
        }
        flags |= {name.replace("__", "."): value for name, value in changes.items()}
        return ["--cpu", *(f"--{name}={value}" for name, value in flags.items())]

    def training_data(self, config: TrainConfig, n: int = N_TRAIN) -> ExtractDataset:
        """The first n training reports."""
        tokenizer = load_tokenizer(config.model.path)
        stream = partial(stream_pairs, config.data, "train")
        whole = build_dataset(survey("train", stream), stream, tokenizer, config.data)
        assert isinstance(whole, ExtractDataset)
        first = range(n)
        return replace(
            whole,
            ids=whole.ids[:n],
            source=whole.source.take(first),
            target=whole.target.take(first),
        )


def make_tiny(folder: Path) -> Tiny:
    tiny = Tiny(folder / "base", folder / "talkative", folder / "data", folder / "cache")
    write_splits(tiny.data, N_TRAIN, N_VALIDATION, N_TEST, seed=0)
    write_splits(folder / "corpus", 200, 1, 1, seed=1)
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 16,
        "n_heads": 2,
        "n_layers": 2,
        "vocab_size": 400,
    }
    corpus = SourceConfig(path=str(folder / "corpus"))
    with pytest.MonkeyPatch.context() as patch:  # digits one by one
        patch.setattr(new_base_module, "NUMBER", re.compile("(?!)"))
        new_base(NewBaseConfig(output_dir=str(tiny.base), data=corpus, **sizes))
    model, tokenizer = load_base(ModelConfig(path=str(tiny.base))), load_tokenizer(str(tiny.base))
    make_talkative(model, tokenizer.get_vocab(), tokenizer.eos_token_id)
    model.save_pretrained(str(tiny.talkative))
    tokenizer.save_pretrained(str(tiny.talkative))
    return tiny


@torch.no_grad()
def make_talkative(model: T5Model, vocabulary: dict[str, int], eos_id: int) -> None:
    """Random weights repeat one token; let them look hard at single source tokens instead, say
    whole words, and stop now and then."""
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.q.weight *= 20
        block.layer[1].EncDecAttention.o.weight *= 20
    words = [i for piece, i in vocabulary.items() if piece[0] == "▁" and len(piece) > 3]
    model.shared.weight[words] *= 3
    model.shared.weight[eos_id] *= 8


def make_trained(tiny: Tiny, folder: Path) -> Path:
    """adapter/ on the talkative base, and model/: the same, merged."""
    config = tiny.recipe(folder, model=ModelConfig(path=str(tiny.talkative)))

    def extras(kept: TrainConfig, place: Path) -> None:
        save(kept, place / "training.toml")
        write_mark(place, Mark("synthetic", "none", credentialed=False))
        if kept.tuning == "full":
            load_tokenizer(str(tiny.talkative)).save_pretrained(str(place))

    model = attach_lora(load_base(config.model), LoraSettings(r=4, alpha=8.0))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    save_model(model, folder / "adapter", write_extras=partial(extras, config))
    whole = trained_model(find_trained(folder / "adapter"), config.model)
    full = replace(config, tuning="full")
    save_model(whole, folder / "model", write_extras=partial(extras, full))
    return folder


def rows_of(tiny: Tiny, n: int = N_TEST) -> list[dict[str, Any]]:
    """Findings of test reports, as rows."""
    pairs = read_split(str(tiny.data), "test").pairs[:n]
    return [{"id": pair.id, "prompt": pair.prompt, "group": pair.group} for pair in pairs]


class Recorder(Tracker):
    """A tracker that writes nothing and keeps the trainable weights after every step."""

    def __init__(self, model: T5Model, n_steps: int) -> None:
        super().__init__(Path(), n_steps=n_steps, log_every=1, enabled=False)
        self.model = model
        self.start = trainable(model)
        self.weights: list[Weights] = []

    def step(self, *args: Any, **figures: Any) -> None:
        super().step(*args, **figures)
        self.weights.append(trainable(self.model))

    def column(self, name: str) -> list[Any]:
        return [step[name] for step in self.steps]


def trainable(model: T5Model) -> Weights:
    """Copies of the trainable weights."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def difference(ours: Weights, theirs: Weights) -> float:
    """Largest absolute difference between two sets of weights."""
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def run_loop(
    config: TrainConfig,
    dataset: ExtractDataset,
    *,
    on_gradient: Callable[[int, Tensor], Tensor] | None = None,
    after_epoch: Callable[..., bool] = lambda *_: False,
    scaler: torch.amp.GradScaler | None = None,
    dtype: torch.dtype = torch.float32,
) -> Recorder:
    """`train_loop.train` in this process.

    `on_gradient(n, gradient)` may change one weight's gradient in the n-th backward (from 1).
    """
    accelerator = Accelerator(cpu=True)
    model = build_model(config, accelerator.device).to(dtype)
    engine, collate, _ = build_engine(config, model, accelerator.device)
    recorder = Recorder(model, config.total_steps(len(dataset), 1))
    if on_gradient is not None:
        weight = next(p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n)
        numbers = iter(range(1, 10**6))
        weight.register_hook(lambda gradient: on_gradient(next(numbers), gradient))
    train(config, accelerator, engine, collate, dataset, recorder, after_epoch, scaler=scaler)
    return recorder


def metrics(folder: Path, kind: str) -> list[dict[str, float]]:
    """The lines of one kind ("step", "epoch") of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def python(*argv: object, timeout: float = HANG_S) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the repository root, one thread, no hub."""
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def one_line(error: str) -> str:
    """The only line of stderr."""
    lines: Sequence[str] = error.splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    return lines[0]
