"""Two processes under `accelerate launch` give what one gives: losses, adapter, scores."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

import eval as evaluation
import train_loop
from tests.tiny import N_TEST, N_TRAIN, ROOT, Tiny, difference, metrics, python

CPU_2 = ROOT / "recipes" / "accelerate" / "cpu_2_processes.yaml"


def launch(*argv: object) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with the repository's own two-process file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", CPU_2]
    return python(*launcher, "--main_process_port", port, *argv)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run on two processes with accumulation (in `two`) and on one without (in `one`): seven
    steps of 8 reports and one of a single report."""
    assert N_TRAIN % 8 == 1
    same = {"epochs": 2, "learning_rate": 1e-3}
    train_loop.main(tiny.flags(folder / "one", micro_batch_size=8, **same))
    flags = tiny.flags(folder / "two", micro_batch_size=2, grad_accum_steps=2, **same)
    return launch("train_loop.py", *flags)


def test_training_on_two_processes_equals_one(
    trained: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert trained.returncode == 0, trained.stderr
    assert "cpu x 2" in trained.stdout
    one, two = (metrics(folder / name, "step") for name in ("one", "two"))
    assert len(one) == len(two) == 16
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4), ("lr", 1e-9)):
        assert [s[name] for s in two] == pytest.approx([s[name] for s in one], abs=tolerance)
    one, two = (metrics(folder / name, "epoch") for name in ("one", "two"))
    for name in ("validation_loss", "training_loss"):
        assert [e[name] for e in two] == pytest.approx([e[name] for e in one], rel=1e-6)
    ours, theirs = (
        load_file(folder / name / "adapter" / "adapter_model.safetensors")
        for name in ("two", "one")
    )
    assert difference(ours, theirs) <= 1e-6  # a wrong step would move by the rate, 1e-3
    assert max(float(w.abs().max()) for n, w in ours.items() if "lora_B" in n) > 1e-3


def test_only_rank_0_prints_and_writes(
    trained: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert trained.stdout.count("reports per optimizer step") == 1
    assert trained.stdout.count("best epoch by loss") == 1
    assert {f.name for f in (folder / "two").iterdir()} == {
        f.name for f in (folder / "one").iterdir()
    }


def test_scores_of_two_processes_are_those_of_one(
    trained: subprocess.CompletedProcess[str], tiny: Tiny, folder: Path
) -> None:
    n = N_TEST - 2
    assert n % 2 == 1
    flags = [
        f"--adapter={folder / 'one' / 'adapter'}",
        f"--data.path={tiny.data}",
        f"--model.path={tiny.talkative}",
        f"--n={n}",
        "--max_new_tokens=12",
        "--batch_size=2",
        "--cpu",
    ]
    evaluation.main([*flags, f"--output_dir={folder / 'scores_one'}"])
    done = launch("eval.py", *flags, f"--output_dir={folder / 'scores_two'}")
    assert done.returncode == 0, done.stderr
    for name in ("scores.json", "sample_ids.json"):
        one, two = (folder / f"scores_{ranks}" / name for ranks in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    scores = json.loads((folder / "scores_two" / "scores.json").read_text())
    assert scores["n"] == n
    assert scores["base"] != scores["lora"]


def test_a_mistake_is_told_once(tiny: Tiny, folder: Path) -> None:
    done = launch("train_loop.py", *tiny.flags(folder / "none", data__path=folder / "missing"))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert not (folder / "none").exists()
