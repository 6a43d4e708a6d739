"""Signs that a tokenizer does not know: counted, named by their code points, or spelled in ASCII.

An unknown sign becomes one token without a text of its own, so `3×4 mm` would be learned and
written as `34 mm`. Outputs show it as SentencePiece does (decoding.generate.to_text); `Spelling` is
data.normalise = "ascii", the same in training, evaluation and use.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from report2impression.program.errors import DataError
from report2impression.reading.pairs import BadRow, Pair

MOST_UNKNOWN = 0.05  # of a side's tokens: text of another language or script than the tokenizer's
LOOKED_AT = 10_000  # texts among which unknown signs are named
NAMED = 6  # of them, the commonest first

# Sign -> how to write it, the first that the tokenizer knows whole.
SPELLED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("×✕✖⨯", ("x",)),
    **dict.fromkeys("−‐‑‒–—―﹣－", ("-",)),
    **dict.fromkeys("“”„‟«»″", ('"', "''")),
    **dict.fromkeys("‘’‚‛′`´", ("'",)),
    **dict.fromkeys("•‣▪●◦", ("-",)),
    **dict.fromkeys("≈∼", ("~", " about ")),
    **dict.fromkeys("µμ", ("u",)),
    "≥": (">=", " at least "),
    "≤": ("<=", " at most "),
    "±": ("+/-",),
    "÷": ("/",),
    "⁄": ("/",),
    "·": ("-",),
    "…": ("...",),
    "≠": ("!=", " not equal to "),
    "→": ("->", " to "),
    "←": ("<-", " from "),
    "↑": (" up ",),
    "↓": (" down ",),
    "α": ("alpha",),
    "β": ("beta",),
    "γ": ("gamma",),
    "δ": ("delta",),
    "™": ("",),
    "®": ("",),
    "©": ("",),
}
# The same, but only where the sign itself is unknown.
IF_UNKNOWN: dict[str, tuple[str, ...]] = {
    "<": (" less than ",),
    ">": (" more than ",),
    "~": (" about ",),
    "°": (" degrees ",),
    "^": ("**",),
    "{": ("(",),
    "}": (")",),
    "\\": ("/",),
}
HALVES = "½⅓⅔¼¾⅛⅜⅝⅞"
FRACTION = re.compile(rf"(\d)(?=[{HALVES}])")  # 1½ is 1 1/2, not 11/2
POWERS = "⁰¹²³⁴-⁹"  # a range of signs
POWER = re.compile(f"(?<=[0-9])([{POWERS}]+)")  # 10³ is not 103
DECIMAL = re.compile(r"(?<=\d)·(?=\d)")
# Many a tokenizer's normaliser makes digits of these: 10³ would be read as 103, and 1½ as 11/2.
MERGED = re.compile(f"(?<=[0-9])[{POWERS}₀-₉{HALVES}]")
NO_SIGN = "\ue000"  # of the private use area: no tokenizer knows it


def kept_apart(text: str) -> str:
    """The text with an unknown sign wherever one would else become a digit of the number before."""
    return text if text.isascii() else MERGED.sub(NO_SIGN, text)


def merges_digits(backend: Any) -> bool:
    """Whether the tokenizer's normaliser makes digits of raised ones. One of bytes does not."""
    plain, raised = (backend.encode(text, add_special_tokens=False) for text in ("12", "1²"))
    return plain.ids == raised.ids


class Signs:
    """Which signs a tokenizer knows; one without an unknown token knows all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self._unknown_id = tokenizer.unk_token_id
        self._merges_digits = merges_digits(tokenizer.backend_tokenizer)
        self._known: dict[str, bool] = {}

    def known(self, text: str) -> bool:
        """Every sign of it."""
        return all(map(self._is_known, text))

    def unknown(self, texts: Iterable[str]) -> Counter[str]:
        """Code points ("U+00D7") of unknown signs, each as often as it stands there."""
        found = Counter[str]()
        for text in texts:
            found.update(sign for sign in text if not self._is_known(sign))
            if self._merges_digits:
                found.update(sign for sign in MERGED.findall(text) if self._is_known(sign))
        return Counter({f"U+{ord(sign):04X}": n for sign, n in found.items()})

    def _is_known(self, sign: str) -> bool:
        if sign not in self._known:
            ids = self._encode(sign, add_special_tokens=False).ids
            self._known[sign] = self._unknown_id is None or self._unknown_id not in ids
        return self._known[sign]


class Spelling(dict[int, str]):
    """Text -> the same text in signs that the tokenizer knows; what has no spelling stays."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._signs = Signs(tokenizer)

    def __call__(self, text: str) -> str:
        if text.isascii() and self._signs.known(text):
            return text
        text = POWER.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[1]), text)
        text = DECIMAL.sub(".", FRACTION.sub(r"\1 ", text))
        return re.sub(" {2,}", " ", text.translate(self)).strip(" ")

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        self[code] = found = next(filter(self._signs.known, self._choices(sign)), sign)
        return found

    def _choices(self, sign: str) -> Iterator[str]:
        yield from SPELLED.get(sign, ())
        if sign in HALVES:
            yield unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
        if not self._signs.known(sign):
            yield from IF_UNKNOWN.get(sign, ())
            letters = unicodedata.normalize("NFKD", sign)
            yield "".join(part for part in letters if not unicodedata.combining(part))

    def pairs(self, stream: Callable[[], Iterable[Pair | BadRow]]) -> Iterator[Pair | BadRow]:
        """The rows of a stream, the texts of their pairs spelled."""
        for row in stream():
            yield self.pair(row) if isinstance(row, Pair) else row

    def pair(self, pair: Pair) -> Pair:
        return replace(pair, prompt=self(pair.prompt), impression=self(pair.impression))


def named(signs: Counter[str]) -> str:
    """The commonest, for a message: code points and counts, no text."""
    told = [f"{point} x {n:,}" for point, n in signs.most_common(NAMED)]
    return ", ".join([*told, "..."] if len(signs) > NAMED else told)


def refuse_unknown(what: str, n_unknown: int, n_tokens: int, signs: str, *, stop: bool) -> None:
    """Raises DataError if `stop` and there is one, or if they are too many."""
    if n_unknown and (stop or n_unknown > MOST_UNKNOWN * n_tokens):
        raise DataError(
            f"{what}: {n_unknown:,} of {n_tokens:,} tokens are unknown to the tokenizer ({signs}), "
            "and would be lost: spell them with --data.normalise ascii, use a base whose tokenizer "
            "knows them, or accept the loss with --data.normalise keep --data.allow_unknown"
        )
