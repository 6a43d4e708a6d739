"""frozen.py: the product is torch's, whatever order the matrix is kept in."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from report2impression.engine import frozen
from report2impression.engine.frozen import Frozen, reordered, times, times_back
from report2impression.engine.precision import cpu_multiplies_bf16

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OF_ANY_SIZE = given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)


def is_product(found: Tensor, x: Tensor, weight: Tensor, total: Tensor | None = None) -> bool:
    """Within the rounding of x W^T (+ total): sums of fp32 in any order (Higham 2002, 3.5), then
    one rounding to the dtype (two with a total): relative, but below its smallest normal number
    absolute."""
    limits, n = torch.finfo(x.dtype), x.shape[1]
    x, weight = x.double(), weight.double()
    exact, size = x @ weight.t(), x.abs() @ weight.abs().t()
    if total is not None:
        exact, size, n = exact + total.double(), size + total.double().abs(), n + 1
    share = (n + 1) * torch.finfo(torch.float32).eps + (1 + (total is not None)) * limits.eps
    bound = share * size + limits.smallest_normal * limits.eps
    return bool(((found.double() - exact).abs() <= bound).all())


@settings(max_examples=60, deadline=None)
@OF_ANY_SIZE
def test_it_multiplies(rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    kept = weight.clone()
    found, expected = Frozen(weight)(x), F.linear(x, weight)
    assert found.dtype == dtype and found.shape == expected.shape
    assert is_product(found, x, weight)
    assert torch.equal(weight, kept)


@settings(max_examples=60, deadline=None)
@OF_ANY_SIZE
def test_both_ways(rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs).to(dtype)
    x, total = (torch.randn(rows, inputs).to(dtype) for _ in range(2))
    g = torch.randn(rows, outputs + 3).to(dtype)[:, :outputs]  # rows may lie apart
    for copies in (None, reordered(weight)):
        assert is_product(times(x, weight, copies), x, weight)
        assert is_product(times_back(g, weight, copies), g, weight.t())
        found = times_back(g, weight, copies, total.clone())
        assert found.dtype == dtype and is_product(found, g, weight.t(), total)


def test_rows_may_lie_apart() -> None:
    x, weight = torch.randn(9, 40)[:, 3:35], torch.randn(6, 32)
    torch.testing.assert_close(Frozen(weight)(x), F.linear(x, weight))


def test_only_what_pays_is_put_in_another_order() -> None:
    fp32, bf16, fp16 = (Frozen(torch.ones(4, 4, dtype=dtype)) for dtype in DTYPES)
    assert (fp32.is_packed, bf16.is_packed, fp16.is_packed) == (True, cpu_multiplies_bf16(), False)
    assert not Frozen(torch.empty(4, 4, device="meta")).is_packed


@pytest.mark.parametrize("name", ["REORDER", "MULTIPLY"])
def test_a_torch_without_these_operations_multiplies_plainly(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(frozen, name, "no_such_operation")
    frozen.operations.cache_clear()
    weight = torch.randn(4, 4)
    plain = Frozen(weight)
    assert not plain.is_packed and torch.equal(plain(weight), F.linear(weight, weight))
    assert reordered(weight) is None
    frozen.operations.cache_clear()


def test_an_operation_that_takes_other_arguments_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "MULTIPLY", "_convolution_pointwise")
    frozen.operations.cache_clear()
    assert not Frozen(torch.randn(4, 4)).is_packed
    frozen.operations.cache_clear()
