"""Fine-tune T5 with LoRA on findings -> impression: the loop, in sight.

    accelerate launch train_loop.py                                      the published recipe
    accelerate launch train_loop.py --config recipes/X.toml --data.path DIR --output_dir RUN

An optimizer step is a fixed set of examples (plan.py), cut into micro-batches and over ranks. Its
loss is the cross-entropy summed over all label tokens divided by their number in the whole step, so
that cutting it differently changes nothing but speed. Accelerate owns processes, devices and DDP,
and nothing else. The same command again goes on where a run was stopped (checkpoint.py).
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from allocator import keep_freed_memory
from checkpoint import (
    Checkpoints,
    NoCheckpoints,
    Progress,
    Stateful,
    TrainingState,
    base_digest,
    on_rank_0,
)
from collation import Collate, collator
from config import parse
from data import PlannedDataset, batches, build_dataset, tell_skipped
from dry_run import dry_run
from epoch_end import BestSoFar, EpochEnd
from errors import ConfigError, NumericsError, exits_cleanly
from fast_t5 import FastEngine, why_not
from gradients import gradient_sum
from model import PaddedEngine, T5Model, attach_lora, count_parameters, load_base, load_tokenizer
from numerics import (
    DTYPES,
    SkipGuard,
    apply_update,
    autocast,
    build_optimizer,
    learning_rate,
    mix_seed,
    resolve_precision,
)
from plan import Step
from quiet import quieten_libraries
from recipe import TrainConfig
from run_folder import (
    CHECKPOINTS,
    claim,
    digest,
    exit_status,
    run_facts,
    storage_errors,
)
from sources import stream_pairs
from stopping import StopSignals, peer_errors
from token_store import survey
from tokens import tokenizer_digest
from trackers import library, open_sink, refuse_remote
from tracking import Tracker, print_table, tensorboard_writer

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

    for epoch in range(progress.epoch, config.epochs):
        examples = dataset.for_epoch(epoch)
        steps = config.plan(examples, epoch, n_ranks)
        left = steps[progress.offset :]
        loader = iter(rank_batches(examples, left, rank, collate, device))
        forward.train()
        for step in left:
            for number in range(len(step.micro_batches)):
                batch = {name: t.to(device, non_blocking=True) for name, t in next(loader).items()}
                torch.manual_seed(mix_seed(config.seed, progress.step, number * n_ranks + rank))
                with gradients.micro_batch(step, number):
                    with autocast(device, precision):
                        loss = forward(**batch)  # summed over the label tokens
                    scaler.scale(loss * (gradients.factor / step.n_label_tokens)).backward()
                gradients.add(loss.detach(), step, number)
            step_loss, wish = gradients.finish(checkpoints.wish())

            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(weights, config.max_grad_norm or float("inf"))
            finite = torch.isfinite(norm) & torch.isfinite(step_loss)
            rate.copy_(schedule(progress.updates))
            apply_update(optimizer, scaler, finite)
            optimizer.zero_grad(set_to_none=True)
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


def rank_batches(
    dataset: PlannedDataset,
    steps: Iterable[Step],
    rank: int,
    collate: Collate,
    device: torch.device,
) -> DataLoader:
    """This rank's micro-batches of the given steps, collated and (for CUDA) pinned."""
    shards = (micro_batch[rank] for step in steps for micro_batch in step.micro_batches)
    return batches(dataset, shards, collate, pin_memory=device.type == "cuda")


def read_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> tuple[PlannedDataset, PlannedDataset, str]:
    """(training, validation, digest of both). Rank 0 looks through the source; then one process
    tokenises, and all of them map the same files."""
    streams = {n: partial(stream_pairs, config.data, n) for n in ("train", "validation")}
    found = on_rank_0(accelerator, lambda: [survey(n, stream) for n, stream in streams.items()])
    training, validation = (
        build_dataset(
            split,
            streams[split.split],
            tokenizer,
            config.data,
            objective=config.objective,
            continued=config.continued,
            seed=config.seed,
            keep_impressions=split.split == "validation" and config.generate_n > 0,
        )
        for split in found
    )
    if accelerator.is_main_process:
        rows = training.statistics() + validation.statistics()
        print_table("Reports read, lengths in tokens", rows[0]._fields, rows)
        for split in found:
            tell_skipped(split.split, split.n_rows, split.first_skipped, split.n_skipped)
    return training, validation, digest(text for split in found for text in split[:2])


def build_model(config: TrainConfig, device: torch.device) -> T5Model:
    """The base as the recipe tunes it, on the device: with a fresh adapter, or all of it
    trainable."""
    torch.manual_seed(config.seed)  # decides the adapter's start
    # On a CPU fused attention falls back to slower code as soon as dropout is on.
    base = load_base(
        config.model,
        attention="eager" if device.type == "cpu" else "sdpa",
        quantization=config.base_quantization,
        device=device,
    )
    if config.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model = attach_lora(base, config.lora) if config.tuning == "lora" else base
    return model.to(device)


def build_engine(
    config: TrainConfig, model: T5Model, device: torch.device
) -> tuple[nn.Module, Collate, str]:
    """(the forward, the collation it takes, what it is and why): the fast engine wherever it covers
    the model."""
    reason = "asked for" if config.engine == "hf" else why_not(model)
    if reason is None:
        dtype = DTYPES[resolve_precision(config.precision, device)]
        engine: nn.Module = FastEngine(model, dtype)
    else:
        engine = PaddedEngine(model)
    if config.compile:
        engine.compile(dynamic=True)
    collate = collator(
        packed=reason is None,
        start_id=model.config.decoder_start_token_id,
        pad_id=model.config.pad_token_id,
        device=device,
    )
    return engine, collate, "fast" if reason is None else f"hf ({reason})"


def require_extras(config: TrainConfig) -> None:
    """Raise ConfigError if an optional package is missing or the data forbid a remote tracker,
    before anything is read or written."""
    if config.tensorboard:
        tensorboard_writer()
    if config.track_with != "none":
        refuse_remote(config.track_with, config.mark(), allowed=config.allow_remote)
        library(config.track_with)
    wanted = config.optimizer == "adamw8bit" or config.base_quantization != "none"
    if wanted and not find_spec("bitsandbytes"):
        raise ConfigError(
            "adamw8bit and base_quantization need bitsandbytes: pip install -c constraints.txt "
            '".[bnb]"'
        )


def tell_run(
    config: TrainConfig, accelerator: Accelerator, engine: nn.Module, kind: str, n_examples: int
) -> None:
    """What is about to run, in one table."""
    n_ranks = accelerator.num_processes
    n_trainable, n_all = count_parameters(engine)
    rows = [
        ("device, processes", f"{accelerator.device.type} x {n_ranks}"),
        ("engine", kind),
        ("precision", resolve_precision(config.precision, accelerator.device)),
        ("trainable parameters", f"{n_trainable:,} of {n_all:,} ({n_trainable / n_all:.1%})"),
        ("reports per optimizer step", config.global_batch_size(n_ranks)),
        ("optimizer steps", config.total_steps(n_examples, n_ranks)),
    ]
    print_table(f"{config.objective}, {config.tuning}", ("run", ""), rows)
    n_steps = config.total_steps(n_examples, n_ranks)
    if config.warmup_steps >= n_steps:
        print(
            f"warning: warmup_steps {config.warmup_steps:,} of {n_steps:,} optimizer steps: the "
            "learning rate never reaches its peak; lower --warmup_steps"
        )


def start_processes(config: TrainConfig) -> Accelerator:
    """This process among its peers; AMP, accumulation and schedule are the loop's own."""
    # "no" also keeps a launcher's own precision out.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=config.peer_timeout))
    accelerator = Accelerator(cpu=config.cpu, mixed_precision="no", kwargs_handlers=[ddp, group])
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    # cuDNN attention of torch 2.13 can give NaN gradients with a mask (pytorch#196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    config.check_processes(accelerator.num_processes)
    return accelerator


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    quieten_libraries()
    config = parse(TrainConfig, argv, description=(__doc__ or "").partition("\n")[0])
    if config.dry_run:
        return dry_run(config.data, ["train", "validation"])
    require_extras(config)
    stop = StopSignals()
    with exit_status(Path(config.output_dir)), stop.listening():
        accelerator = start_processes(config)
        with peer_errors(accelerator), ExitStack() as held:
            run(config, accelerator, stop, held)
        accelerator.end_training()


def run(config: TrainConfig, accelerator: Accelerator, stop: StopSignals, held: ExitStack) -> None:
    """One process of one training run; `held` keeps the run folder's lock."""
    n_ranks = accelerator.num_processes
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    model = build_model(config, accelerator.device)
    training, validation, data = read_data(config, tokenizer, accelerator)
    digests = {"tokenizer": tokenizer_digest(tokenizer), "data": data, "base": base_digest(model)}
    precision = resolve_precision(config.precision, accelerator.device)
    engine, collate, kind = build_engine(config, model, accelerator.device)

    facts = partial(run_facts, n_ranks=n_ranks, digests=digests, precision=precision)
    found = on_rank_0(accelerator, lambda: claim(config, n_ranks, facts(config), held))
    if found.is_finished:
        return
    config, folder = found.config, Path(config.output_dir)
    if accelerator.is_main_process:
        tell_run(config, accelerator, engine, kind, len(training))
    tracker = Tracker(
        folder,
        n_steps=config.total_steps(len(training), n_ranks),
        log_every=config.log_every,
        enabled=accelerator.is_main_process,
        tensorboard=config.tensorboard,
        sink=open_sink(config.track_with, folder, enabled=accelerator.is_main_process),
        beside_published=config.objective == "extract" and config.tuning == "lora",
        goes_on=found.checkpoint is not None,
    )
    best = BestSoFar(config.patience)
    after_epoch = EpochEnd(
        config, accelerator, tokenizer, model, collate, validation, tracker, best
    )
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        accelerator,
        stop,
        facts(config),
        best,
        found.checkpoint,
        steps=config.checkpoint_steps,
        minutes=config.checkpoint_minutes,
        keep=config.keep_checkpoints,
    )
    try:
        with stop.deferred(), storage_errors(folder):
            train(
                config,
                accelerator,
                engine,
                collate,
                training,
                tracker,
                stop.at_once_in(after_epoch),
                checkpoints=checkpoints,
            )
    finally:
        tracker.close()
    if not best.epoch:
        raise NumericsError("no validation loss was finite: no weights kept; lower --learning_rate")
    if accelerator.is_main_process:
        print(f"best epoch by {config.best_by}: {best.epoch}, kept in {after_epoch.folder}")


if __name__ == "__main__":
    main()
