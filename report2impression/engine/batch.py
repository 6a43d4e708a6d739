"""What an engine is given: one batch of examples, packed (fast.py) or padded (Hugging Face).

B examples, S source and T target places of padded grids, N source and M target tokens, packed.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where packed tokens stand in a padded grid, for attention alone."""

    rows: Tensor  # (N,) b * S + s of each token
    slots: Tensor  # (B, S) the token in each place, 0 in padding


class PackedBatch(NamedTuple):
    """Tokens without padding. Where there are several grids, their tokens follow one another, and
    each counts its tokens and places from its first."""

    source_ids: Tensor  # (N,)
    decoder_ids: Tensor  # (M,) the labels of each example, shifted behind the start token
    labels: Tensor  # (M,)
    sources: list[Places]
    targets: list[Places]
    keys: list[Tensor]  # (B, S) bool of each source grid: is it a token

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "PackedBatch":
        """The same on a device."""
        return _moved(self, device, non_blocking)


class PaddedBatch(NamedTuple):
    """What Hugging Face's forward takes; its names are theirs."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor  # (B, S)
    labels: Tensor  # (B, T), -100 where there is none

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "PaddedBatch":
        """The same on a device."""
        return _moved(self, device, non_blocking)


Batch = PackedBatch | PaddedBatch


def _moved(part: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=non_blocking)
    parts = [_moved(inner, device, non_blocking) for inner in part]
    return parts if isinstance(part, list) else type(part)(*parts)
