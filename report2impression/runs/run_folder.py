"""What a run finds in its folder, and leaves there: a new start, a continuation, or a refusal.

RUN/.lock               held by the process that trains there
RUN/checkpoints/        durable.py
RUN/exit_status.json    how the last run there ended: launchers change exit codes
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from report2impression.program import files
from report2impression.program.config import save
from report2impression.program.errors import (
    CheckpointError,
    ConfigError,
    ResumeError,
    StorageError,
    UserError,
)
from report2impression.program.privacy import for_terminal
from report2impression.runs import durable
from report2impression.runs.durable import Json, Stored
from report2impression.runs.recipe import TrainConfig

RESULTS = ("adapter", "model", "evaluation", "curves.png")  # what a run leaves in its folder
STATUS, CHECKPOINTS = "exit_status.json", "checkpoints"
FILES = ("config.toml", "metrics.jsonl", "curves.png", STATUS)
# Settings that may differ when a run goes on: they change where things lie, what is told, how
# often is saved, or (with the reports per step, compared for themselves) only how a step is cut.
FREE = {
    *("output_dir", "fresh", "allow_change", "checkpoint_steps", "checkpoint_minutes"),
    *("keep_checkpoints", "peer_timeout", "log_every", "tensorboard", "cpu"),
    *("track_with", "allow_remote", "data.credentialed"),
    *("micro_batch_size", "grad_accum_steps", "reports_per_step"),
    # Their outcome is compared: the digests of data, tokenizer and base.
    *("data.path", "data.revision", "data.mix", "data.weights", "data.mix_seed"),
    *("data.source_column", "data.target_column", "data.id_column", "data.group_column"),
    *("data.patient_column", "data.on_bad_row", "data.allow_unknown", "data.cache_dir"),
    *("model.path", "model.revision"),
    "dry_run",
}
FIXED = {"optimizer", "tuning", "deterministic"}  # the stored state has another form with others


@dataclass(frozen=True)
class Found:
    """How to go on, and with what settings: from a checkpoint, from nothing, or not at all."""

    config: TrainConfig
    checkpoint: Stored | None = None
    is_finished: bool = False


class LockedError(ConfigError):
    """Another process trains in this folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The only process that trains there; the kernel gives the lock back however it ends.

    Raises LockedError, or ConfigError if the folder cannot be made.
    """
    try:
        files.make_folder(folder)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise LockedError(
                f"{folder} is in use by {owner}: wait for its end, or give another --output_dir"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


def _unusable(folder: Path, error: OSError) -> ConfigError:
    reason = error.strerror or type(error).__name__
    return ConfigError(f"cannot write the run folder {folder}: {reason} (--output_dir)")


@contextmanager
def exit_status(folder: Path) -> Iterator[None]:
    """Write RUN/exit_status.json at the end, if there is a run in that folder by then."""
    outcome: Json = {"code": 1, "reason": "unexpected error: see standard error"}
    try:
        yield
        outcome = {"code": 0, "reason": "finished"}
    except LockedError:
        outcome = {}
        raise
    except UserError as error:
        outcome = {"code": error.exit_code, "reason": for_terminal(str(error))}
        raise
    finally:
        if outcome and (folder / "config.toml").is_file() and os.environ.get("RANK", "0") == "0":
            _write_status(folder, outcome)


def _write_status(folder: Path, outcome: Json) -> None:
    kept = durable.stored(folder / CHECKPOINTS)
    told = {
        **outcome,
        "checkpoint": kept[-1].name if kept else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        files.write_file(folder / STATUS, json.dumps(told, indent=2).encode() + b"\n")
    except OSError:
        return  # the disk may be why the run ends: its own message matters more


def claim(config: TrainConfig, n_ranks: int, facts: Json, held: ExitStack) -> Found:
    """Lock the run folder (`held` keeps the lock), look what is there, and make it ready.

    Raises LockedError, CheckpointError, ResumeError, ConfigError, StorageError.
    """
    folder = Path(config.output_dir)
    held.enter_context(locked(folder))
    found = look_into(folder, config, n_ranks, facts)
    if found.is_finished:
        print(f"the run in {folder} is finished: nothing to do; --fresh begins it again")
        return found
    open_run_folder(folder, found.config, goes_on=found.checkpoint is not None)
    if found.checkpoint:
        print(f"going on from {found.checkpoint.folder}")
    return found


def look_into(folder: Path, config: TrainConfig, n_ranks: int, facts: Json) -> Found:
    """The checkpoint to go on from, if any, its facts compared with this run's.

    Removes an old exit status. CheckpointError: none is whole. ResumeError: it is of another run.
    """
    settled = replace(config, fresh=False, allow_change="nothing")  # they count for one start
    if config.fresh:
        return Found(settled)
    finished = _is_finished(folder)
    checkpoint, rejected = durable.newest(folder / CHECKPOINTS)
    told = [f"{path}: {reason}" for path, reason in rejected.items()]
    if rejected and not checkpoint:
        raise CheckpointError(
            f"no checkpoint is whole ({'; '.join(told)}): bring one back, or begin afresh with "
            "--fresh (removes what this folder holds)"
        )
    for line in told:
        print(f"warning: damaged checkpoint passed over: {for_terminal(line)}")
    if checkpoint:
        compare(checkpoint, config, facts)
        settled = elastic(settled, checkpoint, n_ranks)
    if not finished:
        with storage_errors(folder):
            (folder / STATUS).unlink(missing_ok=True)
            for path in rejected:
                durable.set_aside(path)
        durable.clean(folder / CHECKPOINTS)
    return Found(settled, checkpoint, is_finished=finished)


def _is_finished(folder: Path) -> bool:
    try:
        return json.loads((folder / STATUS).read_bytes())["code"] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run_facts(
    config: TrainConfig, n_ranks: int, digests: Mapping[str, str], precision: str
) -> Json:
    """What a checkpoint tells about its run; `digests` are those of data, tokenizer and base."""
    settings = {n: v for n, v in _flat(asdict(config)).items() if n not in FREE}
    return {
        "digests": dict(digests),
        "settings": json.loads(durable.canonical({**settings, "precision": precision})),
        "reports_per_step": config.global_batch_size(n_ranks),
        "micro_batch_size": config.micro_batch_size,
        "grad_accum_steps": config.grad_accum_steps,
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Json:
    flat: Json = {}
    for name, value in table.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


def compare(checkpoint: Stored, config: TrainConfig, facts: Json) -> None:
    """Raises ResumeError at the first difference that is not allowed."""
    then, where = checkpoint.facts, checkpoint.folder
    way_out = "another --output_dir begins a new run, --fresh begins this one again"
    now = facts["settings"]
    # A setting that did not exist when the checkpoint was written had no effect: its default.
    defaults = json.loads(durable.canonical(_flat(asdict(TrainConfig()))))
    before = {name: defaults[name] for name in now.keys() & defaults.keys()} | then["settings"]
    for name in sorted(before.keys() | now.keys()):
        allowed = name not in FIXED and config.allow_change in ("config", "all")
        if before.get(name) != now.get(name) and not allowed:
            accept = "" if name in FIXED else ", or accept the change with --allow_change config"
            raise ResumeError(
                f"{name} is {before.get(name)} in {where}, {now.get(name)} now: give what the run "
                f"began with{accept} ({way_out})"
            )
    for name, digest in facts["digests"].items():
        if digest != then["digests"].get(name) and config.allow_change not in (name, "all"):
            raise ResumeError(
                f"the {name} changed since {where} was written: give what the run began with, or "
                f"accept the change with --allow_change {name} ({way_out})"
            )


def elastic(config: TrainConfig, checkpoint: Stored, n_ranks: int) -> TrainConfig:
    """The config that goes on with the same steps, however many processes there are now.

    Raises ResumeError if the steps would not be the same.
    """
    then, per_step = checkpoint.facts, checkpoint.facts["reports_per_step"]
    cut = ("micro_batch_size", "grad_accum_steps")
    untouched = not config.reports_per_step and all(getattr(config, n) == then[n] for n in cut)
    if untouched:  # accumulation follows the number of processes
        config = replace(config, reports_per_step=per_step)
    if (now := config.global_batch_size(n_ranks)) != per_step:
        raise ResumeError(
            f"an optimizer step has {per_step:,} reports in {checkpoint.folder}, {now:,} now: give "
            f"--reports_per_step {per_step}, or --fresh to begin again"
        )
    before = then["micro_batch_size"]
    if config.deterministic and config.micro_batch_size != before:
        raise ResumeError(
            f"micro_batch_size is {before} in {checkpoint.folder}, {config.micro_batch_size} now: "
            "deterministic needs it as it was; --fresh begins again"
        )
    try:
        config.check_processes(n_ranks)
    except ConfigError as error:
        raise ResumeError(str(error)) from None
    return config


def open_run_folder(folder: Path, config: TrainConfig, *, goes_on: bool = False) -> None:
    """Make it, with the resolved config in it and, unless it goes on, no result of an earlier run.

    Raises ConfigError if it cannot be written, or if the run would remove its own input.
    """
    endings = ("", ".partial", ".old")  # the last two are a killed run's
    old = [folder / f"{name}{ending}" for name in RESULTS for ending in endings]
    for path in (config.model.path, config.data.path, *config.data.mix):
        used = Path(path).expanduser().resolve()
        if any(used.is_relative_to(result.resolve()) for result in old):
            raise ConfigError(
                f"{path} is a result of the run {folder}, which this run would remove: give "
                "another --output_dir"
            )
    is_run = (folder / "config.toml").is_file()  # or else the folders there are somebody's own
    try:
        if is_run and not goes_on:
            durable.clean(folder / CHECKPOINTS, everything=True)
            (folder / STATUS).unlink(missing_ok=True)
            for result in old:
                files.discard(result)
        files.discard_unfinished(*(folder / name for name in FILES))
        save(config, folder / "config.toml")
    except OSError as error:
        raise _unusable(folder, error) from None


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Inside, where nothing but the run folder is written, an OSError becomes a StorageError."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise files.storage_error(error, folder) from None
    except SafetensorError:  # a full disk, told in words of its own
        raise StorageError(
            f"cannot write weights in {folder}: make room, then run the same command again"
        ) from None
