"""Load the tokenizer that lies with a base, checked against the base's config.

Raises ConfigError in one line wherever transformers would make something up, or train with ids that
base and tokenizer understand differently.
"""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, T5Config, T5Tokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from report2impression.program.errors import ConfigError
from report2impression.weights.base_files import (
    MAX_TOKENIZER_JSON,
    Json,
    is_whole,
    read_json,
    shown,
)
from report2impression.weights.opening import cannot_load, look_at, one_line_errors

# By the names that T5's own kind goes by in a tokenizer_config.json; any other class is named.
READ_AS_T5 = ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
LOOKED_INTO = ("tokenizer.json", "config.json")
OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the base. Raises ConfigError if it is missing, unreadable, of
    another kind than T5's, or does not fit the base."""
    path = os.path.expanduser(path)
    is_local = look_at("tokenizer", path)
    where: dict[str, Any] = {"revision": revision, "local_files_only": is_local}
    with one_line_errors("tokenizer", path):
        named = get_tokenizer_config(path, **where).get("tokenizer_class")
        files = {name: cached_file(path, name, **OPTIONAL, **where) for name in LOOKED_INTO}
    read = {name: read_json(Path(f), MAX_TOKENIZER_JSON) for name, f in files.items() if f}
    _refuse_other_kinds(path, named, read.get("tokenizer.json", {}))
    with one_line_errors("tokenizer", path):
        tokenizer = T5Tokenizer.from_pretrained(path, **where)
    # Without files transformers makes up a vocabulary: special tokens and a space.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise cannot_load("tokenizer", path, "neither tokenizer.json nor spiece.model")
    if not tokenizer.is_fast:
        raise ConfigError(f"tokenizer of {path} has no fast form: use a T5 tokenizer")
    settings = read.get("config.json", {})
    if settings.get("model_type") == "t5":  # load_base refuses others by name
        _check_fit(path, tokenizer, settings)
    return tokenizer


def _refuse_other_kinds(path: str, named: object, file: Json) -> None:
    """Raises ConfigError for a byte, BPE or word tokenizer: what their ids mean to T5 is not
    known."""
    model = file.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if named not in (None, *READ_AS_T5):
        kind = named
    if kind not in (None, "Unigram"):
        raise ConfigError(
            f"the tokenizer of {path} is a {shown(kind)}: only T5's own kind (SentencePiece, "
            "Unigram) is read: use a base with such a tokenizer"
        )


def _check_fit(path: str, tokenizer: PreTrainedTokenizerBase, settings: Json) -> None:
    """Raises ConfigError, with both sides, if an id means another thing to base and tokenizer, or
    has no row in the embedding."""
    rows, largest = (
        settings.get("vocab_size", T5Config().vocab_size),
        max(tokenizer.get_vocab().values()),
    )
    if largest >= rows:
        raise ConfigError(
            f"base and tokenizer of {path} do not fit: the tokenizer has ids up to {largest:,}, "
            f"the embedding {rows:,} rows (vocab_size): resize the embedding, or give the right "
            "files"
        )
    for name in ("eos_token_id", "pad_token_id", "unk_token_id"):
        theirs, own = settings.get(name), getattr(tokenizer, name)
        if theirs is not None and own not in (theirs if isinstance(theirs, list) else [theirs]):
            raise ConfigError(
                f"base and tokenizer of {path} do not fit: {name} is {shown(theirs)} in "
                f"config.json and {own} in the tokenizer: mend config.json, or give the right files"
            )
    start = settings.get("decoder_start_token_id")
    if start is not None and not is_whole(start, 0, rows - 1):
        raise ConfigError(
            f"base of {path}: decoder_start_token_id is {shown(start)}, but the embedding has "
            f"{rows:,} rows: mend config.json (T5 starts with the padding)"
        )
