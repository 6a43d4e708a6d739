"""What is learned on one group of reports: does it hold on the others?

    python -m bench.transfer --folder NOTES --output_dir runs/transfer

NOTES holds a JSONL of pairs for each group. Of its rows every fifth is for testing and the one
after it for validation; copies lie in the output folder. An adapter is trained on each group and on
all together, and each of them, and the base alone, writes the test reports of every group: a matrix
of ROUGE-L. The last line is JSON.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.children import last_line
from bench.common import print_json
from report2impression.batching.prompts import Prompts
from report2impression.decoding.generate import generate, to_text
from report2impression.decoding.options import DecodingConfig
from report2impression.engine.models import T5Model
from report2impression.program.config import load, parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.pairs import read_split
from report2impression.runs.recipe import TrainConfig
from report2impression.scoring.rouge_bleu import scores
from report2impression.weights.folders import find_trained
from report2impression.weights.loading import load_base
from report2impression.weights.tokenizer import load_tokenizer
from report2impression.weights.trained import trained_model

SPLITS = ("test", "validation", "train", "train", "train")
ALL = "all"


@dataclass(frozen=True)
class TransferConfig:
    """Trained on one group, tested on the others."""

    folder: str
    """Folder with a JSONL of pairs for each group."""
    output_dir: str = "runs/transfer"
    """Folder of the splits and of the runs; what is finished there is not done again."""
    recipe: str = "recipes/notes_by_group.toml"
    """Recipe of every run."""
    base: str = "assets/tiny_base"
    """Folder of the base."""
    least: int = 20
    """Groups with fewer rows are left out."""


def cut(config: TransferConfig) -> list[str]:
    """The groups, each in a folder of splits; so are all together. Raises ConfigError."""
    groups: dict[str, list[str]] = {}
    for file in sorted(Path(config.folder).glob("*.jsonl")):
        rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(rows) >= config.least:
            groups[file.stem] = rows
    if len(groups) < 2:
        raise ConfigError(f"{config.folder} has not two JSONL files of {config.least} rows or more")
    for split in sorted(set(SPLITS)):
        chosen = {
            name: "".join(row for i, row in enumerate(rows) if SPLITS[i % len(SPLITS)] == split)
            for name, rows in groups.items()
        }
        for name, text in {**chosen, ALL: "".join(chosen.values())}.items():
            place = Path(config.output_dir) / name / "data"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return list(groups)


def train(config: TransferConfig, name: str) -> Path:
    """The run of one group, in a process of its own. Raises ConfigError if it fails."""
    place = Path(config.output_dir) / name
    flags = {
        "config": config.recipe,
        "data.path": place / "data",
        "data.cache_dir": place / "cache",
        "model.path": config.base,
        "output_dir": place / "run",
    }
    command = [sys.executable, "train_loop.py", "--cpu", *(f"--{k}={v}" for k, v in flags.items())]
    last_line(command, f"the run of {name}")
    return place / "run" / "adapter"


def models(config: TransferConfig, groups: list[str]) -> Iterator[tuple[str, T5Model, TrainConfig]]:
    """The base alone, the adapter of each group, that of all, one after the other."""
    for name in (*groups, ALL):
        found = find_trained(train(config, name))
        recipe = load(TrainConfig, found.recipe)
        if name == groups[0]:
            yield "base alone", load_base(recipe.model), recipe
        yield name, trained_model(found, recipe.model), recipe


def rouge_l(config: TransferConfig, model: T5Model, recipe: TrainConfig, group: str) -> float:
    """Of the group's test reports, in percent."""
    tokenizer = load_tokenizer(config.base)
    pairs = read_split(str(Path(config.output_dir) / group / "data"), "test").pairs
    prompts = Prompts(tokenizer, recipe.data)
    source = prompts.tokens([prompts.spelled(pair.prompt) for pair in pairs])
    decoding = DecodingConfig(max_new_tokens=recipe.data.max_target_tokens, precision="fp32")
    outputs = generate(model, source, decoding)
    texts = to_text(tokenizer, [output.ids for output in outputs])
    return scores(texts, [pair.impression for pair in pairs])["rougeL"]


@exits_cleanly
def main() -> None:
    config = parse(TransferConfig, None, description=(__doc__ or "").partition("\n")[0])
    groups = cut(config)
    found = {
        name: {group: rouge_l(config, model, recipe, group) for group in groups}
        for name, model, recipe in models(config, groups)
    }
    rows = [(name, *row.values()) for name, row in found.items()]
    print_table("ROUGE-L: trained on (rows), tested on (columns)", ("", *groups), rows, digits=1)
    print_json(found)


if __name__ == "__main__":
    main()
