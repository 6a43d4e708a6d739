"""What a launcher (`accelerate launch`, torchrun) means for a process it starts, looked at before
anything heavy is loaded."""

import ctypes
import os
import signal
import sys

from report2impression.program.errors import ConfigError

LAUNCHED = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")  # a launcher sets one of these
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def accept_launch() -> None:
    """End with the launcher, and refuse what it asks for but cannot be had. Raises ConfigError."""
    if any(name in os.environ for name in LAUNCHED):
        _die_with_parent()
    for name, mode in MODES.items():
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"the launch file asks for {mode}, which this loop does not do: T5 with LoRA fits "
                "one device; for several use distributed_type MULTI_GPU (or MULTI_CPU), as in "
                "recipes/accelerate"
            )


def _die_with_parent() -> None:
    """SIGTERM for this process when the one that started it dies (Linux): `accelerate launch`
    passes few signals on, and a process it leaves behind would hold the port and train for
    nobody."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            signal.raise_signal(signal.SIGTERM)
