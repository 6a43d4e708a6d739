"""Does a model recite its training data? The longest training text in each output, word for word.

    python eval.py --adapter RUN/adapter --save_predictions ...
    python -m report2impression memorisation --predictions RUN/evaluation --data.path DIR

A run of words counts if some training report (findings or impression) holds it and the output's
own source does not. The radiologist's impressions, which nobody learned, give the base rate:
stock phrases are in every report. Ids and figures only; --show_text shows the worst runs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from report2impression.audit.verbatim import longest_memorised
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, DataError, check_least, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.options import PairSource
from report2impression.reading.pairs import open_pairs
from report2impression.scoring.describe import words

FILE = "predictions.jsonl"
SYSTEMS = ("lora", "base", "reference")
LONG = (8, 12, 20)  # words


@dataclass(frozen=True)
class TrainingData(PairSource):
    """The pairs that the model was trained on."""


@dataclass(frozen=True)
class MemorisationConfig:
    """One look for training text in outputs."""

    predictions: str
    """The predictions.jsonl of `eval.py --save_predictions`, or the folder that holds it."""
    data: TrainingData = field(default_factory=TrainingData)
    worst: int = 5
    """Ids to name, those with the longest runs."""
    show_text: bool = False
    """Also print the worst runs themselves: TRAINING TEXT."""

    def __post_init__(self) -> None:
        check_least(0, self, "worst")


def read_predictions(path: Path) -> dict[str, list[str]]:
    """Columns id, source, reference, base, lora. ConfigError: no file; DataError: a broken line."""
    path = path / FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; write it with eval.py --save_predictions"
        ) from None
    names = ("id", "source", *SYSTEMS)
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            texts = [row[name] for name in names]
        except (ValueError, KeyError, TypeError):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path} line {number}: not a prediction; run eval.py again")
        for name, text in zip(names, texts, strict=True):
            columns[name].append(text)
    if not columns["id"]:
        raise DataError(f"{path}: no predictions in it; run eval.py again")
    return columns


def memorisation(
    columns: Mapping[str, Sequence[str]], train: Sequence[tuple[str, str]], *, worst: int = 5
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Figures of each system, and the runs of its worst ids (training text).

    `train` holds (findings, impression).
    """
    known = [words(text) for pair in train for text in pair]
    impressions = {tuple(words(impression)) for _, impression in train} - {()}
    sources = [words(text) for text in columns["source"]]
    figures: dict[str, Any] = {"n": len(sources), "training_reports": len(train), "systems": {}}
    shown = {}
    for system in SYSTEMS:
        outputs = [words(text) for text in columns[system]]
        runs = longest_memorised(outputs, sources, known)
        lengths = np.array([n for _, n in runs])
        order = np.argsort(-lengths, kind="stable")[:worst].tolist()
        figures["systems"][system] = {
            "max": int(lengths.max()),
            "p99": float(np.percentile(lengths, 99)),
            "mean": float(lengths.mean()),
            **{f"percent_{n}_words": 100 * float((lengths >= n).mean()) for n in LONG},
            "copies_of_training_impressions": sum(tuple(o) in impressions for o in outputs),
            "worst": [[columns["id"][i], int(lengths[i])] for i in order],
        }
        places = [(i, *runs[i]) for i in order]
        shown[system] = [" ".join(outputs[i][start : start + n]) for i, start, n in places]
    return figures, shown


def show(figures: dict[str, Any]) -> None:
    """The table and, below it, all of it as one JSON line."""
    columns = ("", "max", "p99", "mean", *(f">= {n} words, %" for n in LONG), "whole impressions")
    labels = {"lora": "LoRA", "base": "base", "reference": "radiologist (base rate)"}
    shares = [f"percent_{n}_words" for n in LONG]
    keys = ("max", "p99", "mean", *shares, "copies_of_training_impressions")
    rows = [[labels[name], *(row[key] for key in keys)] for name, row in figures["systems"].items()]
    title = "Longest run of training words not in the own source"
    print_table(title, columns, rows, digits=1)
    worst = figures["systems"]["lora"]["worst"]
    print("longest of LoRA: " + ", ".join(f"{name} ({n} words)" for name, n in worst))
    print(json.dumps(figures))


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse(MemorisationConfig, argv, description=(__doc__ or "").partition("\n")[0])
    columns = read_predictions(Path(config.predictions).expanduser())
    train = open_pairs(config.data, "train", on_bad_row="skip").read()
    pairs = [(pair.prompt, pair.impression) for pair in train.pairs]
    figures, shown = memorisation(columns, pairs, worst=config.worst)
    show(figures)
    if config.show_text:
        print("TRAINING TEXT follows: mind where this output goes.")
        for (name, _), run in zip(figures["systems"]["lora"]["worst"], shown["lora"], strict=True):
            print(f"{name}: {run}")


if __name__ == "__main__":
    main()
