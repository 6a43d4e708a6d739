"""Base vs LoRA adapter on N sampled test reports: generate, score, compare.

    python eval.py --adapter RUN/adapter [--data.path DIR] --n 1000 [--show_text 3]
    accelerate launch eval.py --adapter RUN/adapter ...                on several processes

Base and adapter see the same reports, the same tokens, the same order. The adapter is merged in
fp32. Fully tuned models have no base beside them and are not compared here.
"""

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from accelerate import Accelerator
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

import published
from config import load, parse
from corpus.pairs import Pair
from data import DataConfig, SourceConfig, read_pairs, tell_skipped
from errors import ConfigError, DataError, exits_cleanly
from generate import generate, to_text
from model import ModelConfig, T5Model, load_adapter, load_base, load_tokenizer, merged
from quiet import quieten_libraries
from recipe import TrainConfig
from scoring import baselines
from scoring.rouge_bleu import METRICS, scores, signature
from tokens import Tokens, tokenise
from tracking import print_table

Trained = TypeVar("Trained", DataConfig, ModelConfig)
LABELS = {"base": "base", "lora": "LoRA"}


@dataclass(frozen=True)
class BaseConfig:
    """The base under the adapter."""

    path: str | None = None
    """Folder or hub id of the base; none = the one the adapter was trained on."""
    revision: str | None = None
    """Hub commit or tag of the base; none = as in training, with a path of your own: main."""


@dataclass(frozen=True)
class EvalData:
    """Where the test reports are read from."""

    path: str | None = None
    """Folder with test.{jsonl,csv,parquet}, or a hub data set id; none = the one trained on."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = as in training, with a path of your own: main."""
    source_column: str | None = None
    """Column of the findings; none = as in training."""
    target_column: str | None = None
    """Column of the impression; none = as in training."""
    on_bad_row: Literal["auto", "error", "skip"] | None = None
    """Empty, null or broken rows: stop, or skip and count; none = as in training."""


@dataclass(frozen=True)
class EvalConfig:
    """One comparison of a base with its adapter."""

    adapter: str
    """Adapter folder of a run (RUN/adapter); a fully tuned RUN/model cannot be compared."""
    n: int = 1000
    """Test reports to sample; 0 or more than there are = all."""
    seed: int = 0
    """Seed of the sample."""
    max_new_tokens: int = 128
    """Longest generated impression, in tokens."""
    batch_size: int = 32
    """Reports decoded together by one process."""
    stemmer: bool = True
    """Porter stemmer in ROUGE (rouge-score's use_stemmer)."""
    show_text: int = 0
    """Print this many examples side by side: report, reference, base, LoRA (shows report text)."""
    output_dir: str | None = None
    """Folder of scores.json and sample_ids.json; none = evaluation/ beside the adapter."""
    cpu: bool = False
    """Decode on the CPU even if a GPU is there."""
    data: EvalData = field(default_factory=EvalData)
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        for name, least in (("n", 0), ("show_text", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")


def as_trained(given: EvalData | BaseConfig, trained: Trained) -> Trained:
    """The trained run's settings, but for what is given. A revision stays with its path."""
    values = {name: value for name, value in asdict(given).items() if value is not None}
    if values.get("path", trained.path) != trained.path:
        values = {"revision": None} | values
    return replace(trained, **values)


def training_impressions(config: SourceConfig) -> list[str]:
    """What the most frequent answer is found among; nothing where there is no training split."""
    try:
        return [pair.impression for pair in read_pairs(config, "train").pairs]
    except DataError:
        if any(Path(config.path).expanduser().glob("train.*")):
            raise  # it is there, and broken
        return []


def sample_indices(n_reports: int, n: int, seed: int) -> list[int]:
    """Indices of n reports drawn without replacement, in ascending order; all of them if n is 0
    or too large."""
    if not 0 < n < n_reports:
        return list(range(n_reports))
    return sorted(random.Random(seed).sample(range(n_reports), n))


def generation_scores(
    model: T5Model,
    tokenizer: PreTrainedTokenizerBase,
    source: Tokens,
    references: Sequence[str],
    *,
    n: int,
    seed: int,
    max_new_tokens: int,
    rank: int = 0,
    n_ranks: int = 1,
) -> dict[str, float]:
    """ROUGE and BLEU (percent) of greedy outputs on n sampled reports; the same figures on every
    rank."""
    chosen = sample_indices(len(references), n, seed)
    outputs = generate(
        model, source.take(chosen), max_new_tokens=max_new_tokens, rank=rank, n_ranks=n_ranks
    )
    return scores(to_text(tokenizer, outputs), [references[i] for i in chosen])


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found: texts stay here, `scores` goes to disk."""

    pairs: list[Pair]
    base: list[str]
    lora: list[str]
    scores: dict[str, Any]


def evaluate(
    config: EvalConfig, trained: TrainConfig, rank: int = 0, n_ranks: int = 1, device: Any = "cpu"
) -> Comparison:
    """Generate with base and adapter on the sampled test reports and score both beside the
    baselines."""
    data, base_config = (
        as_trained(config.data, trained.data),
        as_trained(config.model, trained.model),
    )
    test, train_impressions = read_pairs(data, "test"), training_impressions(data)
    if rank == 0:
        tell_skipped([test])
    pairs = [test.pairs[i] for i in sample_indices(len(test.pairs), config.n, config.seed)]
    tokenizer = load_tokenizer(base_config.path, base_config.revision)
    source = tokenise(
        [trained.data.prefix + pair.prompt for pair in pairs],
        tokenizer,
        max_tokens=trained.data.max_source_tokens,
    )
    base = load_base(base_config).to(device)
    texts = {}
    for name in LABELS:
        model = base if name == "base" else merged(load_adapter(base, config.adapter))
        outputs = generate(
            model,
            source,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            rank=rank,
            n_ranks=n_ranks,
            progress=f"{name}: generating",
        )
        texts[name] = to_text(tokenizer, outputs)
    figures = score(config, pairs, texts, train_impressions)
    figures["n_truncated_sources"] = source.n_truncated
    return Comparison(pairs, texts["base"], texts["lora"], figures)


def score(
    config: EvalConfig, pairs: list[Pair], texts: dict[str, list[str]], train_impressions: list[str]
) -> dict[str, Any]:
    """The content of scores.json: metrics in percent, and what they were computed from; None for
    the most frequent answer where there are no training impressions."""
    references = [pair.impression for pair in pairs]
    ids = [pair.id for pair in pairs]

    def rate(predictions: list[str]) -> dict[str, float]:
        return scores(predictions, references, stemmer=config.stemmer)

    most_frequent = None
    if train_impressions:
        most_frequent = rate(baselines.most_frequent(train_impressions, len(pairs)))
    return {
        "n": len(pairs),
        "base": rate(texts["base"]),
        "lora": rate(texts["lora"]),
        "baselines": {
            "copy": rate(baselines.copy([pair.prompt for pair in pairs])),
            "most_frequent": most_frequent,
        },
        "signature": signature(config.stemmer),
        "decoding": {"search": "greedy", "max_new_tokens": config.max_new_tokens},
        "sample": {
            "seed": config.seed,
            "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        },
    }


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A failure to write there becomes one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"cannot write into {folder}: {reason} (--output_dir)") from None


def open_results(folder: Path) -> None:
    """Make the folder and try it, before hours of decoding. Raises ConfigError if it cannot be
    written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_results(folder: Path, comparison: Comparison) -> None:
    """scores.json and the sampled ids, so that the same reports can be scored again. No text."""
    for name, content in (
        ("sample_ids.json", [pair.id for pair in comparison.pairs]),
        ("scores.json", comparison.scores),
    ):
        temporary = folder / f"{name}.partial"
        with writing(folder):
            temporary.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(temporary, folder / name)


def print_scores(figures: dict[str, Any]) -> None:
    """Ours, the baselines, and the published figures, in percent."""
    measured = {LABELS[name]: figures[name] for name in LABELS} | figures["baselines"]
    rows = [
        (name.replace("_", " "), *(row and row[m] for m in METRICS))
        for name, row in measured.items()
    ]
    rows += [
        (f"published: {LABELS[name]} (MIMIC-III)", *(row[m] for m in METRICS))
        for name, row in published.SCORES.items()
    ]
    stemmer = figures["signature"]["stemmer"]
    title = f"{figures['n']:,} test reports, percent (ROUGE F, stemmer: {stemmer})"
    print_table(title, ("", *METRICS), rows, digits=1)


def show_examples(comparison: Comparison, n: int) -> None:
    """Side by side on the terminal, on request only: the one place where report text is shown."""
    console = Console()
    console.print(
        f"{n} examples follow. They show REPORT TEXT: mind where this output goes.", style="bold"
    )
    rows = zip(comparison.pairs, comparison.base, comparison.lora, strict=True)
    for pair, base, lora in list(rows)[:n]:
        parts = (
            ("report", pair.prompt),
            ("reference", pair.impression),
            ("base", base),
            ("LoRA", lora),
        )
        body = Text("\n").join(Text.assemble((f"{name:<10}", "bold"), text) for name, text in parts)
        console.print(Panel(body, title=Text(pair.id), title_align="left"))


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    quieten_libraries()
    config = parse(EvalConfig, argv, description=(__doc__ or "").partition("\n")[0])
    adapter = Path(config.adapter).expanduser()
    for name in ("training.toml", "adapter_config.json"):
        if not (adapter / name).is_file():
            raise ConfigError(
                f"{adapter} holds no {name}: give the adapter folder of a run (RUN/adapter)"
            )
    trained = load(TrainConfig, adapter / "training.toml")
    folder = Path(config.output_dir or adapter.parent / "evaluation")
    accelerator = Accelerator(cpu=config.cpu, mixed_precision="no")
    if accelerator.is_main_process:
        open_results(folder)
    comparison = evaluate(
        config, trained, accelerator.process_index, accelerator.num_processes, accelerator.device
    )
    if accelerator.is_main_process:
        print_scores(comparison.scores)
        write_results(folder, comparison)
        print(f"written: {folder / 'scores.json'}")
        if config.show_text:
            show_examples(comparison, config.show_text)
    accelerator.end_training()


if __name__ == "__main__":
    main()
