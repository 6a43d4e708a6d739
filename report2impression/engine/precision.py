"""Which precision a run computes in."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` = fp16 on CUDA (as published), bf16 on a CPU that multiplies it natively, else
    fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fp16"
    return "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Elsewhere a bf16 product is about ten times slower than an fp32 one.

    What the CPU has counts, and what oneDNN may use of it (ONEDNN_MAX_CPU_ISA).
    """
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    used = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return has_it and used


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The forward's precision; a no-op for fp32."""
    return torch.amp.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
