"""The gradient of one optimizer step, summed over its micro-batches and ranks.

`GradientSum` lets DDP add in whatever order is fastest. `OrderedSum` (deterministic = true) adds
micro-batch by micro-batch in the plan's order, so that 1, 2 and 4 processes get the same bits: the
ranks compute one whole micro-batch each, and all of them add up all the rows (one gradient and its
loss: P + 1 values). P trainable values; it pays off for adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from report2impression.batching.plan import Step
from report2impression.engine.batch import Batch
from report2impression.program.errors import ConfigError
from report2impression.program.launcher import is_sharded_launch
from report2impression.runs.sharding import in_parts

CPU_IS_FULL = "can't allocate memory"  # torch has no class of its own for it


class GradientSum:
    """Plain accumulation; where there are several ranks, DDP adds them up."""

    def __init__(self, accelerator: Accelerator, engine: nn.Module) -> None:
        self.accelerator = accelerator
        self.forward = self._wrapped(engine)
        # DDP averages the ranks' gradients: times their number makes it their sum.
        self.factor = accelerator.num_processes
        self.loss = torch.zeros((), device=accelerator.device)

    def _wrapped(self, engine: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(engine)

    def settle(self, batch: Batch) -> None:
        """Let a batch without labels pass: after its first backward DDP orders its buckets anew,
        and from three ranks on their order decides bits. A run that goes on must begin alike."""
        if self.accelerator.num_processes > 2:
            self.forward(batch.to(self.accelerator.device)).backward()
            self.forward.zero_grad(set_to_none=True)

    @contextmanager
    def micro_batch(self, step: Step, number: int) -> Iterator[None]:
        """Around forward and backward of a step's number-th micro-batch."""
        is_last = number == len(step.micro_batches) - 1
        with nullcontext() if is_last else self.accelerator.no_sync(self.forward), _memory(step):
            yield

    def add(self, loss: Tensor, step: Step, number: int) -> None:
        """After the backward; loss is a scalar summed over label tokens."""
        self.loss += loss

    def finish(self, wish: float) -> tuple[Tensor, Tensor]:
        """(loss, wishes), both summed over all ranks; the gradients are complete."""
        both = torch.stack([self.loss, torch.full_like(self.loss, wish)])
        loss, wishes = self.accelerator.reduce(both, "sum")
        self.loss = torch.zeros_like(self.loss)
        return loss, wishes


class ShardedSum(GradientSum):
    """Plain accumulation of a base in parts: torch's FSDP2 averages the ranks' gradients."""

    def _wrapped(self, engine: nn.Module) -> nn.Module:
        return in_parts(engine, self.accelerator)

    def settle(self, batch: Batch) -> None:
        """There are no buckets."""

    @contextmanager
    def micro_batch(self, step: Step, number: int) -> Iterator[None]:
        is_last = number == len(step.micro_batches) - 1
        forward: Any = self.forward
        forward.set_requires_gradient_sync(is_last)
        with _memory(step):
            yield


class OrderedSum(GradientSum):
    """The same sum in the order of the plan, at any number of ranks."""

    def __init__(self, accelerator: Accelerator, engine: nn.Module) -> None:
        super().__init__(accelerator, engine)
        self.factor = 1
        self.weights = [weight for weight in engine.parameters() if weight.requires_grad]
        self.total: Tensor | None = None

    def _wrapped(self, engine: nn.Module) -> nn.Module:
        return engine

    def add(self, loss: Tensor, step: Step, number: int) -> None:
        own = [self._gradient(weight).flatten() for weight in self.weights]
        rows = self.accelerator.gather(torch.cat([*own, loss.reshape(1)])[None])  # (ranks, P + 1)
        for shard, row in zip(step.micro_batches[number], rows, strict=True):
            if len(shard):  # a rank without examples adds nothing, not even the sign of a zero
                self.total = row.clone() if self.total is None else self.total.add_(row)
        for weight in self.weights:
            weight.grad = None

    def _gradient(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if weight.grad is None else weight.grad

    def finish(self, wish: float) -> tuple[Tensor, Tensor]:
        assert self.total is not None, "a step has at least one example"
        *parts, loss = self.total.split([*(w.numel() for w in self.weights), 1])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.grad = part.view_as(weight).clone()
        self.total = None
        return loss.squeeze(), self.accelerator.reduce(torch.full_like(self.loss, wish), "sum")


def gradient_sum(
    accelerator: Accelerator, engine: nn.Module, *, deterministic: bool
) -> GradientSum:
    """On one rank plain accumulation has the plan's order already."""
    if is_sharded_launch():
        return ShardedSum(accelerator, engine)
    ordered = deterministic and accelerator.num_processes > 1
    return (OrderedSum if ordered else GradientSum)(accelerator, engine)


@contextmanager
def _memory(step: Step) -> Iterator[None]:
    """Out of memory becomes a ConfigError that names the batch and what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(step) from error
    except RuntimeError as error:
        if CPU_IS_FULL not in str(error):
            raise
        raise _too_large(step) from error


def _too_large(step: Step) -> ConfigError:
    largest = max(len(shard) for micro_batch in step.micro_batches for shard in micro_batch)
    return ConfigError(
        f"a micro-batch of {largest:,} reports does not fit into memory (its step has "
        f"{len(step.indices):,} reports, {step.n_tokens:,} tokens): halve --micro_batch_size and "
        "double --grad_accum_steps, or lower --data.max_source_tokens"
    )
