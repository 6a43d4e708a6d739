"""engine = "hf": transformers' `generate`, the reference, and the way for what the own
decoder does not cover."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from report2impression.batching.collation import collate_padded
from report2impression.batching.tokens import Tokens
from report2impression.decoding.options import DecodingConfig, Output, SearchConfig
from report2impression.decoding.search import until
from report2impression.decoding.special import no_wishes, special_ids
from report2impression.engine.models import T5Model, evaluating
from report2impression.engine.precision import DTYPES


def decode_hf(
    model: T5Model, source: Tokens, order: Sequence[int], config: DecodingConfig
) -> Iterator[Output]:
    """The same by transformers' `generate`, in batches."""
    size = config.batch_size or 32
    dtype = DTYPES[config.precision]
    device = model.device
    cast = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        with evaluating(model), cast():
            rows = _generate_hf(model, [source.row(i) for i in some], config)
        for index, (ids, score) in zip(some, rows, strict=True):
            yield Output(index, ids, score, cut=len(ids) >= config.max_new_tokens)


def _generate_hf(
    model: Any, sources: Sequence[Any], search: SearchConfig
) -> list[tuple[list[int], float | None]]:
    """One padded batch through HF `generate`: ids up to and without end-of-sequence, scores."""
    special, beams = special_ids(model), search.num_beams > 1
    no_labels = [sources[0][:0]] * len(sources)
    examples = list(zip(sources, no_labels, strict=True))
    batch = collate_padded(examples, pad_id=special.pad).to(model.device)
    with no_wishes(model) as base:
        found = base.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=search.max_new_tokens,
            min_new_tokens=search.min_new_tokens or None,
            num_beams=search.num_beams,
            no_repeat_ngram_size=search.no_repeat_ngram or None,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=beams,
            **({"length_penalty": search.length_penalty} if beams else {}),
        )
    # Column 0 is the decoder's start token.
    rows = [until(row, special) for row in found.sequences[:, 1:].tolist()]
    scores = found.sequences_scores.tolist() if beams else [None] * len(rows)
    return list(zip(rows, scores, strict=True))
