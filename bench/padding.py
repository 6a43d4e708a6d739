"""How much of the arithmetic goes into padding, and do all ranks get equal work?

    python -m bench.padding --data.path DIR --model.path BASE

FLOPs of an epoch over those of its reports without any padding, for the given lengths: fixed
512/256, random batches, transformers' group_by_length, our plan with dynamic padding, and our plan
on the fast engine (padding inside attention only). The last line is JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.common import BenchConfig, IntArray, fresh_model, load_data, print_json, start
from bench.flops import StepFlops
from bench.peers import grouped_batches, random_batches
from bench.train_speed import our_batches
from data import ExtractDataset
from report2impression.batching.plan import plan_epoch
from report2impression.batching.shapes import GRID_MULTIPLE
from report2impression.program.terminal import print_table

RANKS = (2, 4, 8)


@dataclass(frozen=True)
class PaddingConfig(BenchConfig):
    """Padding of the given lengths."""


def share_of_ideal(
    batches: Sequence[IntArray],
    dataset: ExtractDataset,
    flops: StepFlops,
    layers: tuple[int, int],
    *,
    fixed: tuple[int, int] | None = None,
    packed: bool = False,
) -> float:
    """FLOPs of these batches over those of their reports without padding."""
    spent = ideal = 0.0
    for batch in batches:
        source, target = dataset.source_lengths[batch], dataset.target_lengths[batch]
        grid = fixed or (int(source.max()), int(target.max()))
        if packed:
            grid = _up(grid[0]), _up(grid[1])
        ideal += flops.step(source, target, n_layers=layers)
        spent += flops.step(
            source, target, n_layers=layers, grid=grid, linear_grid=None if packed else grid
        )
    return spent / ideal


def _up(length: int) -> int:
    return -(-length // GRID_MULTIPLE) * GRID_MULTIPLE


def imbalance(dataset: ExtractDataset, n_ranks: int, config: BenchConfig) -> tuple[float, float]:
    """(mean, largest) over the steps of: busiest rank's tokens over the mean rank's, minus 1."""
    steps = plan_epoch(
        dataset.source_lengths,
        dataset.target_lengths,
        global_batch_size=config.micro_batch_size * n_ranks,
        n_ranks=n_ranks,
        seed=config.seed,
    )
    lengths = dataset.source_lengths + dataset.target_lengths
    full = [s for s in steps if len(s.indices) == config.micro_batch_size * n_ranks] or steps
    found = []
    for step in full:
        tokens = [int(lengths[rank].sum()) for rank in step.micro_batches[0]]
        found.append(max(tokens) / (sum(tokens) / n_ranks) - 1)
    return float(np.mean(found)), max(found)


def main() -> None:
    config = start(PaddingConfig, (__doc__ or "").partition("\n")[0])
    dataset = load_data(config)
    shape = fresh_model(config).config
    flops, layers = (
        StepFlops.of(shape, config.lora.r),
        (shape.num_layers, shape.num_decoder_layers),
    )
    random, grouped = random_batches(dataset, config), grouped_batches(dataset, config)
    plan = our_batches(dataset, config)
    longest = config.data.max_source_tokens, config.data.max_target_tokens

    def share(batches: Sequence[IntArray], **how: object) -> float:
        return share_of_ideal(batches, dataset, flops, layers, **how)  # type: ignore[arg-type]

    shares = {
        "fixed": share(random, fixed=longest),
        "random": share(random),
        "group_by_length": share(grouped),
        "ours_padded": share(plan),
        "ours": share(plan, packed=True),
    }
    names = {
        "fixed": f"fixed {longest[0]}/{longest[1]}",
        "random": "random order, dynamic padding",
        "group_by_length": "transformers group_by_length",
        "ours_padded": "our plan, dynamic padding (engine hf)",
        "ours": "our plan, packed (engine fast)",
    }
    rows = [(names[name], f"{value:.3f}") for name, value in shares.items()]
    title = f"FLOPs over ideal, batches of {config.micro_batch_size}, {len(dataset):,} reports"
    print_table(title, ("", "over ideal"), rows)
    ranks = {n: imbalance(dataset, n, config) for n in RANKS}
    table = [(str(n), f"{mean:.2%}", f"{most:.2%}") for n, (mean, most) in ranks.items()]
    print_table("Busiest rank's tokens over the mean", ("ranks", "mean", "worst step"), table)
    print_json(
        {
            "over_ideal": shares,
            "rank_imbalance": {n: {"mean": a, "max": b} for n, (a, b) in ranks.items()},
        }
    )


if __name__ == "__main__":
    main()
