"""A base in parts on two processes (FSDP2 by Accelerate, gloo on a CPU) gives what one
process gives; its adapter is whole, and a stopped run goes on to the same bits."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import train_loop
from bench.reliability.fault_runs import bits
from report2impression.weights.loading import load_adapter, load_base
from report2impression.weights.options import ModelConfig
from tests.families import make_base
from tests.test_resume import stopped_after
from tests.test_two_processes import launch
from tests.tiny import ROOT, Tiny, difference, metrics

pytestmark = pytest.mark.slow
FSDP2 = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
CASES = ("plain", "BART", "checkpointing")  # T5 in fp32, another kind of base, T5 again


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


def flags(
    tiny: Tiny, folder: Path, name: str, n_ranks: int, place: Path | None = None
) -> list[str]:
    """Seven steps of 8 reports and one of a single report, which leaves a rank without any; three
    validation batches on two ranks. Every step is kept."""
    same: dict[str, Any] = {
        **{"engine": "hf", "epochs": 2, "learning_rate": 1e-3, "checkpoint_minutes": 0},
        **{"data__max_source_tokens": 80, "data__max_target_tokens": 40},
        **{"checkpoint_steps": 1, "keep_checkpoints": 100},
        **{"micro_batch_size": 8 // n_ranks**2, "grad_accum_steps": n_ranks},
    }
    if name == "BART":
        same["model__path"] = folder / "bart"
    if name == "checkpointing":
        same["gradient_checkpointing"] = "true"
    return tiny.flags(place or folder / f"{name}_{n_ranks}", **same)


def sharded(*runs: list[str]) -> subprocess.CompletedProcess[str]:
    return launch(*(["train_loop.py", *run] for run in runs), file=FSDP2)


@pytest.fixture(scope="module")
def launched(tiny: Tiny, folder: Path) -> subprocess.CompletedProcess[str]:
    make_base("BART", folder / "bart")
    for name in CASES:
        train_loop.main(flags(tiny, folder, name, 1))
    return sharded(*(flags(tiny, folder, name, 2) for name in CASES))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_adapter_are_those_of_one_process(
    tiny: Tiny, launched: subprocess.CompletedProcess[str], folder: Path, name: str
) -> None:
    assert launched.stdout.count("train_loop.py is done") == 2 * len(CASES), launched.stderr
    one, two = (metrics(folder / f"{name}_{n}", "step") for n in (1, 2))
    assert len(one) == len(two) == 16
    for figure in ("loss", "grad_norm"):
        expected = [step[figure] for step in one]
        assert [step[figure] for step in two] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    one, two = (metrics(folder / f"{name}_{n}", "epoch") for n in (1, 2))
    losses = [[epoch["validation_loss"] for epoch in epochs] for epochs in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    adapters = [folder / f"{name}_{n}" / "adapter" for n in (2, 1)]
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in adapters)
    assert difference(ours, theirs) <= 1e-5  # a wrong step would move by the rate, 1e-3
    base = folder / "bart" if name == "BART" else tiny.base
    load_adapter(load_base(ModelConfig(str(base))), adapters[0])


def test_a_stopped_run_goes_on_to_the_same_bits(
    tiny: Tiny, launched: subprocess.CompletedProcess[str], folder: Path
) -> None:
    whole = folder / "plain_2"
    again = [stopped_after(step, whole, folder / f"again_{step}") for step in (3, 8)]
    done = sharded(*(flags(tiny, folder, "plain", 2, place) for place in again))
    assert done.stdout.count("train_loop.py is done") == 4, done.stderr
    for place in again:
        assert bits(place) == bits(whole)


def test_what_is_not_covered_is_one_line(tiny: Tiny, folder: Path) -> None:
    refused = sharded([*flags(tiny, folder, "plain", 2, folder / "none"), "--engine=fast"])
    assert refused.returncode != 0 and refused.stderr.count("error: ") == 1
    assert "FSDP, which needs --engine hf" in refused.stderr
    assert not (folder / "none").exists()
