"""Batched decoding of many reports: long ones first, finished ones replaced, the caller's order
restored.

    order (longest source first) -> shares of the ranks -> engine -> outputs as they end

Engines: torch (places.py + cache.py + search.py, the default), hf (transformers' `generate`: the
reference, and the way for models that the other does not cover), ctranslate2 (optional extra).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from report2impression.batching.tokens import Tokens
from report2impression.decoding.cache import Decoder
from report2impression.decoding.hf import decode_hf
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.decoding.places import decode
from report2impression.decoding.special import tell_ignored
from report2impression.engine.models import T5Model, why_not

UNKNOWN = "▁⁇▁"  # as SentencePiece decodes its unknown piece: " ⁇ "


def generate(
    model: T5Model,
    source: Tokens,
    config: DecodingConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rank: int = 0,
    n_ranks: int = 1,
    progress: str | None = None,
) -> list[Output]:
    """Outputs for every source, in the given order, the same list on every rank.

    `progress` names the bar that rank 0 shows; none = no bar. `tokenizer`: ctranslate2 only.
    """
    if rank == 0:
        tell_ignored(model, config)
    groups = list(alike(source, longest_first(source)).values())[rank::n_ranks]
    order = [report for group in groups for report in group]
    bar = tqdm(
        total=len(source.lengths),
        desc=progress,
        unit="report",
        disable=progress is None or rank > 0,
    )
    done: list[Output] = []
    n_tokens = 0
    with bar:
        for output in stream(model, source, order, config, tokenizer=tokenizer):
            done.append(output)
            n_tokens += len(output.ids) * n_ranks
            bar.update(min(n_ranks, bar.total - bar.n))
            elapsed = bar.format_dict["elapsed"]
            if elapsed and bar.n % 16 == 0:
                bar.set_postfix({"tokens/s": f"{n_tokens / elapsed:,.0f}"}, refresh=False)
    if n_ranks > 1:
        done = gather_object(done)
    done.sort(key=lambda output: output.report)
    if [output.report for output in done] != list(range(len(source.lengths))):
        raise RuntimeError("a report was lost or decoded twice while gathering from the ranks")
    return done


def longest_first(source: Tokens) -> list[int]:
    """Indices by falling length, equal lengths in the caller's order."""
    return np.argsort(-source.lengths, kind="stable").tolist()


def alike(source: Tokens, order: Sequence[int]) -> dict[int, list[int]]:
    """The reports in that order, those with the same tokens together under the first of them."""
    firsts: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for report in order:
        first = firsts.setdefault(source.row(report).tobytes(), report)
        groups.setdefault(first, []).append(report)
    return groups


def stream(
    model: T5Model,
    source: Tokens,
    order: Sequence[int],
    config: DecodingConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Output]:
    """Outputs of the sources named in `order`, each as soon as it has ended. Equal reports (a fifth
    of some test sets) are decoded once; with engine = hf, the reference, every one by itself. The
    first output raises ConfigError if the engine cannot do it."""
    return Generator(model, config, tokenizer).stream(source, order)


class Generator:
    """A model made ready for decoding once, at its first output, for any number of calls."""

    def __init__(
        self,
        model: T5Model,
        config: DecodingConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        scored: bool = False,
    ) -> None:
        """`scored`: every output with its confidence."""
        self.model, self.config, self.tokenizer, self.scored = model, config, tokenizer, scored

    def stream(self, source: Tokens, order: Sequence[int]) -> Iterator[Output]:
        """As the function of that name; memory does not grow with the number of reports."""
        if self.config.engine == "hf":
            yield from self._decode(source, order, self.config)
            return
        groups = alike(source, order)
        for output in self._decode(source, list(groups), self.config):
            for report in groups[output.report]:
                yield output._replace(report=report)

    @cached_property
    def _decode(self) -> Callable[[Tokens, Sequence[int], DecodingConfig], Iterator[Output]]:
        model, config = self.model, self.config
        if config.engine == "ctranslate2":
            from report2impression.decoding import ct2

            if self.tokenizer is None:
                raise ValueError("ctranslate2 needs the tokenizer")
            converted = ct2.Converted(model, self.tokenizer, config.precision)
            return partial(converted.decode, scored=self.scored)
        if config.engine == "hf" or why_not(model):
            return partial(decode_hf, model, scored=self.scored)
        return partial(decode, Decoder(model, config.precision), scored=self.scored)


def to_text(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[Sequence[int]]) -> list[str]:
    """Decoded impressions, outer blanks stripped. Special tokens (sentinels too) are dropped, but
    not the unknown one: a sign that vanishes would make 34 mm of 3×4 mm."""
    texts = tokenizer.batch_decode(list(outputs), skip_special_tokens=True)
    for i, ids in enumerate(outputs):
        if tokenizer.unk_token_id in ids:
            texts[i] = _with_unknown(tokenizer, ids)
    return [text.strip() for text in texts]


def _with_unknown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    dropped = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    pieces = tokenizer.convert_ids_to_tokens([i for i in ids if i not in dropped])
    shown = [UNKNOWN if piece == tokenizer.unk_token else piece for piece in pieces]
    return tokenizer.convert_tokens_to_string(shown)
