"""Few shapes for many batches, and steps by CUDA graphs with a stand-in for the capture: the real
one waits for a GPU (tests/test_cuda.py)."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from report2impression.batching.collation import collate_packed
from report2impression.batching.shapes import Shape, bounded, shape_of, smallest
from report2impression.engine import attention as fast_attention
from report2impression.engine.fast import FastEngine
from report2impression.training import graphs
from report2impression.training.graphs import planned_shapes, why_not
from tests.test_fast_t5 import adapted_t5, examples, gradients
from tests.test_plan import report_lengths
from tests.tiny import Recorder, Tiny, difference, run_loop

collate = partial(collate_packed, start_id=0, pad_id=0, multiple=16)
LENGTHS = [(9, 15), (30, 4), (1, 1)]


def made(lengths: list[tuple[int, int]], shapes: list[Shape]) -> Shape:
    """The shape of the batch of these lengths."""
    batch = collate(examples(lengths), shapes=shapes)
    (n, source), (_, target) = batch.sources[0].slots.shape, batch.targets[0].slots.shape
    assert len(batch.decoder_ids) == len(batch.labels)
    assert [len(grid.rows) for grid in batch.sources] == [len(batch.source_ids)]
    return Shape(n, len(batch.source_ids), source, len(batch.decoder_ids), target)


@pytest.mark.parametrize("most", [1, 5, 32])
def test_few_shapes_hold_every_batch_and_batches_take_them(most: int) -> None:
    source, target = report_lengths(400)
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, 400, n) for n in draw.integers(1, 9, 60)]
    batches += [np.flatnonzero(source == 16)[:1]] * (16 in source)
    sides = [(source[batch], target[batch]) for batch in batches]
    own = [shape_of(*both, 16) for both in sides]
    shapes = bounded(own, most)
    assert 1 <= len(shapes) <= most
    for (a, b), alone in zip(sides, own, strict=True):
        lengths = list(zip(a.tolist(), b.tolist(), strict=True))
        assert made(lengths, []) == alone
        found = smallest(shapes, a, b)
        assert found is not None and made(lengths, shapes) == found


def test_those_that_differ_least_become_one() -> None:
    near = [Shape(8, 256, 64, 128, 32), Shape(8, 256, 64, 128, 48)]
    far = Shape(8, 2048, 512, 640, 128)
    assert bounded([*near, far], 2) == [far, near[1]]
    assert bounded([*near, far, far], 3) == [far, near[1], near[0]]


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([(16, 16)], Shape(1, 32, 16, 16, 16)),  # no place for the tokens that round up
        ([(17, 3)], Shape(1, 32, 16, 16, 16)),  # wider
        ([(9, 9), (9, 8)], Shape(2, 32, 16, 16, 16)),  # more tokens
        ([(1, 1)] * 3, Shape(2, 32, 16, 16, 16)),  # more examples
        ([(16, 4)] * 2, Shape(3, 32, 16, 16, 16)),  # the added example is one token more
    ],
)
def test_what_does_not_fit_keeps_its_own_shape(
    lengths: list[tuple[int, int]], shape: Shape
) -> None:
    source, target = zip(*lengths, strict=True)
    assert made(lengths, [shape]) == shape_of(source, target, 16)


@pytest.mark.parametrize("path", ["cpu", "cuda"])
def test_padding_to_a_shape_changes_neither_loss_nor_gradients(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tokens, wider grids and two examples without a label."""
    if path == "cuda":

        def fused(q: Any, kv: Any, queries: Any, keys: Any, bias: Any, drop: Any) -> Tensor:
            return fast_attention._sdpa(q, kv, queries, keys, bias, 0.0)

        monkeypatch.setattr("report2impression.engine.blocks.attention", fused)
    shape = Shape(5, 128, 48, 64, 32)
    assert made(LENGTHS, [shape]) == shape
    model = adapted_t5()
    losses, found = [], []
    for shapes in ([], [shape]):
        twin = copy.deepcopy(model)
        loss = FastEngine(twin, torch.float32)(collate(examples(LENGTHS), shapes=shapes))
        loss.backward()
        losses.append(loss.item())
        found.append(gradients(twin))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


# --- the loop -------------------------------------------------------------------------------------


def by_hand(run: Any, pool: Any) -> tuple[Callable[[], None], Tensor]:
    """As `record`: what is run again reads and fills the same tensors."""
    for _ in range(graphs.WARM_UPS):
        result = run().clone()
    weights = [w for w in run.func.__self__.engine.parameters() if w.requires_grad]
    places = [w.grad.data_ptr() for w in weights]

    def replay() -> None:
        assert places == [w.grad.data_ptr() for w in weights], "a graph would fill others"
        result.copy_(run())

    return replay, result


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "record", by_hand)
    monkeypatch.setattr(graphs, "why_not", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def trained(tiny: Tiny, folder: Path, **changes: Any) -> Recorder:
    config = tiny.recipe(folder, micro_batch_size=4, grad_accum_steps=2, epochs=2, **changes)
    return run_loop(config, tiny.training_data(config, 33))  # a last step of one report


@pytest.mark.parametrize("most", [1, 4])
def test_steps_by_graphs_are_the_same_steps(
    tiny: Tiny,
    tmp_path: Path,
    without_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    most: int,
) -> None:
    plain = trained(tiny, tmp_path)
    monkeypatch.setattr(graphs, "MOST", most)
    told: list[bool] = []
    step = graphs.Graphs.step

    def noted(self: Any, *args: Any) -> Tensor | None:
        loss = step(self, *args)
        told.append(loss is not None)
        return loss

    monkeypatch.setattr(graphs.Graphs, "step", noted)
    ours = trained(tiny, tmp_path, cuda_graphs=True)
    assert len(told) == 18 and all(told), "every batch has a graph"
    assert f"CUDA graphs: {most}\n" in capsys.readouterr().out
    for name in ("loss", "grad_norm"):
        assert ours.column(name) == pytest.approx(plain.column(name), rel=1e-4)
    assert difference(ours.weights[-1], plain.weights[-1]) <= 1e-4  # the rate is 3e-3


def test_a_shape_that_was_not_foreseen_runs_without(
    tiny: Tiny,
    tmp_path: Path,
    without_a_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = trained(tiny, tmp_path)
    some = lambda *_: planned_shapes(*_)[1:]  # noqa: E731  # the longest is left out
    monkeypatch.setattr(graphs, "planned_shapes", some)
    ours = trained(tiny, tmp_path, cuda_graphs=True)
    assert capsys.readouterr().out.count("was not foreseen, and runs without") == 1
    assert ours.column("loss") == pytest.approx(plain.column("loss"), rel=1e-4)


def test_a_run_that_cannot_have_graphs_says_why_and_is_the_same(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(tiny, tmp_path, max_steps=2)

    def fails(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    for reason in ("there is no CUDA device", "capturing failed: operation not permitted"):
        ours = trained(tiny, tmp_path, max_steps=2, cuda_graphs=True)
        assert f"CUDA graphs: none, as {reason}\n" in capsys.readouterr().out
        assert difference(ours.weights[-1], plain.weights[-1]) == 0
        monkeypatch.setattr(graphs, "why_not", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", fails)


def test_what_is_not_covered_has_a_reason(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path)
    engine = FastEngine(adapted_t5(), torch.float32)

    def reason(device: str = "cuda", n: int = 1, model: Any = engine, **changes: Any) -> str:
        accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=n)
        return why_not(replace(config, **changes), accelerator, model) or ""

    assert reason() == ""
    assert "no CUDA device" in reason("cpu")
    assert "fast engine" in reason(model=engine.model)
    assert "several processes" in reason(n=2)
    assert "--compile" in reason(compile=True)
