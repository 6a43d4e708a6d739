"""What the benchmarks share: settings, data, model, fair batches, allocator, output."""

import json
import os
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data import ExtractDataset, build_dataset
from model import attach_lora
from report2impression.batching.plan import padded_cost
from report2impression.batching.token_store import survey
from report2impression.engine.models import T5Model
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError
from report2impression.program.process import keep_freed_memory, quieten_libraries
from report2impression.reading.options import DataConfig
from report2impression.reading.sources import stream_pairs
from report2impression.weights.loading import load_base
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.tokenizer import load_tokenizer

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class BenchConfig:
    """What every benchmark can be told."""

    threads: int = 0
    """CPU threads; 0 = as many as there are cores."""
    steps: int = 12
    """Optimizer steps per round."""
    rounds: int = 3
    """Rounds, each of every side in turn; the median counts."""
    micro_batch_size: int = 16
    """Reports per step."""
    seed: int = 0
    """Seed of weights, sample order and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)


Config = TypeVar("Config", bound=BenchConfig)


def start(kind: type[Config], description: str) -> Config:
    """Parse the command line, set threads and allocator, for every side the same."""
    quieten_libraries()
    config = parse(kind, None, description=description)
    if not torch.cuda.is_available():
        keep_freed_memory()
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    return config


def load_data(config: BenchConfig) -> ExtractDataset:
    """The training split in tokens."""
    stream = partial(stream_pairs, config.data, "train")
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    dataset = build_dataset(survey("train", stream), stream, tokenizer, config.data)
    assert isinstance(dataset, ExtractDataset)
    return dataset


def fresh_model(config: BenchConfig, attention: str = "sdpa") -> T5Model:
    """The base with a fresh adapter, the same weights every time."""
    torch.manual_seed(config.seed)
    return attach_lora(load_base(config.model, attention=attention), config.lora)


def evenly(batches: Sequence[IntArray], dataset: ExtractDataset, n: int) -> list[IntArray]:
    """n batches that stand for all: sorted by cost, the middle of each of n equal parts."""
    lengths = dataset.source_lengths, dataset.target_lengths
    costs = [padded_cost(len(b), *(side[b].max() for side in lengths)) for b in batches]
    order = np.argsort(costs, kind="stable")
    middles = (np.arange(n) + 0.5) * len(batches) / n
    return [batches[i] for i in order[middles.astype(int)]]


def in_batches(order: Sequence[int], size: int) -> list[IntArray]:
    """Consecutive batches of a sample order; a last short one is left out."""
    whole = np.asarray(order)[: len(order) // size * size]
    return list(whole.reshape(-1, size))


def gemm_gflops(dtype: torch.dtype, device: str = "cpu") -> float:
    """Measured peak of a matrix product (2048 x 512) x (512 x 2048), GFLOP/s: median of 9."""
    from bench.timing import seconds

    a = torch.randn(2048, 512, device=device).to(dtype)
    b = torch.randn(512, 2048, device=device).to(dtype)
    return 2 * 2048 * 512 * 2048 / statistics.median(seconds(lambda: a @ b, n=9)) / 1e9


def known(sides: tuple[str, ...], peers: Collection[str]) -> None:
    """Raises ConfigError where a side is none of the peers."""
    if unknown := [name for name in sides if name not in peers]:
        raise ConfigError(f"--sides: {', '.join(unknown)} is none of {', '.join(peers)}")


def print_json(figures: dict[str, Any]) -> None:
    """The last line of every benchmark."""
    print(json.dumps(figures))
