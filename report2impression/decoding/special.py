"""What a base says about decoding: the ids it begins, ends and pads with, and nothing else.

transformers' `generate` mixes the base's generation_config.json into every call. Here the settings
of the run count, with every engine (decoding/options.py): what else that file asks for is named
once, and ignored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import GenerationConfig

from report2impression.decoding.options import SearchConfig
from report2impression.engine.models import T5Model

# What changes no output: caches, what is returned, where the file comes from. The start is the one
# that the base is trained with, so only another one is worth a word; the others are taken.
NO_WISH = {"use_cache", "max_cache_len", "disable_compile", "prefill_chunk_size", "low_memory"}
NO_WISH |= {"transformers_version", "return_dict_in_generate", "num_return_sequences"}
NO_WISH |= {"is_assistant", "eos_token_id", "bos_token_id"}
NO_WISH_STARTS = ("_", "output_", "cache_", "compile_", "continuous_")
# Of draws, which there are none of without `do_sample`.
OF_DRAWS = {"temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"}
OF_DRAWS |= {"epsilon_cutoff", "eta_cutoff"}
# Guesses of a second model change the time, not the tokens.
OF_ASSISTANTS = ("num_assistant_", "assistant_", "target_lookbehind", "max_matching_", "speculat")
NEUTRAL = {
    **{"temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "num_beam_groups": 1},
    **{"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "guidance_scale": 1.0},
}


class Special(NamedTuple):
    """Ids of a base."""

    start: int  # what the decoder begins with
    pad: int
    ends: tuple[int, ...]  # each of them ends an output


def special_ids(model: T5Model) -> Special:
    """Ends are those of the generation config, as in transformers; else of the config. The start is
    the one that the base is trained with."""
    base = _base(model)
    config, stated = base.config, base.generation_config
    ends = config.eos_token_id if stated.eos_token_id is None else stated.eos_token_id
    ends = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    return Special(config.decoder_start_token_id, config.pad_token_id, ends)


@contextmanager
def no_wishes(model: T5Model) -> Iterator[Any]:
    """Inside, the base (which is yielded) has a generation config that asks for nothing."""
    base, special = _base(model), special_ids(model)
    before = base.generation_config
    base.generation_config = GenerationConfig(
        decoder_start_token_id=special.start,
        pad_token_id=special.pad,
        eos_token_id=list(special.ends),
    )
    try:
        yield base
    finally:
        base.generation_config = before


def tell_ignored(model: T5Model, search: SearchConfig) -> None:
    """Print, once, what the base's generation config asks for and does not get."""
    names = ignored(model, search)
    if names:
        _tell(", ".join(names))


@cache
def _tell(names: str) -> None:
    print(f"the base's generation config asks for {names}: ignored, the settings of this run count")


def ignored(model: T5Model, search: SearchConfig) -> list[str]:
    """Names of the settings of the base's generation config that would change outputs and do not:
    they are not neutral, and this run's are not the same."""
    base = _base(model)
    known, stated = vars(GenerationConfig()), vars(base.generation_config)
    same = {
        "num_beams": search.num_beams,
        "max_new_tokens": search.max_new_tokens,
        "max_length": search.max_new_tokens + 1,  # counts the start
        "min_new_tokens": search.min_new_tokens,
        "no_repeat_ngram_size": search.no_repeat_ngram,
        "length_penalty": search.length_penalty,
        "decoder_start_token_id": base.config.decoder_start_token_id,
        "pad_token_id": base.config.pad_token_id,
    }
    unset: tuple[object, ...] = (None, False, 0, [], {})
    left_out = NO_WISH if stated.get("do_sample") else NO_WISH | OF_DRAWS
    return [
        name
        for name, value in stated.items()
        if name in known
        and name not in left_out
        and not name.startswith(NO_WISH_STARTS + OF_ASSISTANTS)
        and value not in unset
        and value != same.get(name, NEUTRAL.get(name))
    ]


def _base(model: T5Model) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
