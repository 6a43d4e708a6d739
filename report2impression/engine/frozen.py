"""Matrices that are only multiplied by from now on.

    Frozen      for inference, x W^T
    reordered   for training, x W^T and g W

On a CPU they are kept in oneDNN's own order of elements, which it else makes anew in every product.
What that saves is of the matrix's size, whatever the rows: 1.4 times with 128 rows in fp32, three
times with 16 (T5-small, 2 cores); and oneDNN's fp32 products are faster than MKL's, torch's
default, on CPUs that are not Intel's. torch.compile's freezing uses the same operations; where this
torch has them not, it is torch's plain product.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from report2impression.engine.precision import cpu_multiplies_bf16

REORDER, MULTIPLY = "_reorder_linear_weight", "_linear_pointwise"


@cache
def operations(dtype: torch.dtype) -> tuple[Any, Any] | None:
    """(reorder, multiply) for matrices on this CPU; none where they are not or do not work: they
    are no part of torch's promised interface."""
    fast = dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_multiplies_bf16())
    if not fast or not torch.backends.mkldnn.is_available():
        return None
    try:
        found = getattr(torch.ops.mkldnn, REORDER), getattr(torch.ops.mkldnn, MULTIPLY)
        eye = torch.eye(16, dtype=dtype)
        once, twice = (
            _product(found[1], eye, found[0](eye)),
            found[1].binary(eye, eye, found[0](eye), None, "add"),
        )
        return found if torch.equal(once, eye) and torch.equal(twice, 2 * eye) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


def _product(multiply: Any, x: Tensor, weight: Tensor) -> Tensor:
    return multiply(x, weight, None, "none", [], "")


Reordered = tuple[Tensor, Tensor]  # W (O, I) and its transpose, opaque


def reordered(weight: Tensor) -> Reordered | None:
    """Two copies of W (O, I) for `times` and `times_back`; none where that brings nothing."""
    found = operations(weight.dtype) if weight.device.type == "cpu" else None
    return (found[0](weight), found[0](weight.t().contiguous())) if found else None


def times(x: Tensor, weight: Tensor, copies: Reordered | None) -> Tensor:
    """x W^T, (N, I) -> (N, O); not differentiable."""
    if copies is None:
        return F.linear(x, weight)
    return _product(getattr(torch.ops.mkldnn, MULTIPLY), x, copies[0])


def times_back(
    g: Tensor, weight: Tensor, copies: Reordered | None, total: Tensor | None = None
) -> Tensor:
    """g W (+ total, which may be used up), (N, O) -> (N, I); not differentiable."""
    if copies is None:
        return g @ weight if total is None else total.addmm_(g, weight)
    multiply = getattr(torch.ops.mkldnn, MULTIPLY)
    if total is None:
        return _product(multiply, g, copies[1])
    return multiply.binary(g, total, copies[1], None, "add")


class Frozen:
    """(O, I); not differentiable."""

    def __init__(self, weight: Tensor) -> None:
        found = operations(weight.dtype) if weight.device.type == "cpu" else None
        self.weight, self._multiply = weight, None
        if found:
            reorder, self._multiply = found
            self.weight = reorder(weight)

    @property
    def is_packed(self) -> bool:
        return self._multiply is not None

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, O) = x W^T."""
        if self._multiply is None:
            return F.linear(x, self.weight)
        return _product(self._multiply, x, self.weight)
