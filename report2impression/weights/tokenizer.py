"""Load the tokenizer that lies with a base, checked against the base's config.

Raises ConfigError in one line wherever transformers would make something up, or train with ids that
base and tokenizer understand differently.
"""

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
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
from report2impression.weights.families import LIKE_T5, check_family
from report2impression.weights.opening import cannot_load, look_at, one_line_errors

# By the names that T5's own kind goes by in a tokenizer_config.json; any other class is named.
READ_AS_T5 = ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
LOOKED_INTO = ("tokenizer.json", "config.json")
OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the base. Raises ConfigError if it is missing, unreadable, of a
    kind that this base was not trained with, or does not fit the base."""
    path = os.path.expanduser(path)
    is_local = look_at("tokenizer", path)
    where: dict[str, Any] = {"revision": revision, "local_files_only": is_local}
    with one_line_errors("tokenizer", path):
        named = get_tokenizer_config(path, **where).get("tokenizer_class")
        files = {name: cached_file(path, name, **OPTIONAL, **where) for name in LOOKED_INTO}
    read = {name: read_json(Path(f), MAX_TOKENIZER_JSON) for name, f in files.items() if f}
    settings = read.get("config.json", {})
    family = settings.get("model_type", "t5")  # without a base beside it, it is for a T5
    check_family("model", path, family)
    kind: Any = T5Tokenizer if family in LIKE_T5 else AutoTokenizer
    if family in LIKE_T5 and named == "ByT5Tokenizer":
        kind = ByT5Tokenizer
    elif family in LIKE_T5:
        _refuse_other_kinds(path, named, read.get("tokenizer.json", {}))
    with one_line_errors("tokenizer", path):
        tokenizer = kind.from_pretrained(path, trust_remote_code=False, **where)
    # Without files transformers makes up a vocabulary: special tokens and a space.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise cannot_load("tokenizer", path, "neither tokenizer.json nor spiece.model")
    if kind is ByT5Tokenizer:
        tokenizer.backend_tokenizer = _of_bytes(tokenizer)
    elif not tokenizer.is_fast:
        raise ConfigError(f"tokenizer of {path} has no fast form (tokenizer.json): fetch one")
    if settings:
        _check_fit(path, tokenizer, settings)
    return tokenizer


def _of_bytes(tokenizer: ByT5Tokenizer) -> Tokenizer:
    """The same bytes behind the fast interface, which ByT5's own has not."""
    vocabulary = {sign: byte + tokenizer.offset for byte, sign in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    backend.post_processor = processors.TemplateProcessing(f"$A {end[0]}", None, [end])
    return backend


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
    family = settings["model_type"]
    settings = {**settings.get("decoder", {}), **settings}  # of those with two configs in one
    rows = settings.get("vocab_size", AutoConfig.for_model(family).vocab_size)
    vocabulary = tokenizer.get_vocab()
    if family not in LIKE_T5:  # Gemma's has names of pictures' tokens, which no text becomes
        special = set(tokenizer.all_special_tokens)
        vocabulary = {token: i for token, i in vocabulary.items() if token not in special}
    largest = max(vocabulary.values())
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
