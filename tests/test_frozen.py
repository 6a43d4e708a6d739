"""frozen.py: the product is torch's, whatever order the matrix is kept in."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import frozen
from frozen import Frozen
from numerics import cpu_multiplies_bf16

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_it_multiplies(rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    kept = weight.clone()
    found, expected = Frozen(weight)(x), F.linear(x, weight)
    assert found.dtype == dtype and found.shape == expected.shape
    # Sums of fp32 in any order (Higham 2002, 3.5), then one rounding to the dtype.
    x, weight = x.double(), weight.double()
    share = (inputs + 1) * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    bound = share * (x.abs() @ weight.abs().t())
    assert ((found.double() - x @ weight.t()).abs() <= bound).all()
    assert torch.equal(weight.to(dtype), kept)


def test_rows_may_lie_apart() -> None:
    x, weight = torch.randn(9, 40)[:, 3:35], torch.randn(6, 32)
    torch.testing.assert_close(Frozen(weight)(x), F.linear(x, weight))


def test_only_what_pays_is_put_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, bf16, fp16 = (torch.ones(4, 4, dtype=dtype) for dtype in DTYPES)
    assert frozen.packs(fp32)
    assert frozen.packs(bf16) == cpu_multiplies_bf16()
    assert not frozen.packs(fp16)
    assert not frozen.packs(torch.empty(4, 4, device="meta"))
    monkeypatch.setattr(frozen, "REORDER", "no_such_operation")
    plain = Frozen(fp32)
    assert not plain.is_packed and torch.equal(plain(fp32), fp32 @ fp32.t())
