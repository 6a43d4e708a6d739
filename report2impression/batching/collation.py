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
# A grid for attention ends where sources are so much shorter than its longest, if that is longer
# than SHORT tokens (a further grid costs about 2 ms a step).
SHRUNK, SHORT = 0.75, 128

Batch = dict[str, torch.Tensor]
Example = tuple[NDArray[np.int32], NDArray[np.int32]]  # source ids (S,), label ids (T,)
Collate = Callable[[Sequence[Example]], Batch]


def collator(*, packed: bool, start_id: int, pad_id: int, device: torch.device) -> Collate:
    """Packed tokens for the fast engine, dynamic padding for the other; sizes round up on CUDA."""
    cuda = device.type == "cuda"
    if packed:
        multiple = TOKEN_MULTIPLE["cuda" if cuda else "cpu"]
        return partial(
            collate_packed, start_id=start_id, pad_id=pad_id, multiple=multiple, cut=not cuda
        )
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
    examples: Sequence[Example],
    *,
    start_id: int,
    pad_id: int,
    multiple: int = 1,
    cut: bool = False,
) -> Batch:
    """Tokens without padding, and where they stand in padded grids (for attention alone).

    source_ids (N,), source_rows (N,) = b * S + s, source_slots (B, S) = the token in each place (0
    in padding), source_keys (B, S) = is it a token; decoder_ids, labels and target_rows (M,),
    target_slots (B, T). `multiple` rounds N and M up with tokens that nobody looks at. No examples
    at all give one padding token and no label, as in `collate_padded`.

    `cut` puts long to short, in grids of like lengths: rows, slots and keys of the second one are
    named `source_rows_1` and so on, and count tokens and places from that grid's first.
    """
    if not examples:
        examples = [(np.array([pad_id], dtype=np.int32), np.array([IGNORE_INDEX], dtype=np.int32))]
    segments = _segments(examples) if cut else [examples]
    examples = [example for segment in segments for example in segment]
    sources, labels = [source for source, _ in examples], [target for _, target in examples]
    start = np.array([start_id], dtype=np.int32)
    shifted = [np.concatenate([start, row[:-1]]) for row in labels]
    packed: dict[str, NDArray] = {
        "source_ids": _packed(sources, pad_id, multiple),
        "decoder_ids": _packed(shifted, pad_id, multiple),
        "labels": _packed(labels, IGNORE_INDEX, multiple),
    }
    for i, segment in enumerate(segments):
        name = f"_{i}" if i else ""
        for side, rows in zip(("source", "target"), zip(*segment, strict=True), strict=True):
            is_last = segment is segments[-1]  # it holds the tokens that round up
            n_all = sum(len(row) for row in (sources if side == "source" else labels))
            packed[f"{side}_rows{name}"], slots = _places(rows, is_last * (-n_all % multiple))
            packed[f"{side}_slots{name}"] = slots
        lengths = np.array([len(source) for source, _ in segment])
        width = packed[f"source_slots{name}"].shape[1]
        packed[f"source_keys{name}"] = np.arange(width) < lengths[:, None]
    return {name: torch.from_numpy(array) for name, array in packed.items()}


def _segments(examples: Sequence[Example]) -> list[list[Example]]:
    """By falling source length, cut where attention over the grid of the longest would be mostly
    padding. Short ones are not worth a cut."""
    segments: list[list[Example]] = []
    for example in sorted(examples, key=lambda pair: -len(pair[0])):
        longest = len(segments[-1][0][0]) if segments else 0
        if not segments or (longest > SHORT and len(example[0]) <= SHRUNK * longest):
            segments.append([])
        segments[-1].append(example)
    return segments


def _packed(rows: Sequence[NDArray], value: int, multiple: int) -> NDArray[np.int64]:
    joined = np.concatenate(rows).astype(np.int64)
    return np.pad(joined, (0, -len(joined) % multiple), constant_values=value)


def _places(rows: Sequence[NDArray], n_extra: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place of each token, token of each place) for a grid of GRID_MULTIPLE columns or more.

    n_extra tokens that round the number up all stand in one place of padding.
    """
    lengths = np.array([len(row) for row in rows])
    width = -(-int(lengths.max()) // GRID_MULTIPLE) * GRID_MULTIPLE
    if n_extra and width * len(rows) == lengths.sum():
        width += GRID_MULTIPLE
    taken = np.arange(width) < lengths[:, None]
    slots = np.zeros(taken.shape, dtype=np.int64)
    slots[taken] = np.arange(lengths.sum())
    spare = np.flatnonzero(~taken)[:1].repeat(n_extra)
    return np.concatenate([np.flatnonzero(taken), spare]), slots
