"""Matrices in 8 bits: products that are nearly those of fp32, at a quarter of their time on a CPU
with VNNI and at half of it with AVX2 alone.

Used where the difference is proven not to matter (decoding/vocabulary.py), or asked for (precision
= int8). Each row of W is scaled to whole numbers up to 127, each row of x up to 63: AVX2 adds two
products in 16 bits, and so they always fit. Hence a row's result depends on no other row, and its
whole numbers not on the CPU.

The products are fbgemm's, which torch has on x86. They are no part of torch's promised interface:
where they are not, `Int8.works()` says so.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

STEPS_W, STEPS_X = 127, 63
MIDDLE = 64  # what stands for 0 in x
TINY = torch.finfo(torch.float32).tiny


class Int8:
    """W (O, I); not differentiable."""

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        scale = peaks(weight)[:, 0] / STEPS_W
        zero = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings():  # torch means to give up tensors of this type some day
            warnings.simplefilter("ignore", UserWarning)
            whole = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(whole, None)
        self.error = torch.linalg.vector_norm(weight - whole.dequantize(), dim=-1)
        """(O,): length of what each row has lost."""

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, O) ~ x W^T in fp32."""
        x = x.float()
        size = peaks(x)
        return self.of_unit(x / size).mul_(size)

    def of_unit(self, x: Tensor) -> Tensor:
        """The same for an x in fp32 whose rows have 1 as their largest absolute value."""
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return multiply(x, 1 / STEPS_X, MIDDLE, self._packed)

    @staticmethod
    @cache
    def works() -> bool:
        try:
            eye = torch.eye(16)
            return torch.equal(Int8(eye)(eye), eye)
        except (AttributeError, RuntimeError, TypeError):
            return False


def peaks(x: Tensor) -> Tensor:
    """(N, I) -> the largest absolute value of each row (N, 1), never 0."""
    return x.abs().amax(-1, keepdim=True).clamp_min_(TINY)


def rounded(x: Tensor) -> Tensor:
    """x of `of_unit` as it is multiplied, but for ties."""
    return (x * STEPS_X).round_().div_(STEPS_X)
