"""What only a GPU can show. Complete, and skipped without one: nothing here has been run yet."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from model import PaddedEngine
from report2impression.batching.collation import TOKEN_MULTIPLE, collate_packed, collate_padded
from report2impression.batching.shapes import Shape
from report2impression.engine.batch import PackedBatch
from report2impression.engine.fast import FastEngine
from report2impression.training.graphs import Graphs
from report2impression.training.updates import SkipGuard, learning_rate
from tests.test_fast_t5 import adapted_t5, examples, gradients, packed
from tests.tiny import ROOT, Tiny, metrics

cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
pytestmark = cuda


def launch(n_processes: int, flags: list[str]) -> subprocess.CompletedProcess[str]:
    file = "one_gpu" if n_processes == 1 else "multi_gpu"
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    options = ["--config_file", f"recipes/accelerate/{file}.yaml"]
    if n_processes > 1:
        options += ["--num_processes", str(n_processes)]
    return subprocess.run(
        [*launcher, *options, "train_loop.py", *flags],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )


def gpu_flags(tiny: Tiny, folder: Path, **changes: object) -> list[str]:
    return [flag for flag in tiny.flags(folder, **changes) if flag != "--cpu"]


def test_auto_precision_is_fp16_and_learns(tiny: Tiny, tmp_path: Path) -> None:
    done = launch(1, gpu_flags(tiny, tmp_path, precision="auto", epochs=3))
    assert "fp16" in done.stdout and "cuda x 1" in done.stdout
    losses = [step["loss"] for step in metrics(tmp_path, "step")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_cuda_agrees_with_the_cpu(
    tiny: Tiny, tmp_path: Path, precision: str, tolerance: float
) -> None:
    launch(1, gpu_flags(tiny, tmp_path / "cuda", precision=precision))
    flags = tiny.flags(tmp_path / "cpu")
    subprocess.run([sys.executable, "train_loop.py", *flags], cwd=ROOT, check=True, timeout=600)
    pairs = zip(metrics(tmp_path / "cuda", "step"), metrics(tmp_path / "cpu", "step"), strict=True)
    for on_gpu, on_cpu in pairs:
        assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=tolerance)


@two_gpus
def test_two_gpus_give_the_losses_of_one(tiny: Tiny, tmp_path: Path) -> None:
    launch(1, gpu_flags(tiny, tmp_path / "one", micro_batch_size=8))
    launch(2, gpu_flags(tiny, tmp_path / "two", micro_batch_size=4))
    pairs = zip(metrics(tmp_path / "one", "step"), metrics(tmp_path / "two", "step"), strict=True)
    for one, two in pairs:
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_guard_judges_one_step_late_and_in_order() -> None:
    guard, bad = SkipGuard(2), torch.zeros((), dtype=torch.bool, device="cuda")
    guard.observe(1, ["a"], bad)
    assert guard.total == 0
    guard.observe(2, ["b"], ~bad)
    assert guard.total == 1
    guard.finish()
    assert guard.in_a_row == 0


def test_schedule_stays_on_the_device() -> None:
    rate = learning_rate(torch.zeros((), device="cuda"), peak=1.0, n_warmup=0, n_total=10)
    assert rate.is_cuda and rate.item() == pytest.approx(1.0)


# --- the fast engine -----------------------------------------------------------------------------

LENGTHS = [(40, 20), (9, 7), (1, 1)]


def on_gpu(multiple: int = TOKEN_MULTIPLE["cuda"]) -> PackedBatch:
    return packed(LENGTHS, multiple).to("cuda")


@pytest.mark.parametrize("gated", [False, True])
def test_fast_engine_in_fp32_is_hf(gated: bool) -> None:
    model = adapted_t5(gated=gated).cuda()
    twin = copy.deepcopy(model)
    padded = collate_padded(examples(LENGTHS), pad_id=0)
    theirs = PaddedEngine(model)(padded.to("cuda"))
    ours = FastEngine(twin, torch.float32)(on_gpu())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs.backward()
    ours.backward()
    reference = gradients(model)
    for name, gradient in gradients(twin).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-3, atol=1e-4)


def test_fast_engine_in_fp16_is_near_fp32() -> None:
    losses = [
        FastEngine(adapted_t5().cuda(), dtype)(on_gpu()).item()
        for dtype in (torch.float32, torch.float16)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_step_of_the_fast_engine_never_waits_for_the_device() -> None:
    engine = FastEngine(adapted_t5(dropout=0.1, lora_dropout=0.1).cuda(), torch.float16).train()
    batch = on_gpu()
    engine(batch).backward()  # position biases are made here
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine(batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_fast_engine_learns(tiny: Tiny, tmp_path: Path) -> None:
    launch(1, gpu_flags(tiny, tmp_path, precision="auto", epochs=3, compile="true"))
    losses = [step["loss"] for step in metrics(tmp_path, "step")]
    assert losses[-1] < losses[0]


# --- CUDA graphs ---------------------------------------------------------------------------------


def test_steps_by_graphs_have_the_losses_of_plain_ones(tiny: Tiny, tmp_path: Path) -> None:
    same = {"precision": "fp32", "micro_batch_size": 4, "grad_accum_steps": 2, "epochs": 2}
    for name in ("true", "false"):
        done = launch(1, gpu_flags(tiny, tmp_path / name, cuda_graphs=name, **same))
        assert ("CUDA graphs: " in done.stdout) == (name == "true")
        assert "CUDA graphs: none" not in done.stdout
    pairs = zip(*(metrics(tmp_path / name, "step") for name in ("true", "false")), strict=True)
    for ours, plain in pairs:
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2)


def test_a_replay_reads_its_batch_and_draws_by_its_seed() -> None:
    collate = partial(collate_packed, start_id=0, pad_id=0, multiple=TOKEN_MULTIPLE["cuda"])
    shapes = [Shape(4, 256, 64, 128, 32), Shape(3, 128, 48, 128, 32)]
    engine = FastEngine(adapted_t5(dropout=0.1, lora_dropout=0.1).cuda(), torch.float32)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    graphs = Graphs(engine, scaler, shapes, collate, torch.device("cuda"))

    def losses(*seeds: int) -> list[float]:
        found = []
        for seed, shape in zip(seeds, (0, 1, 0, 1), strict=True):
            torch.manual_seed(seed)
            loss = graphs.step(collate(examples(LENGTHS), shapes=shapes[shape:][:1]), 1.0)
            assert loss is not None
            found.append(loss.item())
        return found

    first = losses(1, 2, 3, 4)
    assert losses(1, 2, 3, 4) == pytest.approx(first, rel=1e-5)
    assert len({round(loss, 4) for loss in first}) == 4
