"""What a speed depends on besides the code."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "ctranslate2")


def machine() -> dict[str, Any]:
    """Processor, what may be used of it, threads, allocator, versions: for a bench's JSON."""
    import torch

    from report2impression.engine.precision import cpu_multiplies_bf16

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "fbgemm_instructions": os.environ.get("FBGEMM_ENABLE_INSTRUCTIONS"),
        "native_bf16": cpu_multiplies_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "preloaded": os.environ.get("LD_PRELOAD"),  # such as another allocator
        "versions": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def cpu_name() -> str:
    """As Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
