"""The settings of extract.py and of the export, from the command line; loads nothing heavy."""

from report2impression.extracting.options import ExportConfig, ExtractConfig
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


@exits_cleanly
def export_settings(argv: list[str] | None = None) -> tuple[ExportConfig, TrainConfig]:
    """Of `report2impression export`, and those of the run; as above."""
    config = parse(ExportConfig, argv, description="A trained model for other programs")
    return config, load(TrainConfig, find_trained(config.adapter).recipe)
