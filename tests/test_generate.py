"""Decoding: the tokens of transformers' `generate`, whatever the batch, the order, the rank."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from model import attach_lora
from report2impression.batching.tokens import Tokens
from report2impression.decoding import cache, hf, places
from report2impression.decoding import generate as generation
from report2impression.decoding.cache import Segment
from report2impression.decoding.generate import generate, longest_first, stream
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.decoding.search import Result
from report2impression.decoding.vocabulary import BLOCKS, Vocabulary, first_largest, largest
from report2impression.engine.models import T5Model
from report2impression.program.errors import ConfigError
from report2impression.weights.loading import (
    load_base,
    merged,
)
from report2impression.weights.options import LoraSettings, ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import Tiny

Call = dict[str, Any]


def reports(n: int, seed: int = 0, longest: int = 70, vocabulary: int = 300) -> Tokens:
    """n sources of very different lengths, each with end-of-sequence (1)."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, longest, n)
    rows = [np.append(draw.integers(5, vocabulary, k - 1), 1).astype(np.int32) for k in lengths]
    return Tokens(np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]), 0)


@pytest.fixture(scope="module")
def talkative(tiny: Tiny) -> T5ForConditionalGeneration:
    return load_base(ModelConfig(path=str(tiny.talkative)))


def both(model: T5Model, source: Tokens, **call: Any) -> tuple[list[Output], list[Output]]:
    config = DecodingConfig(**call)
    ours = generate(model, source, config)
    return ours, generate(model, source, replace(config, engine="hf", batch_size=0))


def assert_same(ours: list[Output], theirs: list[Output]) -> None:
    assert [o.ids for o in ours] == [t.ids for t in theirs]
    assert [o.cut for o in ours] == [t.cut for t in theirs]
    for o, t in zip(ours, theirs, strict=True):
        assert (o.score is None) == (t.score is None)
        if o.score is not None:
            assert o.score == pytest.approx(t.score, rel=1e-5, abs=1e-5)


SETTINGS = [
    {},
    {"min_new_tokens": 12},
    {"min_new_tokens": 24, "max_new_tokens": 24},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 1},
    {"num_beams": 4},
    {"num_beams": 6, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": -0.5},
    {"num_beams": 4, "no_repeat_ngram": 3, "length_penalty": 0.6, "min_new_tokens": 5},
    {"num_beams": 2, "max_new_tokens": 1},
]


@pytest.mark.parametrize("call", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [5, 0])
def test_the_same_tokens_as_transformers(
    talkative: T5ForConditionalGeneration, call: Call, batch_size: int
) -> None:
    ours, theirs = both(
        talkative, reports(22), **{"max_new_tokens": 24, "batch_size": batch_size, **call}
    )
    assert_same(ours, theirs)
    if call == {}:
        lengths = [len(output.ids) for output in ours]
        assert len(set(lengths)) > 5, "the rows must end at different steps for this to mean much"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_places_are_refilled_and_columns_moved(
    talkative: T5ForConditionalGeneration, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SPARE_COLUMNS", 2)
    call: Call = {"max_new_tokens": 9, "num_beams": num_beams}
    source = reports(60, seed=3)
    ours, theirs = both(talkative, source, batch_size=7, **call)
    assert_same(ours, theirs)


@pytest.mark.parametrize("kept", [slice(0, 2), torch.tensor([0, 3])])
def test_what_is_forgotten_takes_no_memory(kept: slice | torch.Tensor) -> None:
    segment = Segment(torch.rand(4, 5, 2, 8, 3), torch.rand(5, 8))
    due = segment.kv[:, kept].clone()
    segment.keep(kept)
    assert torch.equal(segment.kv, due)
    assert segment.kv.untyped_storage().nbytes() == segment.kv.nbytes


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    n=st.integers(1, 25),
    batch_size=st.integers(1, 12),
    num_beams=st.sampled_from([1, 1, 2]),
    max_new_tokens=st.integers(1, 20),
    every=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_batch_size_and_order_change_nothing(
    talkative: T5ForConditionalGeneration,
    n: int,
    batch_size: int,
    num_beams: int,
    max_new_tokens: int,
    every: int,
    seed: int,
) -> None:
    source = reports(n, seed)
    call: Call = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    one_by_one = generate(talkative, source, DecodingConfig(batch_size=1, **call))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(places.CHECK_EVERY, "cpu", every)
        config = DecodingConfig(batch_size=batch_size, **call)
        order = np.random.default_rng(seed).permutation(n)
        found = sorted(stream(talkative, source, order.tolist(), config), key=lambda o: o.report)
    assert [o.ids for o in found] == [o.ids for o in one_by_one]
    assert [o.report for o in found] == list(range(n))


def test_an_adapter_is_decoded_as_if_merged(tiny: Tiny) -> None:
    base = load_base(ModelConfig(path=str(tiny.talkative)))
    model = attach_lora(base, LoraSettings(r=4, alpha=16.0))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    source, config = reports(20), DecodingConfig(max_new_tokens=12)
    unmerged = generate(model, source, config)
    plain = generate(load_base(ModelConfig(path=str(tiny.talkative))), source, config)
    assert unmerged != plain
    whole = merged(model)
    assert generate(whole, source, config) == unmerged
    assert_same(unmerged, generate(whole, source, replace(config, engine="hf")))


@pytest.mark.parametrize(
    "changes",
    [
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"num_decoder_layers": 1},
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    ],
    ids=str,
)
def test_other_members_of_the_family(changes: Call) -> None:
    torch.manual_seed(1)
    sizes: Call = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 3, "num_layers": 2}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    model = T5ForConditionalGeneration(T5Config(vocab_size=120, **sizes, **special, **changes))
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.q.weight *= 20
    for num_beams in (1, 4):
        assert_same(
            *both(model.eval(), reports(20, vocabulary=120), max_new_tokens=15, num_beams=num_beams)
        )


def test_what_the_decoder_does_not_cover_goes_the_other_way(tiny: Tiny) -> None:
    base = load_base(ModelConfig(path=str(tiny.talkative)))
    base.encoder.block[0].layer[0].SelfAttention.q.bias = torch.nn.Parameter(torch.zeros(32))
    assert generation.why_not(base) is not None
    assert len(generate(base, reports(3), DecodingConfig(max_new_tokens=3))) == 3


def test_half_precision_mostly_agrees(talkative: T5ForConditionalGeneration) -> None:
    source, config = reports(40), DecodingConfig(max_new_tokens=12)
    exact = generate(talkative, source, config)
    half = generate(talkative, source, replace(config, precision="bf16"))
    assert np.mean([a.ids == b.ids for a, b in zip(exact, half, strict=True)]) > 0.5


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_equal_reports_are_decoded_once(
    talkative: T5ForConditionalGeneration, n_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, config, again = reports(7), DecodingConfig(max_new_tokens=8), [3, 0, 3, 6, 1, 2, 3, 4, 5]
    alone = generate(talkative, some, config)
    encoded: list[int] = []
    memory = cache.Decoder.memory

    def counted(self: Any, sources: Any) -> Any:
        encoded.append(len(sources))
        return memory(self, sources)

    monkeypatch.setattr(cache.Decoder, "memory", counted)
    found: list[Output] = []

    def gather(done: list[Output]) -> list[Output]:
        found.extend(done)
        return list(found)

    monkeypatch.setattr(generation, "gather_object", gather)
    for rank in range(n_ranks):
        last = rank == n_ranks - 1
        with nullcontext() if last else pytest.raises(RuntimeError, match="lost"):
            done = generate(talkative, some.take(again), config, rank=rank, n_ranks=n_ranks)
    assert [output.ids for output in done] == [alone[report].ids for report in again]
    assert sum(encoded) == 7


def test_the_reference_decodes_every_report_by_itself(
    talkative: T5ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def rows(_: Any, sources: Any, *__: Any) -> Any:
        sizes.append(len(sources))
        return [Result([5], None, None) for _ in sources]

    monkeypatch.setattr(hf, "_generate_hf", rows)
    generate(talkative, reports(3).take([0, 1, 0, 2, 0]), DecodingConfig(engine="hf"))
    assert sizes == [5]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_caches_fit_into_the_memory_they_are_given(
    talkative: T5ForConditionalGeneration,
    num_beams: int,
    precision: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And are not much smaller, where more reports wait."""
    sizes: list[tuple[int, int]] = []

    class Measured(cache.Cache):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            tensors = [self.own, *(segment.kv for segment in self.segments)]
            sizes.append((self.places, sum(tensor.nbytes for tensor in tensors)))

    monkeypatch.setattr(places, "Cache", Measured)
    config = DecodingConfig(
        num_beams=num_beams, max_new_tokens=64, cache_mib=1, precision=precision
    )
    next(stream(talkative, reports(600), range(600), config))
    (n_places, size), *_ = sizes
    assert 1 < n_places < 256 // num_beams and 0.6 * 2**20 < size <= 2**20


def test_longest_first_keeps_equal_lengths_in_order() -> None:
    source = reports(50)
    order = longest_first(source)
    keys = [(-source.lengths[i], i) for i in order]
    assert keys == sorted(keys)


@given(st.integers(0, 999), st.integers(1, 12))
def test_largest_is_topk(seed: int, k: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(3, 256 * 40)
    values[0, 100:9000] = float("-inf")
    for ours, theirs in zip(largest(values, k), values.topk(k), strict=True):
        assert torch.equal(ours, theirs)


@given(
    st.integers(0, 999),
    st.sampled_from([1, 7, 32, 96, 256 * 3]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_first_largest_is_that(seed: int, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    values = torch.randint(-3, 3, (5, n)).to(dtype)  # many are equal
    values[0] = float("-inf")
    expected = [row.index(max(row)) for row in values.tolist()]
    assert first_largest(values).tolist() == expected


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"batch_size": -1}, "batch_size"),
        ({"cache_mib": 0}, "cache_mib"),
        ({"precision": "int8", "engine": "hf"}, "int8"),
    ],
)
def test_settings_that_make_no_sense_are_named(call: Call, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        DecodingConfig(**call)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
def test_ranks_share_without_loss(
    talkative: T5ForConditionalGeneration, n_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, config = reports(5), DecodingConfig(max_new_tokens=6)
    alone = generate(talkative, source, config)
    order = longest_first(source)
    shares = [
        list(stream(talkative, source, order[rank::n_ranks], config)) for rank in range(n_ranks)
    ]
    everyone = [output for share in shares for output in share]
    monkeypatch.setattr(generation, "gather_object", lambda _: everyone)
    for rank in range(n_ranks):
        assert generate(talkative, source, config, rank=rank, n_ranks=n_ranks) == alone
    monkeypatch.setattr(generation, "gather_object", lambda done: [*everyone, *done[:1]])
    if n_ranks > 1:
        with pytest.raises(RuntimeError, match="lost or decoded twice"):
            generate(talkative, source, config, rank=0, n_ranks=n_ranks)


@pytest.mark.parametrize("call", [{}, {"num_beams": 4}, {"min_new_tokens": 9}], ids=str)
def test_ctranslate2_gives_the_same_tokens(tiny: Tiny, call: Call) -> None:
    pytest.importorskip("ctranslate2")
    model = load_base(ModelConfig(path=str(tiny.talkative)))
    tokenizer = load_tokenizer(str(tiny.talkative))
    source = reports(12, vocabulary=len(tokenizer))
    config = DecodingConfig(max_new_tokens=10, engine="ctranslate2", **call)
    theirs = generate(model, source, config, tokenizer=tokenizer)
    ours = generate(model, source, replace(config, engine="torch"))
    assert [o.ids for o in ours] == [t.ids for t in theirs]


def test_ctranslate2_says_what_it_cannot_do(tiny: Tiny) -> None:
    pytest.importorskip("ctranslate2")
    model = attach_lora(load_base(ModelConfig(path=str(tiny.base))), LoraSettings(r=2))
    tokenizer, config = load_tokenizer(str(tiny.base)), DecodingConfig(engine="ctranslate2")
    with pytest.raises(ConfigError, match="merged"):
        generate(model, reports(2), config, tokenizer=tokenizer)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1e-3, 0.3, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 5.0]),
)
def test_the_best_token_is_that_of_fp32(seed: int, spread: float, offset: float) -> None:
    """Also where logits lie so close that 8 bits cannot tell them apart."""
    torch.manual_seed(seed)
    weight = offset + spread * torch.randn(BLOCKS[-1] * 40, 24)
    weight[100] = weight[7]  # equal logits: the first token wins
    hidden = torch.randn(30, 24)
    hidden[0] = weight[7] * 10
    forbidden = torch.rand(30) < 0.5
    exact, screened = Vocabulary(weight), Vocabulary(weight, screened=True)
    for left_out in (None, forbidden):
        tokens = exact.best(hidden)[3:5]  # two that would win
        found = screened.best(hidden, left_out, tokens)
        logits = exact.logits(hidden).double()
        if left_out is not None:
            logits[left_out] = logits[left_out].index_fill(1, tokens, float("-inf"))
        # Sums in another order may swap what is equal to the last bit of fp32, and nothing else.
        short_of = logits.amax(-1) - logits.gather(1, found[:, None])[:, 0]
        assert (short_of <= 1e-5 * logits.masked_fill(logits.isinf(), 0).abs().amax(-1)).all()
        if left_out is not None:
            assert not torch.isin(found[left_out], tokens).any()


def mean_probability(model: Any, source: Any, ids: list[int], *, cut: bool) -> float:
    """exp(mean log-probability) of an output by one plain forward of transformers."""
    labels = torch.tensor([ids if cut else [*ids, 1]])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(source[None].astype(int)), labels=labels).logits
    found = logits.log_softmax(-1).gather(2, labels[..., None])
    return float(found.double().mean().exp())


@pytest.mark.parametrize("engine", ["torch", "hf", "ctranslate2"])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"min_new_tokens": 5},
        {"no_repeat_ngram": 2},
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": 0.4},
        {"length_penalty": 0.4},
    ],
    ids=str,
)
def test_confidence_is_that_of_the_whole_forward(
    talkative: T5ForConditionalGeneration, tiny: Tiny, engine: Any, call: Call
) -> None:
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")
    config = DecodingConfig(engine=engine, max_new_tokens=12, batch_size=5, **call)
    source, tokenizer = reports(17), load_tokenizer(str(tiny.talkative))
    generator = generation.Generator(talkative, config, tokenizer, scored=True)
    found = list(generator.stream(source, longest_first(source)))
    assert len({len(output.ids) for output in found}) > 2
    for output in found:
        expected = mean_probability(
            talkative, source.row(output.report), output.ids, cut=output.cut
        )
        if engine == "ctranslate2" and {*call} & {"min_new_tokens", "no_repeat_ngram"}:
            assert output.confidence is None
        else:
            assert output.confidence == pytest.approx(expected, rel=1e-4), output
