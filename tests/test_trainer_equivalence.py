"""The loop against transformers.Seq2SeqTrainer: same start, same batches, same figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from model import build_model
from report2impression.batching.collation import collate_padded
from report2impression.runs.recipe import TrainConfig
from tests.tiny import Tiny, difference, run_loop, trainable

N_STEPS = 20


class InOrder:
    """The batches of a plan; the Trainer takes any iterable with a length."""

    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


class PlannedTrainer(Seq2SeqTrainer):
    """Trains on given batches and keeps each loss unrounded (its log has four decimals)."""

    batches: list[dict[str, torch.Tensor]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def get_train_dataloader(self) -> Any:
        return InOrder(self.batches)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def trainer_for(config: TrainConfig, batches: list[dict[str, torch.Tensor]]) -> PlannedTrainer:
    """The Trainer set up as the recipe says."""
    arguments = Seq2SeqTrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = build_model(config, torch.device("cpu"))
    trainer = PlannedTrainer(model=model, args=arguments, train_dataset=[0])
    trainer.batches = batches
    return trainer


@pytest.mark.parametrize("clip", [1.0, 0.05], ids=["clip_1", "clip_hard"])
def test_same_losses_rates_and_adapter_as_the_trainer(
    tiny: Tiny, tmp_path: Path, clip: float
) -> None:
    config = tiny.recipe(
        tmp_path / "run",
        micro_batch_size=5,
        epochs=2,
        max_steps=N_STEPS,
        warmup_steps=5,
        max_grad_norm=clip,
    )
    dataset = tiny.training_data(config)
    ours = run_loop(config, dataset)
    planned = [step for epoch in (0, 1) for step in config.plan(dataset, epoch, 1)]
    pad_id = int(ours.model.config.pad_token_id)
    batches = [
        collate_padded([dataset[i] for i in s.indices], pad_id=pad_id)._asdict() for s in planned
    ]

    trainer = trainer_for(config, batches)
    assert difference(ours.start, trainable(trainer.model)) == 0.0
    trainer.train()

    assert len(trainer.losses) == len(ours.steps) == N_STEPS
    gap = max(abs(a - b) for a, b in zip(ours.column("loss"), trainer.losses, strict=True))
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert gap <= 1e-5
    assert [log["learning_rate"] for log in logs] == pytest.approx(ours.column("lr"), rel=1e-5)
    assert [log["grad_norm"] for log in logs] == pytest.approx(ours.column("grad_norm"), rel=1e-3)
    assert difference(ours.weights[-1], trainable(trainer.model)) <= 1e-5
    assert difference(ours.weights[-1], ours.start) > 1e-3  # both have moved
