"""What a launcher (`accelerate launch`, torchrun) means for a process it starts, looked at before
anything heavy is loaded."""

import ctypes
import os
import signal
import sys

from report2impression.program.errors import ConfigError

LAUNCHED = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")  # a launcher sets one of these
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHARDED = "ACCELERATE_USE_FSDP"
MODES = {
    SHARDED: "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}
# What else Accelerate's FSDP can do, and the way here.
NOT_OF_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "give more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": "give --gradient_checkpointing",
}


def accept_launch(*, can_shard: bool = False) -> None:
    """End with the launcher, and refuse what it asks for but cannot be had. Raises ConfigError."""
    if any(name in os.environ for name in LAUNCHED):
        _die_with_parent()
    for name, mode in MODES.items():
        if _is_set(name) and not (can_shard and name == SHARDED and _is_fsdp2()):
            raise ConfigError(
                f"the launch file asks for {mode}, which this program does not do: T5 with LoRA "
                "fits one device; for several use distributed_type MULTI_GPU (or MULTI_CPU), as in "
                "recipes/accelerate, and to train a base too large for one its fsdp2.yaml (FSDP2)"
            )
    for name, flag in NOT_OF_FSDP.items():
        if is_sharded_launch() and _is_set(name):
            raise ConfigError(f"the launch file sets {name.lower()}, which is not done: {flag}")


def is_sharded_launch() -> bool:
    """Whether the launch file asks for FSDP2, and there are processes to share the base."""
    return _is_set(SHARDED) and _is_fsdp2() and os.environ.get("WORLD_SIZE", "1") != "1"


def stays_whole_between_passes() -> bool:
    """fsdp_reshard_after_forward: false, for speed where there is memory."""
    return not _is_set("FSDP_RESHARD_AFTER_FORWARD")


def _is_fsdp2() -> bool:
    return os.environ.get("FSDP_VERSION") == "2"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _die_with_parent() -> None:
    """SIGTERM for this process when the one that started it dies (Linux): `accelerate launch`
    passes few signals on, and a process it leaves behind would hold the port and train for
    nobody."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            signal.raise_signal(signal.SIGTERM)
