"""Two processes under `accelerate launch` give what one gives: losses, adapter, scores."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from safetensors.torch import load_file

import eval as evaluation
import train_loop
from bench.reliability.fault_runs import own_port
from tests.tiny import N_TEST, N_TRAIN, ROOT, Tiny, difference, metrics, python

N_SCORED = N_TEST - 2
CPU_2 = ROOT / "recipes" / "accelerate" / "cpu_2_processes.yaml"


def launch(*commands: Sequence[object], file: Path = CPU_2) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with the repository's own two-process file: one launch for all."""
    with ExitStack() as held:
        ports = [held.enter_context(own_port()) for _ in commands]
        lines = [[str(w) for w in (port, *c)] for port, c in zip(ports, commands, strict=True)]
        launcher = ["-m", "accelerate.commands.launch", "--config_file", file]
        port = ["--main_process_port", ports[0]]
        return python(*launcher, *port, "-m", "tests.launched", json.dumps(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


def scoring(tiny: Tiny, folder: Path, ranks: str) -> list[str]:
    """Flags of eval.py; the last batch of an odd number is short, on one rank alone."""
    return [
        f"--adapter={folder / 'one' / 'adapter'}",
        f"--data.path={tiny.data}",
        f"--model.path={tiny.talkative}",
        f"--n={N_SCORED}",
        "--max_new_tokens=12",
        "--batch_size=2",
        "--n_resamples=100",
        "--cpu",
        f"--output_dir={folder / f'scores_{ranks}'}",
    ]


@pytest.fixture(scope="module")
def launched(tiny: Tiny, folder: Path) -> subprocess.CompletedProcess[str]:
    """Training on two processes with accumulation (in `two`) and on one without (in `one`): seven
    steps of 8 reports and one of a single report. Then the evaluation, then a mistake."""
    assert N_TRAIN % 8 == 1
    same = {"epochs": 2, "learning_rate": 1e-3}
    train_loop.main(tiny.flags(folder / "one", micro_batch_size=8, **same))
    evaluation.main(scoring(tiny, folder, "one"))
    flags = tiny.flags(folder / "two", micro_batch_size=2, grad_accum_steps=2, **same)
    return launch(
        ["train_loop.py", *flags],
        ["eval.py", *scoring(tiny, folder, "two")],
        ["train_loop.py", *tiny.flags(folder / "none", data__path=folder / "missing")],
    )


def test_training_on_two_processes_equals_one(
    launched: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert launched.stdout.count("train_loop.py is done") == 2, launched.stderr
    assert "cpu x 2" in launched.stdout
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
    launched: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert launched.stdout.count("reports per optimizer step") == 1
    assert launched.stdout.count("best epoch by loss") == 1
    assert {f.name for f in (folder / "two").iterdir()} == {
        f.name for f in (folder / "one").iterdir()
    }


def test_scores_of_two_processes_are_those_of_one(
    launched: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert launched.stdout.count("eval.py is done") == 2, launched.stderr
    assert N_SCORED % 2 == 1
    for name in ("scores.json", "sample_ids.json"):
        one, two = (folder / f"scores_{ranks}" / name for ranks in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    scores = json.loads((folder / "scores_two" / "scores.json").read_text())
    assert scores["n"] == N_SCORED
    assert scores["base"] != scores["lora"]


def test_a_mistake_is_told_once(launched: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert launched.returncode != 0
    assert launched.stderr.count("error: ") == 1
    assert not (folder / "none").exists()
