"""The state of a training run, stored and restored to the bit (durable.py stores the bytes).

    step-00000120/weights.safetensors     trainable weights: the adapter, or all of them
                  optimizer.safetensors   its tensors, as `exp_avg.<weight>`
                  state.json              position in the plan, counts, scaler, skips, best, log
                  manifest.json           SHA-256 of these, and what the run was made of

There is no random state in it: sample order, dropout and learning rate are pure functions of
(seed, epoch, step, updates), so a position in the plan is all that a resumed run needs. No pickle
is ever written or read. State is read from the device only when a checkpoint is due.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load, save
from torch import Tensor, nn

from report2impression.program import files
from report2impression.program.errors import PreemptedError, ResumeError
from report2impression.runs import durable
from report2impression.runs.durable import Json, Stored
from report2impression.runs.processes import StopSignals, on_rank_0
from report2impression.runs.sharding import is_sharded, part_of, whole
from report2impression.weights.families import set_dropout

# What a rank asks of all the others, added up over the ranks: below STOP somebody wants to save.
SAVE, STOP = 1.0, 1024.0

BASE_SETTINGS = (
    *("dropout_rate", "feed_forward_proj", "layer_norm_epsilon", "num_heads", "pad_token_id"),
    *("relative_attention_max_distance", "decoder_start_token_id", "tie_word_embeddings"),
)
# Of other kinds all settings count, but for those of the place and of the library.
NO_BASE_SETTINGS = {"_name_or_path", "transformers_version", "dtype", "architectures"}


class Stateful(Protocol):
    """Something with a state that JSON can hold."""

    def state(self) -> Json: ...
    def restore(self, state: Json) -> None: ...


class Best(Stateful, Protocol):
    """The best epoch so far."""

    step: int | None


@dataclass
class Progress:
    """Where the run is: steps attempted, in all and in this epoch; updates applied."""

    updates: Tensor  # scalar on the device: a skipped step does not count
    step: int = 0
    epoch: int = 0
    offset: int = 0  # steps done of this epoch's plan

    def advance(self, finite: Tensor) -> None:
        self.updates += finite
        self.step += 1
        self.offset += 1

    def next_epoch(self) -> None:
        self.epoch += 1
        self.offset = 0

    def state(self) -> Json:
        names = ("step", "epoch", "offset")
        return {**{name: getattr(self, name) for name in names}, "updates": int(self.updates)}

    def restore(self, state: Json) -> None:
        self.step, self.epoch, self.offset = state["step"], state["epoch"], state["offset"]
        self.updates.fill_(state["updates"])


@dataclass
class TrainingState:
    """Everything that changes while the loop runs."""

    engine: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    others: dict[str, Stateful] = field(default_factory=dict)

    def weights(self) -> dict[str, nn.Parameter]:
        return {n: weight for n, weight in self.engine.named_parameters() if weight.requires_grad}

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.weights().values())

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Json]:
        """Copies of the weights, the optimizer's tensors, its numbers. Waits for the device; of a
        base in parts all ranks have to ask."""
        numbers: Json = {}
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights().items():
            for key, value in sorted(self.optimizer.state[weight].items()):  # alike on all ranks
                if isinstance(value, Tensor):
                    tensors[f"{key}.{name}"] = _copy(value)
                else:
                    numbers[f"{key}.{name}"] = value
        return {name: _copy(weight) for name, weight in self.weights().items()}, tensors, numbers

    def files(
        self, copies: tuple[dict[str, Tensor], dict[str, Tensor], Json] | None = None
    ) -> dict[str, bytes]:
        """Of these copies, or of what is there now."""
        weights, tensors, numbers = copies or self.tensors()
        parts = {"progress": self.progress, **self.others}
        state = {
            "optimizer": numbers,
            "scaler": self.scaler.state_dict(),
            **{name: part.state() for name, part in parts.items()},
        }
        return {
            "weights.safetensors": save(weights),
            "optimizer.safetensors": save(tensors),
            "state.json": durable.canonical(state),
        }

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Raises ResumeError, before anything has changed, if the weights are not these."""
        stored, weights = load(files["weights.safetensors"]), self.weights()
        for name in sorted(stored.keys() | weights.keys()):
            if name not in stored or name not in weights:
                side = "the model" if name not in weights else "the checkpoint"
                raise ResumeError(f"{name} is not in {side}: give the settings the run began with")
            if stored[name].shape != weights[name].shape:
                shapes = f"{tuple(stored[name].shape)}, in the model {tuple(weights[name].shape)}"
                raise ResumeError(f"{name} has the shape {shapes}: give the run's own settings")
        state = json.loads(files["state.json"])
        for name, part in {"progress": self.progress, **self.others}.items():
            part.restore(state[name])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(part_of(stored[name], weight))
        moments = {**load(files["optimizer.safetensors"]), **state["optimizer"]}
        for full_name, value in moments.items():
            key, _, name = full_name.partition(".")
            weight = weights[name]
            on_device = part_of(value, weight) if isinstance(value, Tensor) else value
            self.optimizer.state[weight][key] = on_device


def _copy(tensor: Tensor) -> Tensor:
    """Of its own storage on the CPU: safetensors takes no shared ones."""
    return whole(tensor.detach()).to("cpu", copy=True).contiguous()


class NoCheckpoints:
    """What the loop calls, for runs that keep nothing."""

    def restore(self, state: TrainingState) -> None:
        """Continue where the newest checkpoint stands, if there is one."""

    def wish(self) -> float:
        """What this rank wants to happen after this step; the loop adds it up over the ranks."""
        return 0.0

    def after_step(self, state: TrainingState, wish: Tensor, *, epoch_ends: bool) -> None:
        """Save if it is time to, with the sum of all wishes; stop if one was to stop."""


@dataclass
class Checkpoints(NoCheckpoints):
    """Saves by steps, by minutes, at the end of every epoch (before validation), and on a signal.

    All ranks call it alike; only rank 0 has a clock and writes.
    """

    folder: Path
    accelerator: Accelerator
    stop: StopSignals
    facts: Json
    best: Best
    found: Stored | None = None
    steps: int = 0
    minutes: float = 0.0
    keep: int = 2
    clock: Callable[[], float] = time.monotonic
    _saved_step: int = -1
    _pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def restore(self, state: TrainingState) -> None:
        state.others["best"] = self.best
        if self.found:
            state.restore(self.found.files)
            self._saved_step = state.progress.step
            self.found = None  # its bytes are needed no more

    def wish(self) -> float:
        if self.stop.asked:
            return STOP
        minutes = (self.clock() - self._saved_at) / 60
        is_due = self.accelerator.is_main_process and 0 < self.minutes <= minutes
        return SAVE if is_due else 0.0

    def after_step(self, state: TrainingState, wish: Tensor, *, epoch_ends: bool) -> None:
        step = state.progress.step
        wanted = self._arrived(wish, wait=epoch_ends)
        by_steps = self.steps and step % self.steps == 0
        if (epoch_ends or by_steps or wanted) and step != self._saved_step:
            self._save(state)
        if wanted >= STOP:
            raise PreemptedError(
                f"stopped by {self.stop.name} after step {step:,}, all of it kept in "
                f"{self.folder}: run the same command again to go on"
            )

    def _arrived(self, wish: Tensor, *, wait: bool) -> float:
        """The sum of wishes, on CUDA that of the step before: nobody waits for the device, and all
        ranks learn of it at the same step."""
        if not wish.is_cuda:
            return float(wish)
        before, arrived = self._pending, torch.cuda.Event()
        self._pending = wish.to("cpu", non_blocking=True), arrived
        arrived.record()
        waiting = [before] if before else []
        if wait:
            waiting, self._pending = [*waiting, self._pending], None
        for _, event in waiting:
            event.synchronize()
        return sum(float(copy) for copy, _ in waiting)

    def _save(self, state: TrainingState) -> None:
        copies = state.tensors() if state.is_sharded else None
        on_rank_0(self.accelerator, lambda: self._write(state, copies))
        self._saved_step = state.progress.step
        self._saved_at = self.clock()

    def _write(
        self,
        state: TrainingState,
        copies: tuple[dict[str, Tensor], dict[str, Tensor], Json] | None,
    ) -> None:
        try:
            parts = state.files(copies)  # the tracker's log reaches the disk here
            files.make_folder(self.folder)
        except OSError as error:
            raise files.storage_error(error, self.folder) from None
        durable.commit(self.folder, state.progress.step, parts, self.facts)
        durable.prune(self.folder, keep=self.keep, also=self.best.step)


def base_digest(model: Any) -> str:
    """SHA-256 of all weights that came with the base, and of the settings that decide a forward."""
    total = hashlib.sha256()
    config = copy.deepcopy(model.config)
    set_dropout(config, model.own_dropout)  # the run's is among its settings
    settings = config.to_dict()
    names = BASE_SETTINGS if config.model_type == "t5" else sorted({*settings} - NO_BASE_SETTINGS)
    total.update(durable.canonical({name: settings.get(name) for name in names}))
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            total.update(memoryview(weight.data.cpu().contiguous().view(torch.uint8).numpy()))
    return total.hexdigest()
