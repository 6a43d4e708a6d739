"""The T5 family by name, and what a base says about decoding: fast engine and decoder equal
transformers."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig
from report2impression.decoding.special import ignored
from tests.test_fast_t5 import adapted_t5, assert_equal_to_hf
from tests.test_generate import assert_same, both, reports

Settings = dict[str, Any]
SIZES: Settings = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
IDS: Settings = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
N_TOKENS = 120

# What a base's config may say.
SHAPES: dict[str, Settings] = {
    "T5 1.0": {},
    "T5 1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated relu": {"feed_forward_proj": "gated-relu", "tie_word_embeddings": False},
    "gated relu, tied": {"feed_forward_proj": "gated-relu"},
    "gated silu": {"feed_forward_proj": "gated-silu"},
    "gelu": {"feed_forward_proj": "gelu"},
    "own head": {"tie_word_embeddings": False},
    "shallow decoder": {"num_decoder_layers": 1},
    "deep encoder": {"num_layers": 4, "num_decoder_layers": 2},
    "one head": {"num_heads": 1},
    "three narrow heads": {"num_heads": 3, "d_kv": 5},
    "wide heads": {"num_heads": 2, "d_kv": 24},
    "few buckets": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    "many buckets": {"relative_attention_num_buckets": 64},
    "large epsilon": {"layer_norm_epsilon": 1e-3},
    "start is a word": {"decoder_start_token_id": 7},
    "pad is not 0": {"pad_token_id": 3, "decoder_start_token_id": 3},
    "end is another": {"eos_token_id": 9},
    "ends in the config": {"eos_token_id": [1, 9, 11]},
}
# What its generation config may ask for; `ends` are taken, the rest is ignored and named.
WISHES: dict[str, Settings] = {
    "a list of ends": {"eos_token_id": [1, 9]},
    "one other end": {"eos_token_id": 9},
    "the other start": {"decoder_start_token_id": 5},
    "beams": {"num_beams": 4},
    "a forced start": {"forced_bos_token_id": 8},
    "suppressed tokens": {"suppress_tokens": [5, 6]},
    "a penalty": {"repetition_penalty": 1.5},
    "a least length": {"min_length": 8},
    "draws": {"do_sample": True, "temperature": 0.7},
}


def base_of(**settings: Any) -> T5ForConditionalGeneration:
    """Random weights whose outputs depend on the source."""
    torch.manual_seed(1)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=N_TOKENS, **{**SIZES, **IDS, **settings})
    )
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.q.weight *= 20
    return model.eval()


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_a_base_decodes_as_transformers_does(name: str, num_beams: int) -> None:
    model = base_of(**SHAPES[name])
    source = reports(8, longest=30, vocabulary=N_TOKENS)
    assert_same(*both(model, source, max_new_tokens=9, num_beams=num_beams))


@pytest.mark.parametrize("feed_forward", ["relu", "gated-relu", "gated-gelu", "gated-silu"])
def test_a_base_trains_as_transformers_does(feed_forward: str) -> None:
    assert_equal_to_hf(adapted_t5(gated=True, feed_forward=feed_forward), [(9, 15), (4, 20)])


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", WISHES)
def test_what_a_base_asks_for_changes_no_output_but_its_ends(name: str, num_beams: int) -> None:
    model, wish = base_of(), WISHES[name]
    model.generation_config = GenerationConfig(**{**IDS, **wish})
    source = reports(8, longest=30, vocabulary=N_TOKENS)
    config = DecodingConfig(max_new_tokens=9, num_beams=num_beams)
    ours, theirs = both(model, source, max_new_tokens=9, num_beams=num_beams)
    assert_same(ours, theirs)
    ends = wish.get("eos_token_id", 1)
    plain = base_of()
    plain.generation_config = GenerationConfig(**IDS | {"eos_token_id": ends})
    assert [o.ids for o in ours] == [o.ids for o in generate(plain, source, config)]
    wished = set() if config.num_beams == wish.get("num_beams") else set(wish) - {"eos_token_id"}
    assert set(ignored(model, config)) == wished
    for output in ours:  # no end and nothing after it is left in a text
        assert not set(output.ids) & set(ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("ends", [9, [1, 9], [9, 11, 13]])
def test_ends_are_those_of_transformers_own_generate(ends: Any) -> None:
    model = base_of(eos_token_id=ends)
    model.generation_config = GenerationConfig(**IDS | {"eos_token_id": ends})
    source = reports(8, longest=30, vocabulary=N_TOKENS)
    every = set(ends if isinstance(ends, list) else [ends])
    for row, output in enumerate(generate(model, source, DecodingConfig(max_new_tokens=20))):
        ids = torch.from_numpy(source.row(row))[None].long()
        theirs = model.generate(ids, max_new_tokens=20, do_sample=False)[0, 1:].tolist()
        ended = next((i for i, token in enumerate(theirs) if token in every), len(theirs))
        assert output.ids == theirs[:ended]
