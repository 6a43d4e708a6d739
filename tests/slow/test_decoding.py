"""Decoding equals transformers' on every test report of real data: a small base and T5-small's own
shape, greedy and beams. Skipped where the data are absent."""

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from report2impression.batching.tokens import Tokens, tokenise
from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.engine.models import T5Model
from report2impression.reading.options import SourceConfig
from report2impression.reading.sources import read_pairs
from report2impression.weights.loading import load_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import ROOT, make_talkative

DATA = ROOT.parent / "shared" / "data" / "iu_xray"
BASE = ROOT / "assets" / "tiny_base"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the Open-i reports are not beside the checkout"),
]


@pytest.fixture(scope="module")
def source() -> Tokens:
    pairs = read_pairs(SourceConfig(path=str(DATA)), "test").pairs
    prompts = ["extract: " + pair.prompt for pair in pairs]
    return tokenise(prompts, load_tokenizer(str(BASE)), max_tokens=512)


def both(model: T5Model, source: Tokens, **call: int) -> tuple[list[Output], list[Output]]:
    ours = generate(model, source, DecodingConfig(**call))  # type: ignore[arg-type]
    theirs = generate(model, source, DecodingConfig(engine="hf", **call))  # type: ignore[arg-type]
    return ours, theirs


def test_the_small_base_writes_the_same_tokens(source: Tokens) -> None:
    model = load_base(ModelConfig(path=str(BASE)))
    ours, theirs = both(model, source, max_new_tokens=48)
    assert [output.ids for output in ours] == [output.ids for output in theirs]
    assert len({tuple(output.ids) for output in ours}) > 100  # these reports are mostly normal


def test_t5_small_s_shape_writes_the_same_tokens(source: Tokens) -> None:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(BASE))
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=32128, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    ).eval()
    make_talkative(model, tokenizer.get_vocab(), 1)
    ours, theirs = both(model, source, max_new_tokens=16)
    assert [output.ids for output in ours] == [output.ids for output in theirs]
    assert len({tuple(output.ids) for output in ours}) > 100


@pytest.mark.parametrize("num_beams", [4, 6])
def test_beams_are_the_same_or_as_good(source: Tokens, num_beams: int) -> None:
    model = load_base(ModelConfig(path=str(BASE)))
    some = source.take(range(0, len(source.lengths), 2))
    ours, theirs = both(model, some, num_beams=num_beams, max_new_tokens=32)
    same = [o.ids == t.ids for o, t in zip(ours, theirs, strict=True)]
    assert np.mean(same) >= 0.99
    for o, t in zip(ours, theirs, strict=True):
        assert o.score == pytest.approx(t.score, rel=1e-4)
