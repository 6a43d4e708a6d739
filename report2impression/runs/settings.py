"""The settings of a program, from its command line; loads nothing heavy.

`--help`, mistakes and `--dry_run` are answered here and end the program: an entry point calls this
before it imports torch.
"""

import os

from report2impression.program.config import load, parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.launcher import accept_launch, is_sharded_launch
from report2impression.reading.dry_run import dry_run
from report2impression.runs.evaluation import EvalConfig, as_trained
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.folders import find_trained


@exits_cleanly
def training_settings(argv: list[str] | None = None) -> TrainConfig:
    """Of train_loop.py. SystemExit where they are wrong (2), or after a dry run (0)."""
    accept_launch(can_shard=True)
    config = parse(TrainConfig, argv, description="Fine-tune T5 with LoRA: findings -> impression")
    if is_sharded_launch():
        config.check_sharded()
    if config.dry_run:
        dry_run(config.data, ["train", "validation"])
        if os.environ.get("RANK", "0") == "0":
            from report2impression.runs.memory_plan import tell_memory  # loads the hub's client

            tell_memory(config)
        raise SystemExit
    return config


@exits_cleanly
def evaluation_settings(argv: list[str] | None = None) -> tuple[EvalConfig, TrainConfig]:
    """Of eval.py, and those of the run it looks at. SystemExit as above."""
    accept_launch()
    config = parse(EvalConfig, argv, description="Base vs LoRA adapter on sampled test reports")
    trained = load(TrainConfig, find_trained(config.adapter).recipe)
    if config.dry_run:
        dry_run(as_trained(config.data, trained.data), ["test"])
        raise SystemExit
    return config, trained
