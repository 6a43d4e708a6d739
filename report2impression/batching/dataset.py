"""What a data set of tokens is to the plan and to the loop, and its batches."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from report2impression.batching.collation import Collate, Example
from report2impression.batching.plan import Planned
from report2impression.batching.tokens import Tokens


class LengthStatistics(NamedTuple):
    """One row of the table printed before training; lengths in tokens."""

    split: str
    side: str
    examples: int
    mean: float
    p95: int
    longest: int
    truncated: int
    unknown: int  # tokens


class PlannedDataset(Planned, Protocol):
    """What the loop needs: lengths for the plan, examples by index, statistics to print."""

    @property
    def ids(self) -> Sequence[str]: ...
    def for_epoch(self, epoch: int) -> "PlannedDataset": ...
    def __getitem__(self, index: int) -> Example: ...
    def statistics(self) -> list[LengthStatistics]: ...


@runtime_checkable
class WithReferences(Protocol):
    """One whose sources can be decoded and compared with what was written (generate_n)."""

    source: Tokens
    impressions: Sequence[str]


def batches(
    dataset: PlannedDataset,
    indices: Iterable[NDArray[np.int64]],
    collate: Collate,
    *,
    pin_memory: bool = False,
) -> DataLoader:
    """The given batches of the dataset, in the given order, in this process (tokenised data
    needs no workers)."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        # One list at a time: an epoch of 10 million would be 400 MB of Python integers.
        batch_sampler=(batch.tolist() for batch in indices),
        collate_fn=collate,
        pin_memory=pin_memory,
    )
