"""Floating-point operations of one T5 + LoRA training step, counted from its shape.

A multiply-add is 2. The backward of a frozen linear is one product (its input's gradient), that of
a LoRA matrix two. Embedding look-ups, norms, activations and dropout are left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import T5Config

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class StepFlops:
    """Multiply-adds per token and per pair of tokens of one model."""

    per_source: float
    per_target: float
    per_memory: float  # cross-attention keys and values, once per source token
    per_label: float  # vocabulary
    per_score: float  # one query-key pair of one stack

    @classmethod
    def of(cls, config: T5Config, r: int) -> "StepFlops":
        """For an adapter of rank r on all linear layers, frozen base."""
        inner, d, ff = config.num_heads * config.d_kv, config.d_model, config.d_ff
        n_in = 2 if config.is_gated_act else 1

        def linears(*shapes: tuple[int, int]) -> float:
            # forward and input gradient; LoRA: forward, input gradient and weight gradient
            return sum(2 * a * b + 3 * r * (a + b) for a, b in shapes)

        attention = linears(*[(d, inner)] * 3, (inner, d))
        dense = linears(*[(d, ff)] * n_in, (ff, d))
        cross_query = linears((d, inner), (inner, d))
        layers = config.num_layers, config.num_decoder_layers
        first = 3 * d * (inner + r)  # the embedding is frozen: its gradient is never formed
        return cls(
            per_source=layers[0] * (attention + dense) - first,
            per_target=layers[1] * (attention + cross_query + dense) - first,
            per_memory=layers[1] * linears((d, inner), (d, inner)),
            per_label=2 * config.vocab_size * d,
            per_score=6 * inner,  # scores and mix: forward 2, backward 4
        )

    def step(
        self,
        source: IntArray,
        target: IntArray,
        *,
        n_layers: tuple[int, int],
        grid: tuple[int, int] | None = None,
        linear_grid: tuple[int, int] | None = None,
    ) -> float:
        """FLOPs of one batch of the given lengths in tokens.

        `grid` = the (S, T) that attention is padded to, `linear_grid` the same for linears and
        vocabulary; none = no padding.
        """
        n = len(source)
        s, t = source.astype(float), target.astype(float)
        rows_s, rows_t = (s, t) if linear_grid is None else (np.full(n, x) for x in linear_grid)
        cells_s, cells_t = (s, t) if grid is None else (np.full(n, float(x)) for x in grid)
        linear = (self.per_source + self.per_memory) * rows_s.sum()
        linear += (self.per_target + self.per_label) * rows_t.sum()
        scores = n_layers[0] * cells_s**2 + n_layers[1] * (cells_t**2 + cells_t * cells_s)
        return 2 * float(linear + self.per_score * scores.sum())
