"""T5-small's own shape (random weights, genuine tokenizer) on real reports in three precisions."""

from pathlib import Path

import pytest

from report2impression.weights.new_base import NewBaseConfig, new_base
from tests.tiny import ROOT, metrics, python

SHARED = ROOT.parent / "shared"
REPORTS, TOKENIZER = SHARED / "data" / "iu_xray", SHARED / "t5_tokenizer"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REPORTS.is_dir() and TOKENIZER.is_dir()),
        reason="needs ../shared/data/iu_xray and ../shared/t5_tokenizer",
    ),
]


def head(folder: Path, **lines: int) -> Path:
    """The first reports of each split."""
    folder.mkdir()
    for split, n in lines.items():
        with (REPORTS / f"{split}.jsonl").open() as whole:
            (folder / f"{split}.jsonl").write_text("".join(next(whole) for _ in range(n)))
    return folder


def test_t5_small_shape_trains_in_three_precisions(tmp_path: Path) -> None:
    base, data = tmp_path / "base", head(tmp_path / "data", train=16, validation=4)
    shape = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "n_heads": 8, "n_layers": 6}
    new_base(NewBaseConfig(output_dir=str(base), tokenizer=str(TOKENIZER), **shape))  # type: ignore[arg-type]
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        run = tmp_path / precision
        flags = {
            "model.path": base,
            "model.dropout": 0.0,
            "lora.dropout": 0.0,
            "data.path": data,
            "data.cache_dir": tmp_path / "cache",
            "output_dir": run,
            "micro_batch_size": 4,
            "epochs": 1,
            "warmup_steps": 1,
            "learning_rate": 1e-3,
            "log_every": 1,
            "precision": precision,
        }
        done = python("train_loop.py", "--cpu", *(f"--{k}={v}" for k, v in flags.items()))
        assert done.returncode == 0, done.stderr
        assert "2,162,688 of" in done.stdout and precision in done.stdout
        losses[precision] = [step["loss"] for step in metrics(run, "step")]
    for precision in ("bf16", "fp16"):
        assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["fp32"][-1] < losses["fp32"][0]
