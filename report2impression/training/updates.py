"""Precision, learning-rate schedule, and what happens when a step is not finite.

Nothing here waits for the device: the count of applied updates, the learning rate and the finite
flag are device tensors, and the guard reads a flag on the host only when its copy has arrived (one
step late on CUDA).
"""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter

from report2impression.program.errors import NumericsError
from report2impression.runs.recipe import OptimizerName


def learning_rate(updates: Tensor, *, peak: float, n_warmup: int, n_total: int) -> Tensor:
    """Rate of the next update, given how many were applied: linear 0 -> peak in n_warmup, then -> 0
    at n_total.

    A pure function on the device: a skipped step leaves `updates`, and so the rate, where they
    were.
    """
    rising = updates / max(n_warmup, 1)
    falling = (n_total - updates) / max(n_total - n_warmup, 1)
    factor = torch.where(updates < n_warmup, rising, falling)
    return peak * factor.clamp(0.0, 1.0)


def mix_seed(seed: int, step: int, shard: int) -> int:
    """Dropout seed of one micro-batch on one rank: SplitMix64 over the three (Steele et al.
    2014)."""
    state = 0
    for part in (seed, step, shard):
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def build_optimizer(
    name: OptimizerName, weights: list[Parameter], rate: Tensor, *, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer whose learning rate is the tensor `rate`, read at every step.

    Adafactor (Shazeer and Stern 2018) is what T5 was pre-trained with: the step of a weight is
    `rate` times the weight's own root mean square. T5 needs that, as its weights begin at scales
    that lie a hundredfold apart.
    """
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=weight_decay, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(weights, lr=rate, weight_decay=weight_decay)
    import bitsandbytes  # an extra, and slow to load

    return bitsandbytes.optim.AdamW8bit(weights, lr=rate, weight_decay=weight_decay)


def apply_update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, finite: Tensor
) -> None:
    """Step and update the scale; a step that is not finite leaves weights and optimizer state
    alone.

    Fused AdamW takes the flag on the device; the others know none. `scaler.step` is not used: it
    looks at gradients only, and a loss may overflow while they stay finite. `scaler.unscale_`,
    called before, has undone the scale and noted for `scaler.update` whether the gradients
    overflowed.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
    else:
        _step_on_the_host(optimizer, finite)
    scaler.update()


def _step_on_the_host(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """A step of an optimizer that wants flag and rate as plain numbers: read together, the only
    wait for them in the step. A rate left as a tensor would be read once for every weight."""
    group = optimizer.param_groups[0]
    rate = group["lr"]
    is_finite, group["lr"] = torch.stack([finite.to(rate.dtype), rate]).tolist()
    try:
        if is_finite:
            optimizer.step()
    finally:
        group["lr"] = rate


@dataclass
class SkipGuard:
    """Counts skipped steps; raises NumericsError at the K-th in a row, naming step and example
    ids."""

    max_in_a_row: int
    total: int = 0
    in_a_row: int = 0
    _pending: deque[tuple[int, list[str], Tensor, torch.cuda.Event | None]] = field(
        default_factory=deque
    )

    def observe(self, step: int, ids: list[str], finite: Tensor) -> None:
        """Take this step's flag; judge those that are on the host (all of them unless on CUDA)."""
        flag, arrived = finite, None
        if finite.is_cuda:
            flag = finite.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append((step, ids, flag, arrived))
        while len(self._pending) > (1 if arrived else 0):
            self._judge(*self._pending.popleft())

    def finish(self) -> None:
        """Judge what is still on its way (waits for the device)."""
        while self._pending:
            self._judge(*self._pending.popleft())

    def state(self) -> dict[str, int]:
        """Waits for the device."""
        self.finish()
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def _judge(
        self, step: int, ids: list[str], flag: Tensor, arrived: torch.cuda.Event | None
    ) -> None:
        if arrived:
            arrived.synchronize()  # the copy of an earlier step: done long ago
        if bool(flag):
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_in_a_row:
            raise NumericsError(
                f"loss or gradient not finite in {self.in_a_row} steps in a row, the last one step "
                f"{step} with examples {', '.join(ids)}: look at these, lower --learning_rate, "
                "or train with --precision bf16 or fp32"
            )
