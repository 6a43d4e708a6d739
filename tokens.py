"""Texts -> token ids in one flat array, computed once and cached on disk.

The cache is keyed by content: the texts, the tokenizer, the limit. Token ids are report text in
another spelling, so folder and files are readable by their owner only.

B texts, N tokens of all of them.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from errors import ConfigError

CACHE_FORMAT = "2"  # raise when the meaning of a cached file changes


class Tokens(NamedTuple):
    """Texts as one array: ids int32 (N,), offsets int64 (B + 1,), and how many were cut."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    n_truncated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Sequence[int]) -> "Tokens":
        """The texts at the given indices, in that order (what was cut among them is not known)."""
        rows = [self.row(i) for i in indices]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return Tokens(np.concatenate(rows), offsets, 0)


def tokenise(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    add_eos: bool = True,
) -> Tokens:
    """Ids of every text, cut to max_tokens (end-of-sequence included and always kept).

    No text can hold a special token: a literal "</s>" in a report is four signs like others.
    """
    pieces: list[NDArray[np.int32]] = []
    room, n_truncated = max_tokens - int(add_eos), 0
    spelled = _special_tokens_spelled(tokenizer)
    for chunk in _chunks(list(texts), 1000):
        for ids in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            if not spelled.keys().isdisjoint(ids):
                ids = [part for i in ids for part in spelled.get(i, [i])]
            n_truncated += len(ids) > room
            pieces.append(np.array(ids[:room] + [tokenizer.eos_token_id] * add_eos, dtype=np.int32))
    lengths = [len(piece) for piece in pieces]
    return Tokens(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]), n_truncated)


def _special_tokens_spelled(tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """Id of each special token but <unk> -> ids of its letters as text.

    The tokenizer's own `split_special_tokens` does not help: the pieces of a T5 vocabulary hold the
    special tokens, too. A blank after the first letter keeps them from being found.
    """
    names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {tokenizer.unk_token}
    ordered = sorted(names)
    texts = [f"{name[0]} {name[1:]}" for name in ordered]
    spelled = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return dict(zip(tokenizer.convert_tokens_to_ids(ordered), spelled, strict=True))


def _chunks(texts: list[str], size: int) -> Iterable[list[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def tokenise_cached(
    texts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    max_tokens: int,
    add_eos: bool = True,
) -> Tokens:
    """As `tokenise`, but done once per content. Raises ConfigError if the folder cannot be used."""
    key = hashlib.sha256()
    for part in (CACHE_FORMAT, str(max_tokens), str(add_eos), tokenizer_digest(tokenizer), *texts):
        data = part.encode("utf-8", "surrogatepass")
        key.update(len(data).to_bytes(8, "little") + data)
    file = Path(folder).expanduser() / f"{key.hexdigest()}.safetensors"
    stored = _read(file)
    if stored is None:
        stored = tokenise(texts, tokenizer, max_tokens=max_tokens, add_eos=add_eos)
        _write(stored, file)
    return stored


def _read(file: Path) -> Tokens | None:
    """What the cache holds; None if that is nothing or damaged."""
    try:
        with safe_open(file, framework="np") as stored:
            arrays = {name: stored.get_tensor(name) for name in Tokens._fields}
    except (OSError, SafetensorError):
        return None
    return Tokens(arrays["ids"], arrays["offsets"], int(arrays["n_truncated"][0]))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that decides how a text becomes ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _write(tokens: Tokens, file: Path) -> None:
    """Folder 0700, file 0600 under any umask, moved there when whole; a failure leaves nothing."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, suffix=".partial") as private:
            whole = Path(private) / file.name
            save_file({**tokens._asdict(), "n_truncated": np.array([tokens.n_truncated])}, whole)
            whole.chmod(0o600)
            whole.replace(file)
    except (OSError, SafetensorError) as error:  # the latter when the disk is full
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"cannot write the token cache in {file.parent}: {reason} (--data.cache_dir)"
        ) from None
