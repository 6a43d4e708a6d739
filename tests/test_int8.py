"""int8.py: products of whole numbers, and the bound that the vocabulary's proof rests on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from report2impression.decoding.cache import Decoder
from report2impression.decoding.generate import generate
from report2impression.decoding.options import DecodingConfig
from report2impression.decoding.vocabulary import Screen, Vocabulary
from report2impression.engine import int8
from report2impression.engine.int8 import STEPS_W, STEPS_X, Int8, peaks, rounded
from report2impression.program.errors import ConfigError
from tests.test_family import N_TOKENS, base_of
from tests.test_generate import reports

if not Int8.works():
    pytest.skip("this torch has no products in 8 bits", allow_module_level=True)

OF_ANY_SIZE = given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 600),
    outputs=st.integers(1, 130),
    spread=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 999),
)


def drawn(rows: int, inputs: int, outputs: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x, weight = spread * torch.randn(rows, inputs), torch.randn(outputs, inputs)
    weight[0] = weight[0].sign() * 3  # the largest sums that whole numbers can have
    x[0] = weight[0] * spread
    return x, weight


@settings(max_examples=60, deadline=None)
@OF_ANY_SIZE
def test_whole_numbers_are_multiplied(
    rows: int, inputs: int, outputs: int, spread: float, seed: int
) -> None:
    x, weight = drawn(rows, inputs, outputs, spread, seed)
    size, scale = peaks(x), peaks(weight) / STEPS_W
    whole = (weight / scale).round().clamp(-STEPS_W, STEPS_W).double()
    expected = (x / size * STEPS_X).round().double() @ whole.t()
    expected *= (size / STEPS_X).double() * scale.t().double()
    found = Int8(weight)(x).double()
    # A tie may fall to either side: one step of a weight or of x, and then fp32's own rounding.
    tie = (weight.abs() / scale / STEPS_X * size.max() * scale).sum(-1) * 0.02
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(tie.max()))


@settings(max_examples=30, deadline=None)
@OF_ANY_SIZE
def test_rows_do_not_depend_on_each_other(
    rows: int, inputs: int, outputs: int, spread: float, seed: int
) -> None:
    x, weight = drawn(rows, inputs, outputs, spread, seed)
    matrix = Int8(weight)
    together = matrix(x)
    for i in {0, rows // 2, rows - 1}:
        assert torch.equal(matrix(x[i : i + 1])[0], together[i])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 300), st.sampled_from([1e-3, 1.0, 1e3]))
def test_proposed_logits_are_within_their_bound(seed: int, inputs: int, spread: float) -> None:
    torch.manual_seed(seed)
    weight, hidden = torch.randn(96, inputs), spread * torch.randn(20, inputs)
    weight[40:64] *= 30  # a block of long ones
    unit = hidden / peaks(hidden)
    screen = Screen.of(weight, 32)
    off = (unit.double() @ weight.double().t() - screen.matrix.of_unit(unit).double()).abs()
    assert (off.unflatten(1, (3, 32)).amax(-1) <= screen._bound(unit)).all()
    assert ((unit - rounded(unit)).abs() <= 0.501 / STEPS_X).all()


def test_rows_that_are_no_numbers_or_all_alike_are_decided_by_fp32() -> None:
    weight = torch.randn(64, 8)
    hidden = torch.stack([torch.full((8,), float("nan")), torch.zeros(8), weight[5] * 9])
    found = Vocabulary(weight, screened=True).best(hidden)
    assert found[1:].tolist() == Vocabulary(weight).best(hidden)[1:].tolist()
    assert found[1] == 0 and 0 <= found[0] < 64


def test_decoding_in_int8_mostly_agrees() -> None:
    model, source = base_of(), reports(40, vocabulary=N_TOKENS)
    exact, found = (
        generate(model, source, DecodingConfig(max_new_tokens=12, precision=precision))
        for precision in ("fp32", "int8")
    )
    assert sum(a.ids == b.ids for a, b in zip(exact, found, strict=True)) > 20


def test_a_torch_without_these_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes as ever, and int8 is refused."""

    def missing(self: Int8, weight: Tensor) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(int8.Int8, "__init__", missing)
    Int8.works.cache_clear()
    try:
        assert Vocabulary(torch.randn(64, 8), screened=True)._screen is None
        with pytest.raises(ConfigError, match="int8"):
            Decoder(base_of(), "int8")
    finally:
        Int8.works.cache_clear()


def test_transformers_has_no_int8() -> None:
    model = base_of()
    model.encoder.block[0].layer[0].SelfAttention.q.bias = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(ConfigError, match="int8"):
        generate(model, reports(2, vocabulary=N_TOKENS), DecodingConfig(precision="int8"))
