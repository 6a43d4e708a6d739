"""The peers, as their users write them: `Seq2SeqTrainer` + `DataCollatorForSeq2Seq`, and the usual
accelerate loop. Same base, adapter, data and dropout as ours.

A peer forms the batches of a whole epoch with its own sampler; it is then timed on an even sample
of them (`common.evenly`), as ours is on its plan.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from bench.common import BenchConfig, IntArray, evenly, fresh_model, in_batches
from bench.timing import now
from data import ExtractDataset
from report2impression.engine.precision import cpu_multiplies_bf16

Round = Callable[[int], float]  # number of steps -> seconds

# Where bf16 products are emulated a step of the bf16 peer takes minutes, and nobody would use it.
HALF = ("trainer_bf16_grouped",) if torch.cuda.is_available() or cpu_multiplies_bf16() else ()
PEERS = ("trainer_fp32_random", "trainer_fp32_grouped", *HALF, "no_trainer_loop")


def peer(
    name: str, config: BenchConfig, dataset: ExtractDataset, tokenizer: PreTrainedTokenizerBase
) -> Round:
    """Rounds of one of PEERS."""
    form = grouped_batches if "grouped" in name else random_batches
    chosen = form(dataset, config)
    if name == "no_trainer_loop":
        return accelerate_loop(config, dataset, tokenizer, chosen)
    return trainer(config, dataset, tokenizer, chosen, bf16="bf16" in name)


class Features(Dataset):
    """Examples as the peers' collator wants them, in a given order."""

    def __init__(self, dataset: ExtractDataset, order: Sequence[int]) -> None:
        self.dataset, self.order = dataset, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        source, target = self.dataset[int(self.order[i])]
        return {
            "input_ids": source.tolist(),
            "attention_mask": [1] * len(source),
            "labels": target.tolist(),
        }


def random_batches(dataset: ExtractDataset, config: BenchConfig) -> list[IntArray]:
    """Random order, batch by batch."""
    order = np.random.default_rng(config.seed).permutation(len(dataset))
    return in_batches(order.tolist(), config.micro_batch_size)


def grouped_batches(dataset: ExtractDataset, config: BenchConfig) -> list[IntArray]:
    """transformers' own group-by-length order."""
    generator = torch.Generator().manual_seed(config.seed)
    lengths = dataset.source_lengths.tolist()
    sampler = LengthGroupedSampler(config.micro_batch_size, lengths=lengths, generator=generator)
    return in_batches(list(sampler), config.micro_batch_size)


class Stopwatch(TrainerCallback):
    """Time from the first step's start to the last one's end."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end = now()


class InGivenOrder(Seq2SeqTrainer):
    """The Trainer on batches that its sampler has formed before."""

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)


def trainer(
    config: BenchConfig,
    dataset: ExtractDataset,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[IntArray],
    *,
    bf16: bool,
) -> Round:
    """Rounds of `Seq2SeqTrainer`."""
    model = fresh_model(config)

    def run(n_steps: int) -> float:
        chosen = evenly(batches, dataset, n_steps)
        features = Features(dataset, np.concatenate(chosen).tolist())
        with tempfile.TemporaryDirectory() as folder:
            arguments = Seq2SeqTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=config.micro_batch_size,
                learning_rate=5e-5,
                weight_decay=0.01,
                bf16=bf16,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=config.seed,
            )
            watch = Stopwatch()
            peer = InGivenOrder(
                model=model,
                args=arguments,
                train_dataset=features,
                data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
                callbacks=[watch],
            )
            peer.train()
        return watch.end - watch.start

    return run


def accelerate_loop(
    config: BenchConfig,
    dataset: ExtractDataset,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[IntArray],
) -> Round:
    """Rounds of the loop that accelerate's own examples show (no Trainer, fp32)."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    model = fresh_model(config)
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    model = accelerator.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    optimizer = accelerator.prepare(optimizer)
    scheduler = accelerator.prepare(get_linear_schedule_with_warmup(optimizer, 500, 10_000))

    def run(n_steps: int) -> float:
        order = np.concatenate(evenly(batches, dataset, n_steps)).tolist()
        loader: Iterator[Any] = accelerator.prepare(
            DataLoader(
                Features(dataset, order), batch_size=config.micro_batch_size, collate_fn=collate
            )
        )
        model.train()
        start = now()
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return now() - start

    return run
