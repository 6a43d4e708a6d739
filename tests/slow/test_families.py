"""Every kind of base through the programs: a run, the same run stopped and resumed, an export; and
training on two processes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import train_loop
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.extracting import export
from report2impression.weights.folders import find_trained
from report2impression.weights.options import ModelConfig
from report2impression.weights.trained import trained_model
from tests.families import FAMILIES, make_base
from tests.test_resume import stopped_after
from tests.test_two_processes import launch
from tests.tiny import Tiny, difference, metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_curves")]


def flags(tiny: Tiny, base: Path, folder: Path) -> list[str]:
    """Two epochs of eight steps, dropout on; every step is kept."""
    changes: dict[str, Any] = {
        **{"epochs": 2, "checkpoint_steps": 1, "checkpoint_minutes": 0, "keep_checkpoints": 100},
        **{"model__path": base, "model__dropout": 0.1, "lora__dropout": 0.1},
        **{"data__max_source_tokens": 80, "data__max_target_tokens": 40},
        **{"generate_n": 2, "max_new_tokens": 8},
    }
    return tiny.flags(folder, **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_resumes_to_the_bit_and_is_exported(
    tiny: Tiny, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(name, tmp_path / "base")
    whole = tmp_path / "whole"
    train_loop.main(flags(tiny, base, whole))
    losses = [epoch["validation_loss"] for epoch in metrics(whole, "epoch")]
    assert losses[1] < losses[0]
    for step in (5, 8):  # within an epoch, and between two
        assert step in steps_kept(whole)
        folder = stopped_after(step, whole, tmp_path / f"run_{step}")
        train_loop.main(flags(tiny, base, folder))
        assert bits(folder) == bits(whole)
    capsys.readouterr()
    merged = tmp_path / "merged"
    export.main(
        [
            f"--adapter={whole / 'adapter'}",
            f"--output={merged}",
            "--to=merged",
            "--max_new_tokens=8",
        ]
    )
    assert "12 of 12 reports, the same tokens as our decoder" in capsys.readouterr().out
    family = FAMILIES[name].model_type
    assert f"tags: [{family}, radiology" in (merged / "README.md").read_text()
    assert json.loads((merged / "config.json").read_text())["model_type"] == family
    shutil.rmtree(base)  # nothing of the base is needed any more
    trained_model(find_trained(merged), ModelConfig(path=str(base)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def place(folder: Path, name: str, n_ranks: int) -> Path:
    return folder / f"{name.replace(' ', '_')}_{n_ranks}"


@pytest.fixture(scope="module")
def launched(tiny: Tiny, folder: Path) -> subprocess.CompletedProcess[str]:
    """All kinds in one launch of two processes, each after a run of its own on one: seven steps of
    8 reports and one of a single report, which leaves a rank without any."""
    runs = []
    for name in FAMILIES:
        base = make_base(name, place(folder, name, 0))
        same: dict[str, Any] = {
            **{"model__path": base, "learning_rate": 1e-3},
            **{"data__max_source_tokens": 80, "data__max_target_tokens": 40},
        }
        train_loop.main(tiny.flags(place(folder, name, 1), micro_batch_size=8, **same))
        split = {"micro_batch_size": 2, "grad_accum_steps": 2}
        runs.append(["train_loop.py", *tiny.flags(place(folder, name, 2), **split, **same)])
    return launch(*runs)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_train_it_as_one_does(
    launched: subprocess.CompletedProcess[str], folder: Path, name: str
) -> None:
    """A step's loss is summed over the ranks, each by its own copy of the adapter: it would tell if
    the copies parted."""
    assert launched.stdout.count("train_loop.py is done") == 2 * len(FAMILIES), launched.stderr
    one, two = (metrics(place(folder, name, n), "step") for n in (1, 2))
    assert len(one) == len(two) == 8
    # Weights so large turn rounding into up to 4e-4 of a norm, on one process, too, where it cuts
    # its steps in another way.
    for figure, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
        expected = [step[figure] for step in one]
        assert [step[figure] for step in two] == pytest.approx(expected, rel=tolerance)
    one, two = (metrics(place(folder, name, n), "epoch") for n in (1, 2))
    assert two[0]["validation_loss"] == pytest.approx(one[0]["validation_loss"], rel=1e-5)
    files = [place(folder, name, n) / "adapter" / "adapter_model.safetensors" for n in (2, 1)]
    ours, theirs = map(load_file, files)
    assert difference(ours, theirs) <= 1e-5  # a wrong step would move by the rate, 1e-3
    assert max(float(w.abs().max()) for n, w in ours.items() if "lora_B" in n) > 1e-3
