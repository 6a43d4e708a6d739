"""How fast does training run, next to its peers?

    python -m bench.train_speed --data.path DIR --model.path BASE

One process, all sides in turn, several rounds; the median of the rounds counts. Tokenising is
outside, every dropout is on, and each side is timed on an even sample of the batches that it would
form in a whole epoch. The last line is JSON.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from bench import peers
from bench.common import (
    BenchConfig,
    IntArray,
    evenly,
    fresh_model,
    gemm_gflops,
    known,
    load_data,
    print_json,
    start,
)
from bench.flops import StepFlops
from bench.machine import machine
from bench.peers import PEERS
from bench.timing import in_turn, now
from data import ExtractDataset
from model import build_engine, build_model
from report2impression.batching.dataset import batches
from report2impression.batching.plan import plan_epoch
from report2impression.engine.precision import DTYPES, autocast, resolve_precision
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.runs.recipe import Precision, TrainConfig
from report2impression.training.updates import apply_update, build_optimizer
from report2impression.weights.tokenizer import load_tokenizer


@dataclass(frozen=True)
class SpeedConfig(BenchConfig):
    """Ours against the peers."""

    steps: int = 3
    """Optimizer steps per round."""
    precision: Precision = "auto"
    """Precision of ours; the peers have theirs in their names."""
    sides: tuple[str, ...] = PEERS
    """Peers to run beside ours."""


@dataclass(frozen=True)
class OurSide:
    """What of ours runs."""

    precision: Precision = "auto"
    engine: Literal["fast", "hf"] = "fast"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    base_quantization: Literal["none", "8bit", "4bit"] = "none"
    gradient_checkpointing: bool = False


def our_batches(dataset: ExtractDataset, config: BenchConfig) -> list[IntArray]:
    """The batches of a planned epoch; a short one is left out, as with the peers."""
    lengths = dataset.source_lengths, dataset.target_lengths
    steps = plan_epoch(*lengths, global_batch_size=config.micro_batch_size, seed=config.seed)
    return [step.indices for step in steps if len(step.indices) == config.micro_batch_size]


def our_recipe(config: BenchConfig, side: OurSide) -> TrainConfig:
    """What train_loop.py would be told."""
    own = dataclasses.asdict(side)
    return TrainConfig(seed=config.seed, model=config.model, lora=config.lora, **own)


def ours(
    config: BenchConfig, dataset: ExtractDataset, plan: list[IntArray], side: OurSide
) -> peers.Round:
    """Rounds of train_loop.py's step: same engine, collation, clipping, optimizer, skip."""
    device = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no").device
    recipe = our_recipe(config, side)
    precision = resolve_precision(recipe.precision, device)
    engine, collate, _ = build_engine(recipe, build_model(recipe, device), device)
    weights = [w for w in engine.parameters() if w.requires_grad]
    rate = torch.tensor(5e-5, device=device)
    optimizer = build_optimizer(recipe.optimizer, weights, rate, weight_decay=0.01)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def run(n_steps: int) -> float:
        chosen = evenly(plan, dataset, n_steps)
        loader = batches(dataset, chosen, collate, pin_memory=device.type == "cuda")
        engine.train()
        start = now()
        for indices, batch in zip(chosen, loader, strict=True):
            with autocast(device, precision):
                loss = engine(batch.to(device))
            scaler.scale(loss / int(dataset.target_lengths[indices].sum())).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
            apply_update(optimizer, scaler, torch.isfinite(norm) & torch.isfinite(loss))
            optimizer.zero_grad(set_to_none=True)
        return now() - start

    return run


def useful_flops(config: BenchConfig, dataset: ExtractDataset, n_steps: int) -> float:
    """FLOPs that the timed reports need, without any padding."""
    shape = fresh_model(config).config
    model = StepFlops.of(shape, config.lora.r)
    layers = shape.num_layers, shape.num_decoder_layers
    chosen = np.concatenate(evenly(our_batches(dataset, config), dataset, n_steps))
    return model.step(
        dataset.source_lengths[chosen], dataset.target_lengths[chosen], n_layers=layers
    )


def measure(config: SpeedConfig) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(samples per second of every side in every round, facts about ours)."""
    known(config.sides, PEERS)
    dataset = load_data(config)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    sides = {
        "ours": ours(config, dataset, our_batches(dataset, config), OurSide(config.precision)),
        **{name: peers.peer(name, config, dataset, tokenizer) for name in config.sides},
    }
    n = config.steps * config.micro_batch_size
    # Warm-up, on the very batches: pages, prepared products, lazy imports. Twice, as each side's
    # first round changes what the heap holds for the others.
    runs = {name: partial(run, config.steps) for name, run in sides.items()}
    seconds = in_turn(runs, config.rounds, warm_up=2)
    speeds = {name: [n / taken for taken in found] for name, found in seconds.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(config.precision, device)
    gflops = useful_flops(config, dataset, config.steps) / n / 1e9
    lengths = dataset.source_lengths.mean() + dataset.target_lengths.mean()
    peak = gemm_gflops(DTYPES[precision], device.type)
    return speeds, {
        "precision": precision,
        "gflop_per_sample": gflops,
        "tokens_per_sample": float(lengths),
        "gemm_gflops": peak,
    }


@exits_cleanly
def main() -> None:
    config = start(SpeedConfig, (__doc__ or "").partition("\n")[0])
    speeds, facts = measure(config)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    rows = [
        (
            name,
            f"{medians[name]:.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{medians[name] * facts['tokens_per_sample']:,.0f}",
            f"{medians[name] * facts['gflop_per_sample']:.0f}",
            f"{medians['ours'] / medians[name]:.2f}",
        )
        for name, found in speeds.items()
    ]
    where = f"{torch.get_num_threads()} threads" if not torch.cuda.is_available() else "CUDA"
    title = (
        f"Training speed: {where}, ours in {facts['precision']}, {config.rounds} rounds of "
        f"{config.steps} steps of {config.micro_batch_size}, freed memory kept for all"
    )
    columns = ("", "samples/s", "min to max", "tokens/s", "useful GFLOP/s", "ours is times faster")
    print_table(title, columns, rows)
    print_json(
        {
            "ours": {
                "samples_per_s": medians["ours"],
                "gflops": medians["ours"] * facts["gflop_per_sample"],
                "peak_share": medians["ours"] * facts["gflop_per_sample"] / facts["gemm_gflops"],
                **facts,
            },
            "peers": {name: medians[name] for name in config.sides},
            "ratio": {name: medians["ours"] / medians[name] for name in config.sides},
            "min_max": {name: [min(found), max(found)] for name, found in speeds.items()},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
