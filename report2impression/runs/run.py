"""One process of a training run: its place among the others, its folder, what it tells.

with open_run(config) as run:          # processes, signals, exit status
    ...                                # data and model are read
    run.take_folder(digests)           # a new start, a continuation, or nothing left to do
    with run.recording(n, best) as (tracker, checkpoints):
        ...                            # the loop
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from report2impression.engine.models import count_parameters
from report2impression.engine.precision import resolve_precision
from report2impression.program.errors import ConfigError
from report2impression.program.process import loaded
from report2impression.program.terminal import print_table
from report2impression.runs.checkpoint import Best, Checkpoints
from report2impression.runs.durable import Stored
from report2impression.runs.processes import StopSignals, on_rank_0, peer_errors, start_processes
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run_folder import (
    CHECKPOINTS,
    claim,
    exit_status,
    run_facts,
    storage_errors,
)
from report2impression.runs.trackers import library, open_sink, refuse_remote, tensorboard_writer
from report2impression.runs.tracking import Tracker


@dataclass
class Run:
    """What a process of a run holds; its config is final once it has taken the folder."""

    config: TrainConfig
    accelerator: Accelerator
    stop: StopSignals
    held: ExitStack  # the lock of the folder
    checkpoint: Stored | None = None
    is_finished: bool = False

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def take_folder(self, digests: Mapping[str, str]) -> None:
        """Lock it and look what is there; `digests` are those of data, tokenizer and base.

        Raises what `run_folder.claim` raises, on every rank.
        """
        config, n_ranks = self.config, self.accelerator.num_processes
        precision = resolve_precision(config.precision, self.device)
        self._facts = partial(run_facts, n_ranks=n_ranks, digests=digests, precision=precision)
        facts = self._facts(config)
        found = on_rank_0(self.accelerator, lambda: claim(config, n_ranks, facts, self.held))
        self.config, self.checkpoint = found.config, found.checkpoint
        self.is_finished = found.is_finished

    @contextmanager
    def recording(self, n_examples: int, best: Best) -> Iterator[tuple[Tracker, Checkpoints]]:
        """Inside, figures are collected, states are kept, and a signal stops at the next step."""
        config, folder = self.config, Path(self.config.output_dir)
        is_main = self.accelerator.is_main_process
        tracker = Tracker(
            folder,
            n_steps=config.total_steps(n_examples, self.accelerator.num_processes),
            log_every=config.log_every,
            enabled=is_main,
            tensorboard=config.tensorboard,
            sink=open_sink(config.track_with, folder, enabled=is_main),
            beside_published=config.is_published,
            goes_on=self.checkpoint is not None,
        )
        checkpoints = Checkpoints(
            folder / CHECKPOINTS,
            self.accelerator,
            self.stop,
            self._facts(config),
            best,
            self.checkpoint,
            steps=config.checkpoint_steps,
            minutes=config.checkpoint_minutes,
            keep=config.keep_checkpoints,
        )
        self.checkpoint = None  # its bytes are the checkpoints' to let go
        try:
            with self.stop.deferred(), storage_errors(folder):
                loaded()
                yield tracker, checkpoints
        finally:
            tracker.close()


@contextmanager
def open_run(config: TrainConfig) -> Iterator[Run]:
    """This process among its peers; RUN/exit_status.json is written at the end. UserErrors of all
    kinds."""
    require_extras(config)
    stop = StopSignals()
    with exit_status(Path(config.output_dir)), stop.listening():
        accelerator = start_processes(
            cpu=config.cpu, peer_timeout=config.peer_timeout, check=config.check_processes
        )
        with peer_errors(accelerator), ExitStack() as held:
            yield Run(config, accelerator, stop, held)
        accelerator.end_training()


def require_extras(config: TrainConfig) -> None:
    """Raise ConfigError if an optional package is missing or the data forbid a remote tracker,
    before anything is read or written."""
    if config.tensorboard:
        tensorboard_writer()
    if config.track_with != "none":
        refuse_remote(config.track_with, config.mark(), allowed=config.allow_remote)
        library(config.track_with)
    if config.uses_bitsandbytes and not find_spec("bitsandbytes"):
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
    n_steps = config.total_steps(n_examples, n_ranks)
    rows = [
        ("device, processes", f"{accelerator.device.type} x {n_ranks}"),
        ("engine", kind),
        ("precision", resolve_precision(config.precision, accelerator.device)),
        ("trainable parameters", f"{n_trainable:,} of {n_all:,} ({n_trainable / n_all:.1%})"),
        ("reports per optimizer step", config.global_batch_size(n_ranks)),
        ("optimizer steps", n_steps),
    ]
    print_table(f"{config.objective}, {config.tuning}", ("run", ""), rows)
    if config.warmup_steps >= n_steps:
        print(
            f"warning: warmup_steps {config.warmup_steps:,} of {n_steps:,} optimizer steps: the "
            "learning rate never reaches its peak; lower --warmup_steps"
        )
