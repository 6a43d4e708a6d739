"""T5 decoding with caches, on the merged weights of a Hugging Face (+ PEFT) model.

The adapter is merged in fp32 and then cast. Sources are encoded without padding (blocks.py), the
cross-attention keys and values of all layers come from one matrix product, and every decoder step
reads them and its own past from preallocated caches. Rows come and go while others are decoded:

    T5's position bias depends on the distance k - q alone. So all rows write their step's key and
    value into the same column of the cache, whenever they began, and read one bias row; what a row
    must not see (columns before its first) is masked. A finished row's place is free for the next.

P places (one report each), W beams, R = P * W rows, C columns, S source tokens, L layers, H heads,
K head width, D model width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from report2impression.batching.collation import TOKEN_MULTIPLE, collate_packed
from report2impression.batching.shapes import GRID_MULTIPLE
from report2impression.decoding.options import DecodingPrecision
from report2impression.decoding.special import special_ids
from report2impression.decoding.vocabulary import Vocabulary
from report2impression.engine.adapter import Step
from report2impression.engine.attention import Grid, pad
from report2impression.engine.blocks import Block, MergedGroup, Stack
from report2impression.engine.int8 import Int8
from report2impression.engine.models import T5Model, output_scale
from report2impression.engine.ops import Dropout, add_norm
from report2impression.engine.precision import DTYPES
from report2impression.program.errors import ConfigError

# Places whose cross-attention is one product, padded to the longest of them: fewest, most.
SEGMENT = 8, 64
NARROWER = 0.75  # of the width: only then it pays to copy what is kept
WEIGHTS = DTYPES | {"int8": torch.int8}
ENCODED_TOGETHER = 64  # reports; more would only take memory


class Decoder:
    """The weights for decoding in that precision, a copy of its own: the model stays as it is.
    int8: products in 8 bits, all else in fp32, and the vocabulary's best token decided in fp32.

    Raises ConfigError where this machine has no such products."""

    def __init__(self, model: T5Model, precision: DecodingPrecision = "fp32") -> None:
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.special = special_ids(model)
        self.device = base.shared.weight.device
        of_weights = WEIGHTS[precision]
        if precision == "int8" and not (self.device.type == "cpu" and Int8.works()):
            raise ConfigError(
                "precision = int8: this machine's torch has no such products (x86 CPUs have);"
                " take bf16 or fp16, or engine = ctranslate2"
            )
        self.dtype = dtype = torch.float32 if precision == "int8" else of_weights
        with torch.no_grad():
            blocks = [
                [Block(b, of_weights, None) for b in s.block] for s in (base.encoder, base.decoder)
            ]
            self.encoder = Stack(base.encoder, blocks[0], dtype)
            self.decoder = Stack(base.decoder, blocks[1], dtype)
            self.embedding = base.shared.weight.detach().to(dtype)
            weight = base.lm_head.weight.detach().to(dtype)
            self.vocabulary = Vocabulary(weight, screened=self.device.type == "cpu")
            others = [block.layer[1].EncDecAttention for block in base.decoder.block]
            keys_and_values = [layer for other in others for layer in (other.k, other.v)]
            self.cross_kv = MergedGroup(keys_and_values, of_weights)
        self.n_layers, self.n_heads = len(self.decoder.blocks), base.config.num_heads
        self.head_width = base.config.d_kv
        self.scale = output_scale(base.config)
        off = Dropout(0.0, dtype, self.device)
        self._step = Step(off, off, [])

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of all layers, as bytes for one token."""
        return 2 * self.n_layers * self.n_heads * self.head_width * self.dtype.itemsize

    def memory(self, sources: Sequence[NDArray[np.int32]]) -> Iterator[tuple[Tensor, Tensor]]:
        """(n,) sources, the longest first -> cross-attention keys and values (2 L, m, H, S, K) and
        padding (m, S) in fp32, 0 or -inf, of m after m of them. S may be more than `source_width`:
        columns of padding."""
        batch = collate_packed(
            [(source, source[:1]) for source in sources],
            start_id=self.special.start,
            pad_id=self.special.pad,
            multiple=TOKEN_MULTIPLE[self.device.type],
            cut=self.device.type == "cpu",
        ).to(self.device)
        grids = [Grid(*places, self.n_heads) for places in batch.sources]
        paddings = [
            torch.zeros(keys.shape, device=self.device).masked_fill_(~keys, float("-inf"))
            for keys in batch.keys
        ]
        biases = [
            self.encoder.position_bias(x.shape[1]) + x.to(self.dtype)[:, None, None, :]
            for x in paddings
        ]
        embedded = self.embedding[batch.source_ids]
        states = self.encoder(self._step, embedded, grids, [bias.flatten(0, 1) for bias in biases])
        kv = self.cross_kv(self._step, states).split([len(grid.rows) for grid in grids])
        for part, grid, padding in zip(kv, grids, paddings, strict=True):
            padded = pad(part, grid, 2 * self.n_layers)
            yield padded.unflatten(1, (len(padding), self.n_heads)), padding


def source_width(longest: int) -> int:
    """Columns that are kept for sources of at most `longest` tokens."""
    return -(-longest // GRID_MULTIPLE) * GRID_MULTIPLE


def _segments(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(places, columns) of each: places with falling lengths are cut where padding grows."""
    fewest, most = SEGMENT
    segments: list[tuple[int, int]] = []
    for width in map(source_width, lengths):
        n, widest = segments[-1] if segments else (most, 0)
        if n == most or (n >= fewest and width <= NARROWER * widest):
            segments.append((1, width))
        else:
            segments[-1] = n + 1, widest
    return segments


Rows = slice | Tensor  # (n,); neighbours as a slice, which copies nothing


@dataclass
class Segment:
    """Neighbouring places, of like lengths: cross-attention keys and values (2 L, p, H, S, K) and
    padding (p, S)."""

    kv: Tensor
    padding: Tensor

    def put(self, places: Rows, kv: Tensor, padding: Tensor) -> None:
        """n places within the segment, what `Decoder.memory` gave for them."""
        n = min(kv.shape[3], self.kv.shape[3])  # spare columns of padding may fall off
        self.kv[:, places, :, :n] = kv[..., :n, :]
        self.kv[:, places, :, n:] = 0  # masked, but 0 * NaN would be NaN
        self.padding[places] = float("-inf")
        self.padding[places, :n] = padding[:, :n]

    def keep(self, places: Rows) -> None:
        # A slice of some would hold the memory of all; of all, it is as it was.
        self.kv, self.padding = self.kv[:, places].contiguous(), self.padding[places]

    def narrow(self, longest: int) -> None:
        """No source is longer than `longest` tokens any more: forget the rest."""
        width = source_width(longest)
        if width <= NARROWER * self.kv.shape[3]:
            self.kv = self.kv[..., :width, :].contiguous()
            self.padding = self.padding[:, :width].contiguous()


class Cache:
    """Keys and values of P places x W beams: of the source, and of what was written so far."""

    def __init__(self, decoder: Decoder, lengths: Sequence[int], width: int, columns: int) -> None:
        """`lengths`: of the first source of each place, falling; later ones may not be longer."""
        self.decoder, self.width, self.columns = decoder, width, columns
        layers, heads, size = decoder.n_layers, decoder.n_heads, decoder.head_width
        here: dict[str, Any] = {"dtype": decoder.dtype, "device": decoder.device}
        self.segments = []
        for n, longest in _segments(lengths):
            kv = torch.empty(2 * layers, n, heads, longest, size, **here)
            padding = torch.full((n, longest), float("-inf"), device=decoder.device)
            self.segments.append(Segment(kv, padding))
        # Every column that is read was written, for all rows; the untouched rest costs no memory.
        self.own = torch.empty(2 * layers, len(lengths) * width, heads, columns, size, **here)
        self.first = torch.zeros(len(lengths), dtype=torch.long, device=decoder.device)
        self.column = 0  # where the next step writes
        self.oldest = 0  # no row looks before this column
        row = decoder.decoder.position_bias(columns)[0, :, -1]  # distances C - 1 ... 0
        self.bias = row.float()  # (H, C)
        self.same_start = True

    @property
    def places(self) -> int:
        return len(self.first)

    @property
    def full(self) -> bool:
        """No column is left: `forget` before the next step."""
        return self.column == self.columns

    def put(self, places: list[int], sources: Sequence[NDArray[np.int32]]) -> None:
        """New reports into the given places, beginning at the next column."""
        order = sorted(range(len(places)), key=lambda i: -len(sources[i]))
        for start in range(0, len(order), ENCODED_TOGETHER):
            some = order[start : start + ENCODED_TOGETHER]
            left = iter([places[i] for i in some])
            for kv, padding in self.decoder.memory([sources[i] for i in some]):
                here = list(islice(left, len(padding)))
                for segment, rows, inside in self._by_segment(here):
                    segment.put(inside, kv[:, rows], padding[rows])
        self.first[self._indices(places)] = self.column
        self._look_back()

    def keep(self, places: list[int]) -> None:
        """Forget all other places; those that stay move together in their order (rising)."""
        inside = [(segment, where) for segment, _, where in self._by_segment(places)]
        self.segments = [segment for segment, _ in inside]
        for segment, where in inside:
            segment.keep(where)
        kept = self._indices(places)
        rows = kept[:, None] * self.width + torch.arange(self.width, device=kept.device)
        used = self.own[..., : self.column, :]
        own = self.own.new_empty(self.own.shape[0], rows.numel(), *self.own.shape[2:])
        own[..., : self.column, :] = used[:, rows.view(-1)]
        self.own, self.first = own, self.first[kept]
        self._look_back()

    def narrow(self, lengths: Sequence[int]) -> None:
        """The present sources have these lengths: forget what none of a segment needs."""
        start = 0
        for segment in self.segments:
            n = len(segment.padding)
            segment.narrow(max(lengths[start : start + n]))
            start += n

    def _by_segment(self, places: list[int]) -> Iterator[tuple[Segment, Rows, Rows]]:
        """Each segment with the rows of `places` that lie in it, and where in it they lie."""
        start = 0
        for segment in list(self.segments):
            end = start + len(segment.padding)
            rows = [row for row, place in enumerate(places) if start <= place < end]
            if rows:
                yield segment, self._rows(rows), self._rows([places[row] - start for row in rows])
            start = end

    def _rows(self, values: list[int]) -> Rows:
        first, n = values[0], len(values)
        neighbours = values == list(range(first, first + n))
        return slice(first, first + n) if neighbours else self._indices(values)

    def _indices(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.decoder.device)

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from the past of row rows[r] (beams)."""
        past = self.own[..., self.oldest : self.column, :]
        past.copy_(past.index_select(1, rows))

    def forget(self) -> int:
        """Move the columns that some place still needs to the front -> by how many columns."""
        by = self.oldest
        kept = self.own[..., by : self.column, :].clone()
        self.own[..., : kept.shape[-2], :] = kept
        self.first, self.column, self.oldest = self.first - by, self.column - by, 0
        return by

    def release(self, places: list[int]) -> None:
        """Free places need no past."""
        self.first[self._indices(places)] = self.column
        self._look_back()

    def _look_back(self) -> None:
        first = self.first.tolist()  # waits for the device
        self.oldest, self.same_start = min(first), min(first) == max(first)


@torch.no_grad()
def next_hidden(cache: Cache, ids: Tensor) -> Tensor:
    """The tokens (R,) just written -> what the vocabulary is projected on for the next ones (R, D),
    in the compute dtype; fills one column of the cache."""
    decoder, step = cache.decoder, cache.decoder._step
    heads, size, width = decoder.n_heads, decoder.head_width, cache.width
    n_rows, column, oldest = len(ids), cache.column, cache.oldest
    n = column + 1 - oldest
    bias = cache.bias[None, :, None, -n:]  # (1, H, 1, n)
    if not cache.same_start:
        seen = torch.arange(oldest, column + 1, device=ids.device) >= cache.first[:, None]
        hidden = torch.zeros(seen.shape, device=ids.device).masked_fill_(~seen, float("-inf"))
        bias = bias + hidden.repeat_interleave(width, 0)[:, None, None, :]
    bias = bias.to(decoder.dtype)
    sizes = [len(segment.padding) for segment in cache.segments]
    paddings = [s.padding.to(decoder.dtype)[:, None, None, :] for s in cache.segments]

    x, update = decoder.embedding[ids].float(), None
    for i, block in enumerate(decoder.decoder.blocks):
        x, normed = add_norm(x, update, block.norms[0], step.drop)
        q, k, v = block.qkv(step, normed).view(n_rows, 3, heads, 1, size).unbind(1)
        keys, values = cache.own[2 * i], cache.own[2 * i + 1]
        keys[:, :, column : column + 1], values[:, :, column : column + 1] = k, v
        past = slice(oldest, column + 1)
        update = block.o(step, _attend(q, keys[:, :, past], values[:, :, past], bias))
        x, normed = add_norm(x, update, block.norms[1], step.drop)
        # Beams of a report are queries of one attention: its keys are read once for all.
        q = block.cross_q(step, normed).view(-1, width, heads, size).transpose(1, 2)
        parts = zip(q.split(sizes), cache.segments, paddings, strict=True)
        by_segment = [_attend(q, s.kv[2 * i], s.kv[2 * i + 1], padding) for q, s, padding in parts]
        update = block.cross_o(step, torch.cat(by_segment))
        x, normed = add_norm(x, update, block.norms[-1], step.drop)
        update = block.wo(step, block.activated(block.wi(step, normed)))
    cache.column += 1
    hidden = add_norm(x, update, decoder.decoder.final_norm, step.drop)[1]
    return hidden if decoder.scale == 1 else hidden * decoder.scale


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q (P, H, W, K), k and v (P, H, n, K), bias broadcast to (P, H, W, n) -> (P * W, H * K)."""
    n, heads, width, size = q.shape
    q, keys = q.reshape(n * heads, width, size), k.flatten(0, 1)
    if width == 1:  # columns of a longer cache are a third faster so, whole ones a little
        scores = torch.bmm(keys, q.transpose(1, 2))
    else:
        scores = torch.bmm(q, keys.transpose(1, 2))
    scores = scores.view(n, heads, width, -1) + bias
    found = torch.bmm(scores.softmax(-1).flatten(0, 1), v.flatten(0, 1))
    return found.view(n, heads, width, size).transpose(1, 2).reshape(n * width, heads * size)
