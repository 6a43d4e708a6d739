"""Is the noise that dropout adds to the loss the same in the fast engine as in HF + PEFT?

    python -m bench.dropout

Mean and spread of one batch's loss over many masks, both engines on the same weights, every dropout
at p. On a CPU the fast engine rounds p to 1/256, so HF is measured at p and at the rounded p. z is
a difference over its standard error. The last line is JSON.
"""

import copy
import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from model import PaddedEngine, attach_lora
from report2impression.batching.collation import collate_packed, collate_padded
from report2impression.engine.fast import FastEngine
from report2impression.engine.models import T5Model
from report2impression.program.config import parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.weights.options import LoraSettings

Losses = NDArray[np.float64]
LENGTHS = ((12, 9), (20, 6), (7, 12), (16, 10))  # (source, target) tokens of the batch
VOCABULARY = 128


@dataclass(frozen=True)
class DropoutConfig:
    """How often, and at which probability."""

    n: int = 10_000
    """Masks per engine."""
    p: float = 0.1
    """Probability of every dropout, T5's and the adapter's."""
    seed: int = 0
    """Seed of weights, tokens and masks."""


def acting_adapter(config: DropoutConfig, p: float) -> T5Model:
    """A small T5 on random weights whose adapter changes something (a fresh one does not)."""
    torch.manual_seed(config.seed)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    ids = {"vocab_size": VOCABULARY, "decoder_start_token_id": 0}
    base = T5ForConditionalGeneration(
        T5Config(**sizes, **ids, dropout_rate=p, attn_implementation="eager")
    )
    model = attach_lora(base, LoraSettings(r=4, alpha=8.0, dropout=p))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


@torch.no_grad()
def losses(config: DropoutConfig) -> dict[str, Losses]:
    """Of each engine, in turn, n of them."""
    rounded = round(256 * config.p) / 256
    draw = np.random.default_rng(config.seed)

    def tokens(n: int) -> NDArray[np.int32]:
        return draw.integers(1, VOCABULARY, n).astype(np.int32)

    batch = [(tokens(n_source), tokens(n_target)) for n_source, n_target in LENGTHS]
    padded = collate_padded(batch, pad_id=0)
    packed = collate_packed(batch, start_id=0, pad_id=0, cut=True)
    fast = FastEngine(copy.deepcopy(acting_adapter(config, config.p)), torch.float32)
    exact, near = (PaddedEngine(acting_adapter(config, p)) for p in (config.p, rounded))
    sides = {"fast": (fast, packed), "hf": (exact, padded), "hf, p rounded": (near, padded)}
    for engine, _ in sides.values():
        engine.train()
    found = {name: np.empty(config.n) for name in sides}
    for i in range(config.n):
        for name, (engine, given) in sides.items():
            found[name][i] = float(engine(given))
    return found


def of(sample: Losses) -> tuple[float, float, float, float]:
    """(mean, its standard error, spread, its standard error, which the fourth moment gives)."""
    centred = sample - sample.mean()
    spread, n = float(sample.std(ddof=1)), len(sample)
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
    error = spread * ((kurtosis - 1) / (4 * n)) ** 0.5
    return float(sample.mean()), spread / n**0.5, spread, error


@exits_cleanly
def main() -> None:
    config = parse(DropoutConfig, description=(__doc__ or "").partition("\n")[0])
    torch.set_num_threads(1)
    found = {name: of(sample) for name, sample in losses(config).items()}
    mean, error, spread, spread_error = found["fast"]
    rows: list[list[str]] = []
    result: dict[str, object] = {"p": config.p, "n": config.n}
    for name, (m, e, s, se) in found.items():
        z_mean, z_spread = (
            (mean - m) / np.hypot(error, e),
            (spread - s) / np.hypot(spread_error, se),
        )
        result[name] = {"mean": m, "spread": s, "ratio": spread / s, "z": [z_mean, z_spread]}
        rows.append(
            [name, f"{m:.4f}", f"{s:.4f}", f"{spread / s:.4f}", f"{z_mean:.1f}", f"{z_spread:.1f}"]
        )
    columns = ("engine", "mean", "spread", "fast's / its", "z of the mean", "z of the spread")
    print_table(f"Loss of one batch over {config.n:,} masks, p = {config.p}", columns, rows)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
