"""Examples -> one batch: padded for the plain engine, packed for the fast one.

B examples, S source and T target places, N source and M target tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

IGNORE_INDEX = -100  # what torch's cross_entropy ignores by default
GRID_MULTIPLE = 16  # places: whole vectors on a CPU, aligned fused attention on CUDA
# Packed tokens round up to these: few distinct shapes. oneDNN prepares every new shape of a product
# for half a millisecond; CUDA graphs and compiled code want fewer still.
TOKEN_MULTIPLE = {"cpu": 16, "cuda": 128}

Batch = dict[str, torch.Tensor]
Example = tuple[NDArray[np.int32], NDArray[np.int32]]  # source ids (S,), label ids (T,)
Collate = Callable[[Sequence[Example]], Batch]


def collator(*, packed: bool, start_id: int, pad_id: int, device: torch.device) -> Collate:
    """Packed tokens for the fast engine, dynamic padding for the other; sizes round up on CUDA."""
    cuda = device.type == "cuda"
    if packed:
        multiple = TOKEN_MULTIPLE["cuda" if cuda else "cpu"]
        return partial(collate_packed, start_id=start_id, pad_id=pad_id, multiple=multiple)
    return partial(collate_padded, pad_id=pad_id, multiple=GRID_MULTIPLE if cuda else 1)


def collate_padded(examples: Sequence[Example], *, pad_id: int, multiple: int = 1) -> Batch:
    """Pad to the longest: input_ids (B, S), attention_mask (B, S), labels (B, T) with IGNORE_INDEX.

    `multiple` rounds S and T up (16 on CUDA keeps fused attention aligned). No examples at all give
    a batch of one padding token and no label: a rank without a share of a short step still takes
    part in it.
    """
    if not examples:
        examples = [(np.array([pad_id], dtype=np.int32), np.array([IGNORE_INDEX], dtype=np.int32))]
    input_ids = _pad([source for source, _ in examples], pad_id, multiple)
    labels = _pad([target for _, target in examples], IGNORE_INDEX, multiple)
    lengths = torch.tensor([len(source) for source, _ in examples])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _pad(rows: Sequence[NDArray[np.int32]], value: int, multiple: int) -> torch.Tensor:
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for filled, row in zip(padded, rows, strict=True):
        filled[: len(row)] = row
    return torch.from_numpy(padded)


def collate_packed(
    examples: Sequence[Example], *, start_id: int, pad_id: int, multiple: int = 1
) -> Batch:
    """Tokens without padding, and where they stand in padded grids (for attention alone).

    source_ids (N,), source_rows (N,) = b * S + s, source_slots (B, S) = the token in each place (0
    in padding), source_keys (B, S) = is it a token; decoder_ids, labels and target_rows (M,),
    target_slots (B, T). `multiple` rounds N and M up with tokens that nobody looks at. No examples
    at all give one padding token and no label, as in `collate_padded`.
    """
    if not examples:
        examples = [(np.array([pad_id], dtype=np.int32), np.array([IGNORE_INDEX], dtype=np.int32))]
    sources, labels = [source for source, _ in examples], [target for _, target in examples]
    start = np.array([start_id], dtype=np.int32)
    shifted = [np.concatenate([start, row[:-1]]) for row in labels]
    source_rows, source_slots = _places(sources, multiple)
    target_rows, target_slots = _places(labels, multiple)
    lengths = np.array([len(row) for row in sources])
    keys = np.arange(source_slots.shape[1]) < lengths[:, None]
    packed = {
        "source_ids": _packed(sources, pad_id, multiple),
        "source_rows": source_rows,
        "source_slots": source_slots,
        "source_keys": keys,
        "decoder_ids": _packed(shifted, pad_id, multiple),
        "labels": _packed(labels, IGNORE_INDEX, multiple),
        "target_rows": target_rows,
        "target_slots": target_slots,
    }
    return {name: torch.from_numpy(array) for name, array in packed.items()}


def _packed(rows: Sequence[NDArray], value: int, multiple: int) -> NDArray[np.int64]:
    joined = np.concatenate(rows).astype(np.int64)
    return np.pad(joined, (0, -len(joined) % multiple), constant_values=value)


def _places(rows: Sequence[NDArray], multiple: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place of each token, token of each place) for a grid of GRID_MULTIPLE columns or more.

    Tokens that round the number up all stand in one place of padding.
    """
    lengths = np.array([len(row) for row in rows])
    n_extra = -int(lengths.sum()) % multiple
    width = -(-int(lengths.max()) // GRID_MULTIPLE) * GRID_MULTIPLE
    if n_extra and width * len(rows) == lengths.sum():
        width += GRID_MULTIPLE
    taken = np.arange(width) < lengths[:, None]
    slots = np.zeros(taken.shape, dtype=np.int64)
    slots[taken] = np.arange(lengths.sum())
    spare = np.flatnonzero(~taken)[:1].repeat(n_extra)
    return np.concatenate([np.flatnonzero(taken), spare]), slots
