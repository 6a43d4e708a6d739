"""engine = "hf": transformers' `generate`, the reference, and the way for what the own
decoder does not cover."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from report2impression.batching.collation import collate_padded
from report2impression.batching.tokens import Tokens
from report2impression.decoding.options import DecodingConfig, Output, SearchConfig
from report2impression.decoding.search import Result, of_beam, until
from report2impression.decoding.special import Special, no_wishes, special_ids
from report2impression.engine.models import T5Model, evaluating
from report2impression.engine.precision import DTYPES
from report2impression.program.errors import ConfigError
from report2impression.weights.families import check_lengths


def decode_hf(
    model: T5Model,
    source: Tokens,
    order: Sequence[int],
    config: DecodingConfig,
    *,
    scored: bool = False,
) -> Iterator[Output]:
    """The same by transformers' `generate`, in batches. Raises ConfigError if the base has no place
    for so many tokens."""
    check_lengths(model.config, int(source.lengths.max(initial=0)), config.max_new_tokens)
    size = config.batch_size or 32
    if config.precision == "int8":
        raise ConfigError("precision = int8: transformers, which decodes this base, has it not")
    dtype = DTYPES[config.precision]
    device = model.device
    cast = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    for start in range(0, len(order), size):
        some = order[start : start + size]
        with evaluating(model), cast():
            rows = _generate_hf(model, [source.row(i) for i in some], config, scored)
        for index, (ids, score, confidence) in zip(some, rows, strict=True):
            yield Output(index, ids, score, len(ids) >= config.max_new_tokens, confidence)


def _generate_hf(
    model: Any, sources: Sequence[Any], search: SearchConfig, scored: bool
) -> list[Result]:
    """One padded batch through HF `generate`."""
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
            output_logits=scored and not beams,
            **({"length_penalty": search.length_penalty} if beams else {}),
        )
    # Column 0 is the decoder's start token.
    tokens = found.sequences[:, 1:]
    rows = [until(row, special) for row in tokens.tolist()]
    if beams:
        scores = found.sequences_scores.tolist()
        return [Result(r, s, of_beam(r, s, search)) for r, s in zip(rows, scores, strict=True)]
    found_p = _confidences(tokens, found.logits, special) if scored else [None] * len(rows)
    return [Result(ids, None, p) for ids, p in zip(rows, found_p, strict=True)]


def _confidences(tokens: Tensor, logits: Sequence[Tensor], special: Special) -> list[float]:
    """exp(mean log-probability) of tokens (B, T) up to their end, from T logits (B, V)."""
    steps = zip(logits, tokens.unbind(1), strict=True)
    log_p = torch.stack([step.log_softmax(-1).gather(1, t[:, None])[:, 0] for step, t in steps], 1)
    ends = torch.isin(tokens, torch.tensor(special.ends, device=tokens.device))
    counts = ends.long().cumsum(1) - ends.long() == 0  # the end itself does, what follows does not
    return ((log_p.double() * counts).sum(1) / counts.sum(1)).exp().tolist()
