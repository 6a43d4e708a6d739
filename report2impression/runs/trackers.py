"""Where else the figures of a run may go: wandb or MLflow, on request.

Only figures, their names and the name of the run folder are sent, never text, paths or settings.
Both packages are the user's to install. For credentialed data a tracker on another machine is
refused before anything is read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from report2impression.program.errors import ConfigError
from report2impression.reading.licence import Mark

RemoteTracker = Literal["none", "wandb", "mlflow"]
MLFLOW_STORE = "mlflow.db"  # in the run folder; its file store is no longer accepted
# Else MLflow tells who and where you are.
GIT = ("mlflow.source.git.commit", "mlflow.source.git.branch", "mlflow.source.git.repoURL")
TOLD_INSTEAD = {
    **{"mlflow.user": "-", "mlflow.source.name": "report2impression"},
    **dict.fromkeys(GIT, "-"),
}
LOCAL_STORES = ("", "file:", "sqlite:", "/", "./")  # of MLFLOW_TRACKING_URI


class Sink(Protocol):
    """Takes figures at a step."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def is_remote(name: RemoteTracker) -> bool:
    """Whether figures would leave this machine: MLflow's own setting says where it writes."""
    if name == "mlflow":
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        return not (uri == "" or uri.startswith(LOCAL_STORES[1:]))
    return name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled")


def refuse_remote(name: RemoteTracker, mark: Mark, *, allowed: bool) -> None:
    """Raises ConfigError if the figures would leave the machine and the data forbid it."""
    if mark.credentialed and is_remote(name) and not allowed:
        raise ConfigError(
            f"--track_with {name} sends figures to another machine, and the data are credentialed "
            f"({mark.source}; {mark.licence}): leave it out, use --tensorboard, or give "
            "--allow_remote if your agreement lets figures (no text is sent) leave"
        )


def library(name: RemoteTracker) -> Any:
    """The package. Raises ConfigError if it is not installed."""
    try:
        if name == "wandb":
            import wandb as package
        else:
            import mlflow as package
    except ImportError:
        raise ConfigError(
            f"--track_with {name}: {name} is not installed: pip install {name}"
        ) from None
    return package


def open_sink(name: RemoteTracker, folder: Path, *, enabled: bool = True) -> Sink | None:
    """A run at the tracker, if one is asked for; the files it keeps go into the run folder."""
    if name == "none" or not enabled:
        return None
    return _Wandb(library(name), folder) if name == "wandb" else _Mlflow(library(name), folder)


class _Wandb:
    def __init__(self, wandb: Any, folder: Path) -> None:
        # No code, console output, git remote or machine figures: they could hold text or paths.
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project="report2impression", name=folder.name, dir=str(folder), settings=settings
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "optimizer_step": step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, mlflow: Any, folder: Path) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(folder / MLFLOW_STORE).resolve()}")
        self._mlflow = mlflow
        mlflow.start_run(run_name=folder.name, log_system_metrics=False, tags=TOLD_INSTEAD)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard files. Raises ConfigError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            '--tensorboard: tensorboard is not installed: pip install ".[trackers]"'
        ) from None
    return SummaryWriter


def _tensorboard(folder: Path, purge_step: int | None = None) -> Any:
    return tensorboard_writer()(str(folder / "tensorboard"), purge_step=purge_step)
