"""Fine-tune T5 with LoRA on findings -> impression: the loop, in sight.

    accelerate launch train_loop.py                                      the published recipe
    accelerate launch train_loop.py --config recipes/X.toml --data.path DIR --output_dir RUN

An optimizer step is a fixed set of examples (batching/plan.py), cut into micro-batches and over
ranks. Its loss is the cross-entropy summed over all label tokens divided by their number in the
whole step, so that cutting it differently changes nothing but speed. Accelerate owns processes,
devices and DDP, and nothing else. The same command again goes on where a run was stopped
(runs/checkpoint.py).
"""

from report2impression.program.errors import exits_cleanly
from report2impression.program.process import load_quickly
from report2impression.runs.settings import training_settings

if __name__ == "__main__":
    # --help, mistakes and --dry_run are answered before torch is loaded
    load_quickly(bitsandbytes=training_settings().uses_bitsandbytes)

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import clip_grad_norm_

from data import rank_batches, read_data
from model import build_engine, build_model
from report2impression.batching.collation import Collate
from report2impression.batching.dataset import PlannedDataset
from report2impression.batching.tokens import tokenizer_digest
from report2impression.engine.precision import autocast, resolve_precision
from report2impression.runs.checkpoint import (
    NoCheckpoints,
    Progress,
    Stateful,
    TrainingState,
    base_digest,
)
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run import open_run, tell_run
from report2impression.runs.sharding import whole
from report2impression.runs.tracking import Tracker
from report2impression.training.gradients import gradient_sum
from report2impression.training.graphs import graphs_of
from report2impression.training.updates import (
    SkipGuard,
    apply_update,
    build_optimizer,
    learning_rate,
    mix_seed,
)
from report2impression.training.validation import BestSoFar, EpochEnd
from report2impression.weights.tokenizer import load_tokenizer

NO_CHECKPOINTS = NoCheckpoints()


def train(
    config: TrainConfig,
    accelerator: Accelerator,
    engine: nn.Module,
    collate: Collate,
    dataset: PlannedDataset,
    tracker: Tracker,
    after_epoch: Callable[[int, nn.Module], bool],
    *,
    scaler: torch.amp.GradScaler | None = None,
    checkpoints: NoCheckpoints = NO_CHECKPOINTS,
) -> None:
    """Update the engine's trainable weights in place; `after_epoch(epoch, engine)` returns True
    to stop early."""
    device, rank, n_ranks = accelerator.device, accelerator.process_index, accelerator.num_processes
    precision = resolve_precision(config.precision, device)
    gradients = gradient_sum(accelerator, engine, deterministic=config.deterministic)
    gradients.settle(collate([]))
    forward = gradients.forward  # DDP where there are several ranks
    weights = [weight for weight in engine.parameters() if weight.requires_grad]
    rate = torch.zeros((), device=device)
    optimizer = build_optimizer(config.optimizer, weights, rate, weight_decay=config.weight_decay)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    schedule = partial(
        learning_rate,
        peak=config.learning_rate,
        n_warmup=config.warmup_steps,
        n_total=config.total_steps(len(dataset), n_ranks),
    )
    guard = SkipGuard(config.max_skips)
    progress = Progress(updates=torch.zeros((), device=device))
    others: dict[str, Stateful] = {"skips": guard, "tracker": tracker}
    state = TrainingState(engine, optimizer, scaler, progress, others)
    checkpoints.restore(state)
    graphs = graphs_of(config, accelerator, engine, scaler, collate, dataset)

    for epoch in range(progress.epoch, config.epochs):
        examples = dataset.for_epoch(epoch)
        steps = config.plan(examples, epoch, n_ranks)
        left = steps[progress.offset :]
        loader = iter(rank_batches(examples, left, rank, graphs.collate, device))
        forward.train()
        for step in left:
            for number in range(len(step.micro_batches)):
                batch = next(loader)
                torch.manual_seed(mix_seed(config.seed, progress.step, number * n_ranks + rank))
                factor = gradients.factor / step.n_label_tokens
                with gradients.micro_batch(step, number):
                    loss = graphs.step(batch, factor)
                    if loss is None:
                        with autocast(device, precision):
                            loss = forward(batch.to(device))  # summed over the label tokens
                        scaler.scale(loss * factor).backward()
                gradients.add(loss.detach(), step, number)
            step_loss, wish = gradients.finish(checkpoints.wish())

            scaler.unscale_(optimizer)
            norm = whole(clip_grad_norm_(weights, config.max_grad_norm or float("inf")))
            finite = torch.isfinite(norm) & torch.isfinite(step_loss)
            rate.copy_(schedule(progress.updates))
            apply_update(optimizer, scaler, finite)
            optimizer.zero_grad(set_to_none=graphs.replaces_gradients)
            progress.advance(finite)

            guard.observe(progress.step, [dataset.ids[i] for i in step.indices], finite)
            figures = {"lr": rate, "grad_norm": norm, "skipped": guard.total}
            tracker.step(step_loss, step.n_label_tokens, step.n_tokens, finite, **figures)
            checkpoints.after_step(state, wish, epoch_ends=progress.offset == len(steps))
        guard.finish()
        tracker.n_skipped = guard.total
        if after_epoch(epoch, engine) or progress.step == config.max_steps:
            return
        progress.next_epoch()


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = training_settings(argv)
    with open_run(config) as run:
        accelerator = run.accelerator
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        model = build_model(config, run.device)
        training, validation, data = read_data(config, tokenizer, accelerator)
        digests = {"tokenizer": tokenizer_digest(tokenizer), "base": base_digest(model)}
        engine, collate, kind = build_engine(config, model, run.device)
        run.take_folder({**digests, "data": data})
        if run.is_finished:
            return
        config, best = run.config, BestSoFar(run.config.patience)
        if accelerator.is_main_process:
            tell_run(config, accelerator, engine, kind, len(training))
        with run.recording(len(training), best) as (tracker, checkpoints):
            tracker.n_unknown = sum(row.unknown for row in training.statistics())
            after_epoch = EpochEnd(
                config, accelerator, tokenizer, model, collate, validation, tracker, best
            )
            train(
                config,
                accelerator,
                engine,
                collate,
                training,
                tracker,
                run.stop.at_once_in(after_epoch),
                checkpoints=checkpoints,
            )
        after_epoch.tell_best()


if __name__ == "__main__":
    main()
