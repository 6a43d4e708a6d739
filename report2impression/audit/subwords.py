"""How many tokens each text takes, and what the tokenizer has no token for; without torch.

A T5 tokenizer never joins two words in a token, so a text takes the tokens of its words, and each
different word is looked at once: the 80,000 reports of a corpus have few different words.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from report2impression.program.errors import ConfigError

Encode = Callable[[str], list[int]]


@dataclass
class Subwords:
    """Counts tokens by an encoder of single words; `unknown` is the id of what it does not know."""

    encode: Encode
    unknown: int
    known: dict[str, int] = field(default_factory=dict)  # word -> tokens, negative with an unknown

    def count(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens of each text, (B,), the end of sequence not counted, and whether it holds what is
        unknown."""
        lengths = np.zeros(len(texts), np.int64)
        has_unknown = np.zeros(len(texts), bool)
        for index, text in enumerate(texts):
            counts = [self._tokens(word) for word in text.split()]
            lengths[index] = sum(map(abs, counts))
            has_unknown[index] = any(count < 0 for count in counts)
        return lengths, has_unknown

    def _tokens(self, word: str) -> int:
        count = self.known.get(word)
        if count is None:
            ids = self.encode(word)
            count = self.known[word] = -len(ids) if self.unknown in ids else len(ids)
        return count

    def unknown_characters(self, texts: Iterable[str]) -> list[tuple[str, int]]:
        """Characters without a token, as U+0000, with the number of texts that hold them; the
        commonest first."""
        words = {word for word, count in self.known.items() if count < 0}
        letters = {letter for word in words for letter in word}
        missing = {letter for letter in letters if self.unknown in self.encode(letter)}
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(missing & set(text))
        return [(f"U+{ord(letter):04X}", n) for letter, n in counts.most_common()]


def load(folder: str) -> Subwords:
    """The tokenizer of a base's folder (tokenizer.json or spiece.model). Raises ConfigError."""
    path = Path(folder).expanduser()
    try:
        if (path / "tokenizer.json").exists():
            text = (path / "tokenizer.json").read_text(encoding="utf-8")
            unknown = _unknown_id(text, path)
            return Subwords(_encoder(text, path), unknown)
        if (path / "spiece.model").exists():
            import sentencepiece

            pieces = sentencepiece.SentencePieceProcessor(model_file=str(path / "spiece.model"))
            return Subwords(pieces.encode, pieces.unk_id())
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--tokenizer {folder} cannot be read ({type(error).__name__}); give the folder of a T5"
        ) from None
    raise ConfigError(
        f"--tokenizer {folder} holds neither tokenizer.json nor spiece.model; give the folder of a "
        "T5 base"
    )


def _encoder(text: str, path: Path) -> Encode:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception:  # the library raises this very class
        raise ConfigError(f"--tokenizer {path}: tokenizer.json is broken; give another") from None
    return lambda word: tokenizer.encode(word, add_special_tokens=False).ids


def _unknown_id(text: str, path: Path) -> int:
    content = json.loads(text)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("unk_id"), int):
        raise ConfigError(f"--tokenizer {path}: tokenizer.json is not that of a T5; give another")
    return model["unk_id"]
