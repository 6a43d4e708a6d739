"""CUDA graphs (`--cuda_graphs`): forward and backward of a micro-batch as one launch.

A step of a small T5 is more than a thousand short kernels, and a fast GPU waits for the host that
launches them. Before training one graph is captured for each of a few shapes, which the plan of the
first epoch decides (batching/shapes.py); batches are padded to them. A batch that fits none runs as
without graphs. **Not yet run on a GPU.**

A graph knows addresses, so nothing that it reads or writes may move: batch and factor of the loss
are copied in; gradients are added up in place, and zeroed between steps; position biases are made
for the widest shape, and kept; small tensors that the engine caches are made while it warms up.
Dropout reads its seed at each replay, so that seeding before each micro-batch works as ever. The
graphs share a pool of memory: one runs after another, and only its loss is read.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from report2impression.batching.collation import TOKEN_MULTIPLE, Collate
from report2impression.batching.dataset import PlannedDataset
from report2impression.batching.shapes import Shape, bounded, shape_of
from report2impression.engine.batch import Batch, PackedBatch
from report2impression.engine.fast import FastEngine
from report2impression.runs.recipe import TrainConfig

MOST = 32  # graphs of a run
EPOCHS, LOOKED_AT = 4, 512  # first epochs, and their micro-batches, whose shapes are looked at
WARM_UPS = 3  # as torch's documentation has it


class NoGraphs:
    """Every micro-batch runs by itself."""

    replaces_gradients = True

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def step(self, batch: Batch, factor: float) -> Tensor | None:
        """None: this one is not captured."""
        return None


class Graphs(NoGraphs):
    """A graph for each of `shapes`, captured here and now; changes no weight."""

    replaces_gradients = False

    def __init__(
        self,
        engine: FastEngine,
        scaler: torch.amp.GradScaler,
        shapes: list[Shape],
        collate: Callable[..., Any],
        device: torch.device,
    ) -> None:
        super().__init__(partial(collate, shapes=shapes, cut=False))
        self.engine, self.scaler, self.missed = engine.train(), scaler, False
        self.factor = torch.zeros((), device=device)
        for weight in (weight for weight in engine.parameters() if weight.requires_grad):
            weight.grad = torch.zeros_like(weight)
        widths = (max(shape[side] for shape in shapes) for side in (2, 4))
        self.kept = engine.position_biases(*widths)
        pool = torch.cuda.graph_pool_handle()
        self.captured = {}
        for shape in shapes:
            batch = collate([], shapes=[shape], cut=False).to(device)
            self.captured[shape] = (batch, *record(partial(self._run, batch), pool))
        engine.zero_grad(set_to_none=False)

    def _run(self, batch: PackedBatch) -> Tensor:
        loss = self.engine(batch)
        (loss * self.factor).backward()
        return loss.detach()

    def step(self, batch: Batch, factor: float) -> Tensor | None:
        """The summed loss; gradients of (loss x factor, scaled) are added to what is there."""
        assert isinstance(batch, PackedBatch)
        (n, source), (_, target) = batch.sources[0].slots.shape, batch.targets[0].slots.shape
        shape = Shape(n, len(batch.source_ids), source, len(batch.decoder_ids), target)
        if shape not in self.captured:
            if not self.missed:
                print(f"CUDA graphs: {shape} was not foreseen, and runs without; others may, too")
            self.missed = True
            return None
        static, replay, loss = self.captured[shape]
        for to, of in zip(_tensors(static), _tensors(batch), strict=True):
            to.copy_(of, non_blocking=True)
        self.factor.copy_(self.scaler.scale(torch.full_like(self.factor, factor)))
        replay()
        return loss


def _tensors(batch: Any) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else [t for part in batch for t in _tensors(part)]


def record(run: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], None], Tensor]:
    """(replay, what `run` returns and each replay fills)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()
    return graph.replay, result


def planned_shapes(config: TrainConfig, dataset: PlannedDataset) -> list[Shape]:
    """Of the micro-batches of the first epochs, at most MOST."""
    epochs = min(config.epochs, EPOCHS)
    n = max(1, LOOKED_AT // (epochs * config.n_micro_batches(1)))
    shapes = (
        shape_of(examples.source_lengths[own], examples.target_lengths[own], TOKEN_MULTIPLE["cuda"])
        for epoch in range(epochs)
        for examples in [dataset.for_epoch(epoch)]
        for steps in [config.plan(examples, epoch, 1)]
        for i in sorted({int(i) for i in np.linspace(0, max(0, len(steps) - 1), n)})
        for (own,) in (steps[i].micro_batches if len(steps) else ())
    )
    return bounded(shapes, MOST)


def why_not(config: TrainConfig, accelerator: Accelerator, engine: nn.Module) -> str | None:
    """Why this run goes without graphs."""
    reasons = {
        "there is no CUDA device": accelerator.device.type != "cuda",
        "only the fast engine never waits for the device": not isinstance(engine, FastEngine),
        "gradients of several processes are exchanged": accelerator.num_processes > 1,
        "--compile changes the forward": config.compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def graphs_of(
    config: TrainConfig,
    accelerator: Accelerator,
    engine: nn.Module,
    scaler: torch.amp.GradScaler,
    collate: Collate,
    dataset: PlannedDataset,
) -> NoGraphs:
    """As the recipe asks; a line tells how many, or why there are none."""
    if not config.cuda_graphs:
        return NoGraphs(collate)
    graphs, reason = NoGraphs(collate), why_not(config, accelerator, engine)
    if reason is None:
        assert isinstance(engine, FastEngine)
        shapes = planned_shapes(config, dataset)
        try:
            graphs = Graphs(engine, scaler, shapes, collate, accelerator.device)
        except RuntimeError as error:  # torch has no class of its own for it
            engine.zero_grad(set_to_none=True)
            reason = f"capturing failed: {str(error).partition(chr(10))[0]}"
    if accelerator.is_main_process:
        print(f"CUDA graphs: {'none, as ' + reason if reason else len(shapes)}")
    return graphs
