"""What happens after an epoch: validate, keep the best weights, tell, and stop early if asked.

The validation batches are the same at any number of ranks, and their sums are added in batch order
in float64: the loss is the same figure on 1 process and on 8.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from report2impression.batching.collation import Collate
from report2impression.batching.dataset import PlannedDataset, WithReferences, batches
from report2impression.batching.plan import plan_evaluation
from report2impression.batching.tokens import Tokens
from report2impression.decoding.generate import generate, to_text
from report2impression.decoding.options import DecodingConfig
from report2impression.engine.models import T5Model, evaluating
from report2impression.engine.precision import autocast, resolve_precision
from report2impression.program.config import save
from report2impression.program.errors import NumericsError
from report2impression.program.files import restore
from report2impression.reading.licence import write_mark
from report2impression.reading.sources import sample_indices
from report2impression.runs.durable import Json
from report2impression.runs.model_card import write_model_card
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.sharding import is_sharded, trainable
from report2impression.runs.tracking import Tracker
from report2impression.scoring.rouge_bleu import scores
from report2impression.weights.saving import save_model


def validation_loss(
    engine: nn.Module,
    dataset: PlannedDataset,
    collate: Collate,
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    rank: int = 0,
    n_ranks: int = 1,
) -> float:
    """Cross-entropy per label token (nats) over all examples, dropout off; equal on every rank."""
    plan = plan_evaluation(dataset.source_lengths, dataset.target_lengths, batch_size=batch_size)
    mine = range(rank, len(plan), n_ranks)
    loader = batches(dataset, [plan[i] for i in mine], collate, pin_memory=device.type == "cuda")
    with evaluating(engine), autocast(device, precision):
        sums = [engine(batch.to(device)) for batch in loader]
        if is_sharded(engine.parameters()) and len(mine) < -(-len(plan) // n_ranks):
            engine(collate([]).to(device))  # the others cannot go on without this rank's parts
    read = torch.stack(sums).double().tolist() if sums else []  # one wait for the device in all
    own = list(zip(mine, read, strict=True))
    gathered = dict(gather_object(own) if n_ranks > 1 else own)
    if len(gathered) != len(plan):
        raise RuntimeError("a validation batch was lost while gathering from the ranks")
    return sum(gathered[i] for i in range(len(plan))) / int(dataset.target_lengths.sum())


@dataclass
class BestSoFar:
    """Lowest figure yet, and whether patience with worse ones has run out (0 = endless)."""

    patience: int = 0
    figure: float = float("inf")
    epoch: int = 0  # counted from 1; 0 = none yet
    n_worse: int = 0
    step: int | None = None  # of the best epoch's last update

    def improved(self, epoch: int, figure: float) -> bool:
        """Take an epoch's figure; true if it is the best yet (a NaN never is)."""
        if figure < self.figure:
            self.figure, self.epoch, self.n_worse = figure, epoch, 0
            return True
        self.n_worse += 1
        return False

    def state(self) -> Json:
        return {**asdict(self), "figure": self.figure.hex()}  # JSON has no infinity

    def restore(self, state: Json) -> None:
        self.figure = float.fromhex(state["figure"])
        self.epoch, self.n_worse, self.step = state["epoch"], state["n_worse"], state["step"]

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.n_worse


@dataclass
class EpochEnd:
    """Called by the loop with (epoch from 0, engine); returns True to stop the run."""

    config: TrainConfig
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    model: T5Model
    collate: Collate
    validation: PlannedDataset
    tracker: Tracker
    best: BestSoFar

    def __post_init__(self) -> None:
        if self.accelerator.is_main_process:
            restore(self.folder)  # the best of a run that was killed while it was replaced

    def __call__(self, epoch: int, engine: nn.Module) -> bool:
        figures = {"validation_loss": self._loss(engine), **self._generation_scores()}
        by_loss = self.config.best_by == "loss"
        figure = figures["validation_loss"] if by_loss else -figures["rougeL"]
        if self.best.improved(epoch + 1, figure):
            self.best.step = self.tracker.n_done
            weights = trainable(self.model) if is_sharded(self.model.parameters()) else None
            if self.accelerator.is_main_process:
                self._keep(epoch + 1, figures, weights)
        self.tracker.end_epoch(epoch + 1, figures)
        self.accelerator.wait_for_everyone()
        return self.best.exhausted

    def _keep(
        self, epoch: int, figures: dict[str, float], weights: dict[str, Tensor] | None
    ) -> None:
        """On the disk before any checkpoint says so."""
        write_extras = partial(self._write_extras, epoch, figures)
        half = self.config.store == "fp16"
        save_model(self.model, self.folder, write_extras=write_extras, half=half, weights=weights)

    @property
    def folder(self) -> Path:
        """Where the best weights lie: RUN/adapter (PEFT format), or RUN/model for full tuning."""
        return Path(self.config.output_dir) / (
            "adapter" if self.config.tuning == "lora" else "model"
        )

    def tell_best(self) -> None:
        """At the end of the run. NumericsError if no epoch was good enough to be kept."""
        if not self.best.epoch:
            raise NumericsError(
                "no validation loss was finite: no weights kept; lower --learning_rate"
            )
        if self.accelerator.is_main_process:
            kept = f"{self.best.epoch}, kept in {self.folder}"
            print(f"best epoch by {self.config.best_by}: {kept}")

    def _loss(self, engine: nn.Module) -> float:
        accelerator, config = self.accelerator, self.config
        return validation_loss(
            engine,
            self.validation,
            self.collate,
            batch_size=2 * config.micro_batch_size,  # no gradients: twice the room
            device=accelerator.device,
            precision=resolve_precision(config.precision, accelerator.device),
            rank=accelerator.process_index,
            n_ranks=accelerator.num_processes,
        )

    def _generation_scores(self) -> dict[str, float]:
        if not self.config.generate_n or not isinstance(self.validation, WithReferences):
            return {}
        device = self.accelerator.device
        precision: Any = resolve_precision(self.config.precision, device)
        return generation_scores(
            self.model,
            self.tokenizer,
            self.validation.source,
            self.validation.impressions,
            n=self.config.generate_n,
            seed=self.config.seed,
            decoding=DecodingConfig(max_new_tokens=self.config.max_new_tokens, precision=precision),
            rank=self.accelerator.process_index,
            n_ranks=self.accelerator.num_processes,
        )

    def _write_extras(self, epoch: int, figures: dict[str, float], folder: Path) -> None:
        save(self.config, folder / "training.toml")
        write_mark(folder, self.config.mark())
        if self.config.tuning == "full":  # a base of its own needs its tokenizer beside it
            self.tokenizer.save_pretrained(str(folder))
        write_model_card(
            folder,
            self.config,
            epoch,
            figures,
            n_processes=self.accelerator.num_processes,
            precision=resolve_precision(self.config.precision, self.accelerator.device),
            family=self.model.config.model_type,
        )


def generation_scores(
    model: T5Model,
    tokenizer: PreTrainedTokenizerBase,
    source: Tokens,
    references: Sequence[str],
    *,
    n: int,
    seed: int,
    decoding: DecodingConfig,
    rank: int = 0,
    n_ranks: int = 1,
) -> dict[str, float]:
    """ROUGE and BLEU (percent) of outputs on n sampled reports; the same figures on every rank."""
    chosen = sample_indices(len(references), n, seed)
    outputs = generate(model, source.take(chosen), decoding, rank=rank, n_ranks=n_ranks)
    predictions = to_text(tokenizer, [output.ids for output in outputs])
    return scores(predictions, [references[i] for i in chosen])
