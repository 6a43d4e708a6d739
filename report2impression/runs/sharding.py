"""A base that is too large for one device: each process holds a part of every weight (FSDP2,
torch's `fully_shard`), asked for by Accelerate's launch file (recipes/accelerate/fsdp2.yaml).

A block's weights come together for its forward and its backward, and part again. What leaves the
loop (checkpoints, the adapter) is whole: gathered by all processes, written by rank 0.
"""

from collections.abc import Iterable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from report2impression.program.launcher import stays_whole_between_passes


def in_parts(engine: nn.Module, accelerator: Accelerator) -> Any:
    """The same module; every parameter is a DTensor from now on, on the accelerator's device. A
    base on the CPU goes there block by block."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    model: Any = engine.model
    names = set(model.get_base_model()._no_split_modules)
    for block in (module for module in engine.modules() if type(module).__name__ in names):
        fully_shard(block, mesh=mesh, reshard_after_forward=not stays_whole_between_passes())
    return fully_shard(engine, mesh=mesh)


def is_sharded(weights: Iterable[Tensor]) -> bool:
    return any(isinstance(weight, DTensor) for weight in weights)


def whole(tensor: Tensor) -> Tensor:
    """As all processes hold it together: all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(stored: Tensor, weight: Tensor) -> Tensor:
    """Of a whole tensor, which every process has, what this one holds, if `weight` is sharded and
    of that shape."""
    if isinstance(weight, DTensor) and stored.shape == weight.shape:
        here = stored.to(weight.device)
        return distribute_tensor(here, weight.device_mesh, weight.placements, src_data_rank=None)
    return stored.to(weight.device)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights, whole; all processes have to ask."""
    named = model.named_parameters()
    return {name: whole(weight.detach()) for name, weight in named if weight.requires_grad}
