"""Findings -> source tokens, written as in training: spelled where the recipe says so, the task's
prefix before them, cut at the same length. Evaluation and use share it, so that a model meets what
it has learned from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from report2impression.batching.signs import Spelling
from report2impression.batching.tokens import Tokens, tokenise
from report2impression.reading.options import DataConfig


class Prompts:
    """How one recipe writes its sources."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
        self.tokenizer, self.prefix, self.longest = tokenizer, data.prefix, data.max_source_tokens
        self.spelling = Spelling(tokenizer) if data.normalise == "ascii" else None

    def spelled(self, text: str) -> str:
        """In signs that the tokenizer knows, if the recipe asks for it."""
        return self.spelling(text) if self.spelling is not None else text

    def tokens(self, findings: Sequence[str]) -> Tokens:
        """Of spelled findings: (S,) ids of each, end-of-sequence included."""
        return tokenise(self.written(findings), self.tokenizer, max_tokens=self.longest)

    def cut(self, findings: Sequence[str], tokens: Tokens) -> NDArray[np.bool_]:
        """(B,): which of these findings lost their end."""
        full = np.flatnonzero(tokens.lengths >= self.longest)
        found = np.zeros(len(findings), dtype=bool)
        written = self.written([findings[i] for i in full.tolist()])
        again = tokenise(written, self.tokenizer, max_tokens=self.longest + 1)
        found[full] = again.lengths > self.longest
        return found

    def written(self, findings: Sequence[str]) -> list[str]:
        """Behind the prefix: the whole text of each source."""
        return [self.prefix + text for text in findings]
