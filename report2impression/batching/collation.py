"""Examples -> one batch: padded for the plain engine, packed for the fast one.

B examples, S source and T target places, N source and M target tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from report2impression.batching.shapes import (
    GRID_MULTIPLE,
    Shape,
    grid_width,
    shape_of,
    smallest,
)
from report2impression.engine.batch import Batch, PackedBatch, PaddedBatch, Places

IGNORE_INDEX = -100  # what torch's cross_entropy ignores by default
# Packed tokens round up to these: few distinct shapes. oneDNN prepares every new shape of a product
# for half a millisecond; CUDA graphs and compiled code want fewer still.
TOKEN_MULTIPLE = {"cpu": 16, "cuda": 128}
# A grid for attention ends where sources are so much shorter than its longest, if that is longer
# than SHORT tokens (a further grid costs about 2 ms a step).
SHRUNK, SHORT = 0.75, 128

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


def collate_padded(examples: Sequence[Example], *, pad_id: int, multiple: int = 1) -> PaddedBatch:
    """Pad to the longest: labels with IGNORE_INDEX.

    `multiple` rounds S and T up (16 on CUDA keeps fused attention aligned). No examples at all give
    a batch of one padding token and no label: a rank without a share of a short step still takes
    part in it.
    """
    if not examples:
        examples = [(np.array([pad_id], dtype=np.int32), np.array([IGNORE_INDEX], dtype=np.int32))]
    input_ids = _pad([source for source, _ in examples], pad_id, multiple)
    labels = _pad([target for _, target in examples], IGNORE_INDEX, multiple)
    attention_mask = _keys([source for source, _ in examples], input_ids.shape[1]).long()
    return PaddedBatch(input_ids, attention_mask, labels)


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
    shapes: Sequence[Shape] = (),
) -> PackedBatch:
    """Tokens without padding, and where they stand in padded grids (for attention alone).

    `multiple` rounds N and M up with tokens that nobody looks at. No examples at all give one
    padding token and no label, as in `collate_padded`. `cut` puts long to short, in grids of like
    lengths. Of `shapes` (falling by cost) the batch takes the cheapest that holds it, if any.
    """
    empty = (np.array([pad_id], dtype=np.int32), np.array([IGNORE_INDEX], dtype=np.int32))
    examples = examples or [empty]
    lengths = [len(source) for source, _ in examples], [len(target) for _, target in examples]
    shape = smallest(shapes, *lengths) or shape_of(*lengths, multiple)
    examples = [*examples, *[empty] * (shape.n_examples - len(examples))]
    segments = _segments(examples) if cut else [examples]
    sources = [[source for source, _ in segment] for segment in segments]
    labels = [[target for _, target in segment] for segment in segments]
    start = np.array([start_id], dtype=np.int32)
    shifted = [[np.concatenate([start, row[:-1]]) for row in rows] for rows in labels]
    # Several grids are as wide as each needs.
    widths = (0, 0) if cut else (shape.source_width, shape.target_width)
    grids = _grids(sources, shape.source_tokens, widths[0])
    return PackedBatch(
        source_ids=_packed(sources, pad_id, shape.source_tokens),
        decoder_ids=_packed(shifted, pad_id, shape.target_tokens),
        labels=_packed(labels, IGNORE_INDEX, shape.target_tokens),
        sources=grids,
        targets=_grids(labels, shape.target_tokens, widths[1]),
        keys=[_keys(rows, grid.slots.shape[1]) for rows, grid in zip(sources, grids, strict=True)],
    )


def _keys(rows: Sequence[NDArray], width: int) -> torch.Tensor:
    """(B, S) bool: which places hold a token."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(width) < lengths[:, None]


def _grids(segments: Sequence[Sequence[NDArray]], n_tokens: int, width: int) -> list[Places]:
    """One for each segment; the last one holds the tokens that round up."""
    n_extra = n_tokens - sum(len(row) for rows in segments for row in rows)
    extras = [0] * (len(segments) - 1) + [n_extra]
    return [_places(rows, extra, width) for rows, extra in zip(segments, extras, strict=True)]


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


def _packed(segments: Sequence[Sequence[NDArray]], value: int, n_tokens: int) -> torch.Tensor:
    joined = np.concatenate([row for rows in segments for row in rows]).astype(np.int64)
    return torch.from_numpy(np.pad(joined, (0, n_tokens - len(joined)), constant_values=value))


def _places(rows: Sequence[NDArray], n_extra: int, width: int) -> Places:
    """Of a grid of at least `width` columns; n_extra tokens that round the number up all stand in
    one place of padding."""
    lengths = np.array([len(row) for row in rows])
    width = max(width, grid_width(lengths, n_extra))
    taken = np.arange(width) < lengths[:, None]
    slots = np.zeros(taken.shape, dtype=np.int64)
    slots[taken] = np.arange(lengths.sum())
    spare = np.flatnonzero(~taken)[:1].repeat(n_extra)
    rows_of_tokens = np.concatenate([np.flatnonzero(taken), spare])
    return Places(torch.from_numpy(rows_of_tokens), torch.from_numpy(slots))
