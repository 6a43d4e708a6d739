"""Every kind of base through the programs: a run, the same run stopped and resumed, an export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import train_loop
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.extracting import export
from report2impression.weights.folders import find_trained
from report2impression.weights.options import ModelConfig
from report2impression.weights.trained import trained_model
from tests.families import FAMILIES, make_base
from tests.test_resume import stopped_after
from tests.tiny import Tiny, metrics

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
