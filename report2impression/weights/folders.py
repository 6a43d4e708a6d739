"""What a training left behind, found by the names of its files; loads nothing heavy.

RUN/adapter   adapter_config.json, training.toml; its base lies elsewhere
RUN/model     config.json, training.toml, the tokenizer: a fully tuned model, or one merged by
              `report2impression export`; nothing else is needed
"""

from dataclasses import dataclass
from pathlib import Path

from report2impression.program.errors import ConfigError

ADAPTER, MODEL, RECIPE = "adapter_config.json", "config.json", "training.toml"


@dataclass(frozen=True)
class TrainedFolder:
    """A folder with weights and the recipe they were trained by."""

    path: Path
    is_adapter: bool

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE


def find_trained(path: str | Path) -> TrainedFolder:
    """Raises ConfigError if it is none of these."""
    folder = Path(path).expanduser()
    is_model = (folder / MODEL).is_file() and not (folder / ADAPTER).is_file()
    for name in (RECIPE, MODEL if is_model else ADAPTER):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} holds no {name}: give what a run trained (RUN/adapter, or RUN/model of "
                "full tuning), or a merged model (report2impression export)"
            )
    return TrainedFolder(folder, not is_model)
