"""What a run tells: metrics.jsonl, a progress bar, a table per epoch, TensorBoard on request,
curves.png.

Figures, ids and paths only: no function here ever receives report text. On ranks other than 0
nothing is written or printed.
"""

import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from report2impression.program.files import flush, write_file
from report2impression.program.terminal import _cell, print_table
from report2impression.reporting import published
from report2impression.runs.durable import Json
from report2impression.runs.trackers import Sink, _tensorboard


class Tracker:
    """Collects the run's figures and tells them on rank 0; other ranks only take part in the sums.

    Sums stay on the device between two log steps; reading them there is the loop's only wait for
    it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        n_steps: int,
        log_every: int = 10,
        enabled: bool = True,
        tensorboard: bool = False,
        sink: Sink | None = None,
        beside_published: bool = False,
        goes_on: bool = False,
    ) -> None:
        self.folder, self.enabled, self.log_every = folder, enabled, log_every
        self.beside_published = beside_published
        self.steps: list[dict[str, float | None]] = []
        self.epochs: list[dict[str, float]] = []
        self.n_skipped = 0  # steps that were not finite; the loop counts them
        self.n_unknown = 0  # training tokens of signs that the tokenizer lacks
        self._n_steps, self.n_done = n_steps, 0
        self._bar = tqdm(total=n_steps, disable=not enabled, unit="step", dynamic_ncols=True)
        self._writer = _tensorboard(folder) if tensorboard and enabled else None
        self._sink = sink if enabled else None
        self._window: list[
            Tensor
        ] = []  # [loss sum, label tokens] of each finite step since the last log
        self._rows_before: list[list[float]] = []  # the same, restored from a checkpoint
        self._epoch = [0.0, 0.0]
        self._clock, self._tokens = time.perf_counter(), 0
        if enabled and not goes_on:
            write_file(folder / "metrics.jsonl", b"")  # a run folder holds one run

    def step(
        self, loss_sum: Tensor, n_labels: int, n_tokens: int, finite: Tensor, **figures: Any
    ) -> None:
        """One optimizer step: loss summed over its n_labels label tokens, n_tokens real tokens, all
        ranks.

        `figures` (numbers or scalar tensors) are told as they are on the next log step. A step that
        was not finite counts in no loss.
        """
        counts = torch.stack([loss_sum, torch.full_like(loss_sum, n_labels)])
        self._window.append(counts.where(finite, 0.0))
        self._tokens += n_tokens
        self.n_done += 1
        self._bar.update()
        if self.n_done % self.log_every == 0 or self.n_done == self._n_steps:
            self._log({name: float(value) for name, value in figures.items()})

    def _log(self, figures: dict[str, float]) -> None:
        loss_sum, n_labels = self._close_window()
        now = time.perf_counter()
        loss = loss_sum / n_labels if n_labels else None
        speed = self._tokens / (now - self._clock)
        self._clock, self._tokens = now, 0
        self.steps.append({"step": self.n_done, "loss": loss, **figures, "tokens_per_s": speed})
        self._write("step", self.steps[-1])
        shown = {"loss": _cell(loss), "lr": f"{figures['lr']:.2e}", "tokens/s": f"{speed:,.0f}"}
        if figures.get("skipped"):
            shown["skipped"] = f"{figures['skipped']:.0f}"
        self._bar.set_postfix(shown, refresh=False)

    def _close_window(self) -> tuple[float, float]:
        """Read the sums since the last call: here the host waits for the device."""
        rows = self._rows()
        # Exact sums: the same figure however often the run was stopped in between.
        loss_sum, n_labels = (math.fsum(row[column] for row in rows) for column in (0, 1))
        self._window, self._rows_before = [], []
        self._epoch = [self._epoch[0] + loss_sum, self._epoch[1] + n_labels]
        return loss_sum, n_labels

    def _rows(self) -> list[list[float]]:
        new = torch.stack(self._window).double().tolist() if self._window else []
        return [*self._rows_before, *new]

    def end_epoch(self, epoch: int, validation: dict[str, float], **figures: float) -> None:
        """Close an epoch: one more row of the table (training loss weighted by tokens), curves
        drawn anew."""
        self._close_window()
        loss_sum, n_labels = self._epoch
        training_loss = loss_sum / n_labels if n_labels else float("nan")
        row = {"epoch": epoch, "step": self.n_done, "training_loss": training_loss}
        counts = {"skipped": self.n_skipped, "unknown_tokens": self.n_unknown}
        told = {name: count for name, count in counts.items() if count}
        self.epochs.append({**row, **validation, **figures, **told})
        self._epoch = [0.0, 0.0]
        self._write("epoch", self.epochs[-1])
        if self.enabled:
            with self._bar.external_write_mode():
                self._print_epochs()
            draw_curves(self.folder / "curves.png", self.steps, self.epochs)
        self._clock, self._tokens = time.perf_counter(), 0  # validation is not training time

    def _print_epochs(self) -> None:
        names = list(self.epochs[-1])
        columns = [name.replace("_", " ") for name in names]
        rows = [[epoch.get(name) for name in names] for epoch in self.epochs]
        if self.beside_published:
            columns += ["published training", "published validation"]
            for i, row in enumerate(rows):
                known = i < len(published.TRAINING_LOSS)
                row += (
                    [published.TRAINING_LOSS[i], published.VALIDATION_LOSS[i]]
                    if known
                    else [None] * 2
                )
        print_table("Loss per label token, by epoch", columns, rows)

    def _write(self, kind: str, figures: Mapping[str, float | None]) -> None:
        if not self.enabled:
            return
        known = {k: v for k, v in figures.items() if v is not None and math.isfinite(v)}
        line = {"kind": kind, **dict.fromkeys(figures), **known}  # JSON has no NaN: null instead
        with (self.folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(line, allow_nan=False) + "\n")
        if self._writer:
            for name, value in known.items():
                self._writer.add_scalar(f"{kind}/{name}", value, int(known["step"]))
        if self._sink is not None:
            named = {f"{kind}/{name}": value for name, value in known.items()}
            self._sink.log(named, int(known["step"]))

    def state(self) -> Json:
        """Sums, and how far metrics.jsonl goes (on the disk before a checkpoint says so)."""
        log = self.folder / "metrics.jsonl"
        if self.enabled:
            flush(log)
        return {
            "n_done": self.n_done,
            "n_skipped": self.n_skipped,
            "window": self._rows(),
            "epoch": self._epoch,
            "log_bytes": log.stat().st_size if self.enabled else 0,
        }

    def restore(self, state: Json) -> None:
        """Go on from there: what a killed run told after it is cut off from metrics.jsonl."""
        self.n_done, self.n_skipped = state["n_done"], state["n_skipped"]
        self._rows_before, self._epoch = state["window"], state["epoch"]
        self._bar.n = self._bar.initial = self.n_done
        if self.enabled:
            log = self.folder / "metrics.jsonl"
            told = log.read_bytes()[: state["log_bytes"]] if log.exists() else b""
            write_file(log, told)
            for row in map(json.loads, told.splitlines()):
                (self.steps if row.pop("kind") == "step" else self.epochs).append(row)
        if self._writer:
            self._writer.close()
            self._writer = _tensorboard(self.folder, purge_step=self.n_done + 1)
        self._clock = time.perf_counter()

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()
        if self._sink is not None:
            self._sink.close()


def draw_curves(
    file: Path, steps: list[dict[str, float | None]], epochs: list[dict[str, float]]
) -> None:
    """Training loss (thin: steps, points: epochs), validation loss and learning rate over
    optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (loss, rate) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=[3, 1], layout="constrained"
    )
    at_step, at_epoch = [s["step"] for s in steps], [e["step"] for e in epochs]
    loss.plot(
        at_step, [s["loss"] for s in steps], lw=0.8, alpha=0.5, color="C0", label="training, steps"
    )
    for name, color in (("training_loss", "C0"), ("validation_loss", "C1")):
        label = name.replace("_loss", ", epoch")
        loss.plot(at_epoch, [e[name] for e in epochs], "o-", color=color, label=label)
    loss.set_ylabel("loss (nats per label token)")
    loss.legend()
    loss.grid(alpha=0.3)
    rate.plot(at_step, [s["lr"] for s in steps], color="C2")
    rate.set(xlabel="optimizer step", ylabel="learning rate")
    rate.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    plt.close(figure)
    write_file(file, picture.getvalue())
