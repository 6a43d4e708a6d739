"""How many shapes does an epoch have, and how many CUDA graphs would hold it?

    python -m bench.graphs --data.path DIR --model.path BASE
    python -m bench.graphs --model.path BASE --drawn 59320

Counts from lengths alone, no GPU: distinct shapes of the micro-batches, graphs that
`train_loop.py --cuda_graphs` would capture for them (training/graphs.py), and the tokens that
padding to these adds, for the first epoch and one that they were not chosen by. The last line is
JSON. (Operations of a step with and without: `python -m tests.fake_cuda`.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.common import BenchConfig, IntArray, load_data, print_json, start
from report2impression.batching.collation import TOKEN_MULTIPLE
from report2impression.batching.shapes import Shape, shape_of, smallest
from report2impression.program.terminal import print_table
from report2impression.runs.recipe import TrainConfig
from report2impression.training.graphs import EPOCHS, planned_shapes

# Lognormal: mean and 95th percentile of the source 130 and 246 tokens, of the target 39 and 98.
MEAN, SIGMA, RHO, LONGEST = (4.766, 3.404), (0.45, 0.72), 0.4, (512, 128)


@dataclass(frozen=True)
class GraphsConfig(BenchConfig):
    """CUDA graphs of an epoch."""

    drawn: int = 0
    """Reports of drawn lengths, as those of MIMIC-III, instead of the data's; 0 = the data's."""


@dataclass(frozen=True)
class Drawn:
    """Lengths without reports."""

    source_lengths: IntArray
    target_lengths: IntArray

    def for_epoch(self, epoch: int) -> "Drawn":
        return self

    def __len__(self) -> int:
        return len(self.source_lengths)


def drawn(n: int, seed: int) -> Drawn:
    covariance = np.array([[1, RHO], [RHO, 1]]) * np.outer(SIGMA, SIGMA)
    rows = np.exp(np.random.default_rng(seed).multivariate_normal(MEAN, covariance, n))
    return Drawn(*np.clip(rows, 2, LONGEST).astype(np.int64).T)


def batches(config: TrainConfig, dataset: Any, epoch: int) -> Iterator[tuple[IntArray, IntArray]]:
    """(source lengths, target lengths) of each micro-batch of one process."""
    for step in config.plan(dataset, epoch, 1):
        for (of,) in step.micro_batches:
            yield dataset.source_lengths[of], dataset.target_lengths[of]


def n_tokens(shape: Shape) -> int:
    return shape.source_tokens + shape.target_tokens


def counted(config: TrainConfig, dataset: Any, epoch: int, shapes: list[Shape]) -> dict[str, float]:
    """Of one epoch: micro-batches, their shapes, the share that has a graph, and tokens over those
    of the reports, as without graphs and with."""
    sides = list(batches(config, dataset, epoch))
    real = sum(int(source.sum() + target.sum()) for source, target in sides)
    own = [shape_of(*side, TOKEN_MULTIPLE["cuda"]) for side in sides]
    found = [smallest(shapes, *side) for side in sides]
    padded = sum(n_tokens(shape or alone) for shape, alone in zip(found, own, strict=True))
    return {
        "micro_batches": len(sides),
        "shapes": len(set(own)),
        "held": sum(shape is not None for shape in found) / len(sides),
        "used": len({shape for shape in found if shape}),
        "tokens_without": sum(map(n_tokens, own)) / real - 1,
        "tokens_with": padded / real - 1,
    }


def main() -> None:
    config = start(GraphsConfig, (__doc__ or "").partition("\n")[0])
    dataset: Any = drawn(config.drawn, config.seed) if config.drawn else load_data(config)
    run = TrainConfig(micro_batch_size=config.micro_batch_size, epochs=EPOCHS + 1, seed=config.seed)
    shapes = planned_shapes(run, dataset)
    figures = [counted(run, dataset, epoch, shapes) for epoch in (0, EPOCHS)]
    rows = [
        (
            name,
            f"{of['micro_batches']:,}",
            of["shapes"],
            len(shapes),
            f"{of['held']:.1%}",
            f"{of['tokens_without']:+.1%}",
            f"{of['tokens_with']:+.1%}",
        )
        for name, of in zip(("first epoch", "a later one"), figures, strict=True)
    ]
    head = ("", "micro-batches", "shapes", "graphs", "held", "tokens without", "tokens with")
    print_table(f"{len(dataset):,} reports, {config.micro_batch_size} a batch", head, rows)
    print_json({"graphs": len(shapes), "epochs": figures})


if __name__ == "__main__":
    main()
