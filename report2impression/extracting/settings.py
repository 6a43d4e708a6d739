"""The settings of extract.py, from its command line; loads nothing heavy."""

from report2impression.extracting.options import ExtractConfig
from report2impression.program.config import load, parse
from report2impression.program.errors import exits_cleanly
from report2impression.program.launcher import accept_launch
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.folders import find_trained


@exits_cleanly
def extract_settings(argv: list[str] | None = None) -> tuple[ExtractConfig, TrainConfig]:
    """Of extract.py, and those of the run whose weights it uses. SystemExit where they are wrong
    (2)."""
    accept_launch()
    config = parse(ExtractConfig, argv, description="Radiology reports -> structured impressions")
    if config.adapter is None:
        return config, TrainConfig()
    return config, load(TrainConfig, find_trained(config.adapter).recipe)
