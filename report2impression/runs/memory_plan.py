"""What `--dry_run` tells of memory, before a base is loaded (weights/memory.py counts it)."""

from report2impression.program.errors import ConfigError
from report2impression.program.terminal import print_table
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.memory import Estimate, Shapes, Step, estimate, read_shapes

MIB = 2**20
HALVES = {"fp32": [False], "bf16": [True], "fp16": [True], "auto": [False, True]}


def step_of(config: TrainConfig, *, half: bool) -> Step:
    """A step of this recipe."""
    return Step(
        half,
        config.engine,
        config.tuning,
        config.base_quantization,
        config.optimizer,
        config.gradient_checkpointing,
        config.model.dropout,
        config.lora,
        config.cpu,
    )


def tell_memory(config: TrainConfig) -> None:
    """A table: of one process, its micro-batch full of the longest reports that the recipe lets
    through. One line where the base is not to be had: that is for the run to refuse."""
    try:
        base = read_shapes(config.model)
    except ConfigError as error:
        print(f"no estimate of memory: {error}")
        return
    halves = HALVES[config.precision]
    batches = [_of(config, base, config.micro_batch_size, half) for half in halves]
    larger = [_of(config, base, config.micro_batch_size + 1, half) for half in halves]
    of_one = [x.activations - y.activations for x, y in zip(larger, batches, strict=True)]
    lengths = f"{config.data.max_source_tokens:,} + {config.data.max_target_tokens:,} tokens"
    rows = [
        ("parameters", *(f"{found.n_parameters:,}" for found in batches)),
        ("trainable", *(f"{found.n_trainable:,}" for found in batches)),
        ("weights", *(found.weights / MIB for found in batches)),
        ("gradients", *(found.gradients / MIB for found in batches)),
        ("optimizer", *(found.optimizer / MIB for found in batches)),
        (f"activations of a report of {lengths}", *(one / MIB for one in of_one)),
        (
            f"activations of {config.micro_batch_size} such reports",
            *(found.activations / MIB for found in batches),
        ),
        ("all", *(found.total / MIB for found in batches)),
    ]
    engine = "fast" if step_of(config, half=False).is_fast(base) else "hf"
    columns = ("MiB", *("bf16 or fp16" if half else "fp32" for half in halves))
    print_table(f"Memory of a process, estimated: engine {engine}", columns, rows, digits=0)


def _of(config: TrainConfig, base: Shapes, n: int, half: bool) -> Estimate:
    longest = [config.data.max_source_tokens] * n, [config.data.max_target_tokens] * n
    return estimate(base, step_of(config, half=half), *longest)
