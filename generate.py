"""Batched decoding: sort by length, cut into batches, share them over the ranks, restore the
caller's order.

B reports in a batch, S source tokens, G generated tokens.
"""

from collections.abc import Sequence

from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from collation import collate_padded
from model import T5Model, evaluating
from plan import plan_evaluation
from tokens import Tokens


def generate(
    model: T5Model,
    source: Tokens,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    rank: int = 0,
    n_ranks: int = 1,
    progress: str | None = None,
) -> list[list[int]]:
    """Greedy outputs for every source, in the given order, the same list on every rank.

    Ids come without special tokens. `progress` names the bar that rank 0 shows; none = no bar.
    """
    lengths = source.lengths
    batches = plan_evaluation(lengths, lengths, batch_size=batch_size)[rank::n_ranks]
    bar = tqdm(
        total=len(lengths), desc=progress, unit="report", disable=progress is None or rank > 0
    )
    done: list[tuple[int, list[int]]] = []
    with evaluating(model), bar:
        for batch in batches:
            rows = _decode(model, [source.row(i) for i in batch], max_new_tokens)
            done.extend(zip(batch.tolist(), rows, strict=True))
            bar.update(min(len(batch) * n_ranks, len(lengths) - bar.n))
    everywhere = dict(gather_object(done) if n_ranks > 1 else done)
    if sorted(everywhere) != list(range(len(lengths))):
        raise RuntimeError("a report was lost or decoded twice while gathering from the ranks")
    return [everywhere[i] for i in range(len(lengths))]


def _decode(model: T5Model, sources: Sequence[NDArray], max_new_tokens: int) -> list[list[int]]:
    """One padded batch through HF `generate`: rows of ids up to and without end-of-sequence."""
    config = model.config
    no_labels = [sources[0][:0]] * len(sources)
    batch = collate_padded(list(zip(sources, no_labels, strict=True)), pad_id=config.pad_token_id)
    outputs = model.generate(
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        do_sample=False,
    )
    # Column 0 is the decoder's start token.
    return [
        _until(row, config.eos_token_id, config.pad_token_id) for row in outputs[:, 1:].tolist()
    ]


def _until(row: list[int], eos_id: int, pad_id: int) -> list[int]:
    end = row.index(eos_id) if eos_id in row else len(row)
    return [token for token in row[:end] if token != pad_id]


def to_text(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Decoded impressions, special tokens (sentinels too) dropped, outer blanks stripped."""
    texts = tokenizer.batch_decode(list(outputs), skip_special_tokens=True)
    return [text.strip() for text in texts]
