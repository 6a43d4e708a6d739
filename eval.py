"""Base vs LoRA adapter on N sampled test reports: generate, score, compare, report.

    python eval.py --adapter RUN/adapter [--data.path DIR] --n 1000 [--show_text 3]
    accelerate launch eval.py --adapter RUN/adapter ...                on several processes
    python eval.py --compare RUN_A RUN_B                               two evaluated runs, paired

Base and adapter see the same reports, the same tokens, the same order. The adapter is merged in
fp32. Fully tuned models have no base beside them and are not compared here.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from adapter_files import read_settings
from allocator import keep_freed_memory
from aside import Aside
from config import load, parse
from corpus.pairs import Pair, has_split
from data import DataConfig, tell_skipped
from dry_run import dry_run
from errors import ConfigError, DataError, exits_cleanly
from generate import DecodingConfig, Output, generate, to_text
from model import ModelConfig, T5Model, load_adapter, load_base, load_tokenizer, merged
from quiet import quieten_libraries
from recipe import TrainConfig
from results import (
    LABELS,
    open_results,
    print_run_comparison,
    print_scores,
    remove_predictions,
    show_examples,
    write_json,
    write_predictions,
    write_report,
    write_results,
)
from scoring import baselines, faithfulness
from scoring.comparison import Evaluation, Inputs, compare, compare_runs
from scoring.guard_rails import Limits
from scoring.records import read_per_report
from scoring.rouge_bleu import scores
from sources import SourceConfig, read_pairs
from tokens import Tokens, tokenise

Trained = TypeVar("Trained", DataConfig, ModelConfig)
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")


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
    """Folder with the test split in any format of training, or a hub data set id; none = the one
    trained on."""
    revision: str | None = None
    """Hub commit or tag of the data set; none = as in training, with a path of your own: main."""
    source_column: str | None = None
    """Column of the findings; none = as in training."""
    target_column: str | None = None
    """Column of the impression; none = as in training."""
    id_column: str | None = None
    """Column of the id; none = as in training."""
    group_column: str | None = None
    """Column of the group; none = as in training."""
    patient_column: str | None = None
    """Column of the patient; none = as in training."""
    on_bad_row: Literal["auto", "error", "skip"] | None = None
    """Empty, null or broken rows: stop, or skip and count; none = as in training."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DecodingConfig):
    """One comparison of a base with its adapter."""

    adapter: str
    """Adapter folder of a run (RUN/adapter); a fully tuned RUN/model cannot be compared."""
    n: int = 1000
    """Test reports to sample; 0 or more than there are = all."""
    seed: int = 0
    """Seed of the sample, of the bootstrap and of the random swaps."""
    stemmer: bool = True
    """Porter stemmer in ROUGE (rouge-score's use_stemmer)."""
    n_resamples: int = 10_000
    """Bootstrap resamples and random swaps behind intervals and p values."""
    show_text: int = 0
    """Print this many examples side by side: report, reference, base, LoRA (shows report text, and
    puts the cases' texts into report.html)."""
    save_predictions: bool = False
    """Also write predictions.jsonl (report text, readable by its owner only), which
    scoring.memorisation reads."""
    output_dir: str | None = None
    """Folder of scores.json, report.html and more; none = evaluation/ beside the adapter."""
    cpu: bool = False
    """Decode on the CPU even if a GPU is there."""
    dry_run: bool = False
    """Only show which reports would be read (counts and columns, no text)."""
    data: EvalData = field(default_factory=EvalData)
    model: BaseConfig = field(default_factory=BaseConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n", 0), ("seed", 0), ("show_text", 0), ("n_resamples", 100)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class CompareConfig:
    """Two runs, evaluated before on the same test reports."""

    run_a: str
    """Run folder (or its evaluation folder, or a per_report.jsonl)."""
    run_b: str
    """The run that a is compared with."""
    system: str = "lora"
    """What is compared: lora, base, or a baseline."""
    n_resamples: int = 10_000
    """Bootstrap resamples and random swaps behind intervals and p values."""
    seed: int = 0
    """Seed of both."""
    output: str | None = None
    """Also write the figures to this JSON file."""


def as_trained(given: EvalData | BaseConfig, trained: Trained) -> Trained:
    """The trained run's settings, but for what is given. A revision and further sources stay with
    their path."""
    values = {name: value for name, value in asdict(given).items() if value is not None}
    if values.get("path", trained.path) != trained.path:
        alone = {"revision": None, "mix": (), "weights": ()}
        values = {name: none for name, none in alone.items() if hasattr(trained, name)} | values
    return replace(trained, **values)


def training_pairs(config: SourceConfig) -> list[tuple[str, str]] | None:
    """(findings, impression), what baselines are made from; none where there is no training
    split."""
    try:
        return [(pair.prompt, pair.impression) for pair in read_pairs(config, "train").pairs]
    except DataError:
        if has_split(config.path, "train"):
            raise  # it is there, and broken
        return None


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
    decoding: DecodingConfig,
    rank: int = 0,
    n_ranks: int = 1,
) -> dict[str, float]:
    """ROUGE and BLEU (percent) of outputs on n sampled reports; the same figures on every rank."""
    chosen = sample_indices(len(references), n, seed)
    outputs = generate(model, source.take(chosen), decoding, rank=rank, n_ranks=n_ranks)
    predictions = to_text(tokenizer, [output.ids for output in outputs])
    return scores(predictions, [references[i] for i in chosen])


@dataclass(frozen=True)
class Generated:
    """What base and adapter wrote for the sampled reports. Texts: nothing here goes to disk."""

    pairs: list[Pair]
    source: Tokens
    texts: dict[str, list[str]]
    n_cut: dict[str, int]  # outputs that ran into max_new_tokens
    n_long_references: int  # of more than max_new_tokens tokens
    provenance: dict[str, str]


def generate_both(
    config: EvalConfig, trained: TrainConfig, rank: int = 0, n_ranks: int = 1, device: Any = "cpu"
) -> Generated:
    """Outputs of base and adapter on the sampled test reports, the same on every rank."""
    data, base_config = sources_of(config, trained)
    test = read_pairs(data, "test")
    if rank == 0:
        tell_skipped(test.name, test.n_rows, test.skipped, len(test.skipped))
    pairs = [test.pairs[i] for i in sample_indices(len(test.pairs), config.n, config.seed)]
    tokenizer = load_tokenizer(base_config.path, base_config.revision)
    prompts = [trained.data.prefix + pair.prompt for pair in pairs]
    source = tokenise(prompts, tokenizer, max_tokens=trained.data.max_source_tokens)
    references = [pair.impression for pair in pairs]
    reference_tokens = tokenise(references, tokenizer, max_tokens=config.max_new_tokens + 1)
    base = load_base(base_config).to(device)
    provenance = {"base": base_config.path, "base_sha256": _weights_sha256(base)}
    outputs: dict[str, list[Output]] = {}
    for name, label in LABELS.items():
        model = base if name == "base" else merged(load_adapter(base, config.adapter))
        outputs[name] = generate(
            model,
            source,
            config,
            tokenizer=tokenizer,
            rank=rank,
            n_ranks=n_ranks,
            progress=f"{label}: generating",
        )
    weights = Path(config.adapter).expanduser() / "adapter_model.safetensors"
    provenance["adapter_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    rows = [[pair.id, pair.prompt, pair.impression] for pair in pairs]
    provenance["data"] = data.path
    provenance["data_sha256"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    provenance |= {name: version(name) for name in LIBRARIES}
    return Generated(
        pairs,
        source,
        {n: to_text(tokenizer, [output.ids for output in found]) for n, found in outputs.items()},
        {name: sum(output.cut for output in found) for name, found in outputs.items()},
        int((reference_tokens.lengths > config.max_new_tokens).sum()),
        provenance,
    )


def sources_of(config: EvalConfig, trained: TrainConfig) -> tuple[DataConfig, ModelConfig]:
    """Where the reports and the base come from."""
    return as_trained(config.data, trained.data), as_trained(config.model, trained.model)


def _weights_sha256(model: torch.nn.Module) -> str:
    """Of the weights in memory, wherever they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def evaluate(
    config: EvalConfig,
    generated: Generated,
    trained: TrainConfig,
    ask: Callable[..., Any] = partial,
) -> tuple[Evaluation, dict[str, list[str]]]:
    """All figures of scores.json, and every system's outputs; needs no model. `ask` may run a part
    elsewhere meanwhile."""
    pairs = generated.pairs
    prompts, references = [p.prompt for p in pairs], [p.impression for p in pairs]
    written = {**generated.texts, "reference": references}
    marked = ask(faithfulness.unsupported_by, prompts, written)
    train = training_pairs(sources_of(config, trained)[0])
    outputs = {**generated.texts, **baselines.outputs(prompts, references, train)}
    limits = Limits(
        max_new_tokens=config.max_new_tokens,
        long_references=generated.n_long_references,
        unfinished=generated.n_cut,
        max_source_tokens=trained.data.max_source_tokens,
        truncated_sources=generated.source.n_truncated,
    )
    groups = [pair.group or None for pair in pairs]
    inputs = Inputs([p.id for p in pairs], groups, prompts, references, outputs, train, limits)
    evaluation = compare(
        inputs, stemmer=config.stemmer, seed=config.seed, n_resamples=config.n_resamples
    )
    by_system = {n: faithfulness.rates(flags, config.seed) for n, flags in marked().items()}
    figures = evaluation.figures
    figures["faithfulness"] = {
        check: {name: found[check] for name, found in by_system.items()}
        for check in faithfulness.CHECKS
    }
    names = [f.name for f in fields(DecodingConfig) if f.name not in ("batch_size", "cache_mib")]
    search = "greedy" if config.num_beams == 1 else "beams"
    figures["decoding"] = {"search": search} | {name: getattr(config, name) for name in names}
    figures["provenance"] = generated.provenance
    figures["n_truncated_sources"] = generated.source.n_truncated
    return evaluation, outputs


def compare_main(runs: Sequence[str]) -> None:
    """`--compare RUN_A RUN_B`: the paired table of two runs that were evaluated before."""
    if len(runs) < 2 or any(run.startswith("-") for run in runs[:2]):
        raise ConfigError("--compare needs two evaluated runs: eval.py --compare RUN_A RUN_B")
    flags = [f"--run_a={runs[0]}", f"--run_b={runs[1]}", *runs[2:]]
    config = parse(CompareConfig, flags, description="Two evaluated runs, paired")
    a, b = (_records(Path(run).expanduser()) for run in (config.run_a, config.run_b))
    figures = compare_runs(
        read_per_report(a),
        read_per_report(b),
        system=config.system,
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    print(f"a = {config.run_a}, b = {config.run_b}, system {config.system}")
    print_run_comparison(figures)
    if config.output:
        write_json(Path(config.output), figures)


def _records(run: Path) -> Path:
    return run / "evaluation" if (run / "evaluation").is_dir() else run


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    start = time.perf_counter()
    quieten_libraries()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--compare"]:
        return compare_main(argv[1:])
    config = parse(EvalConfig, argv, description=(__doc__ or "").partition("\n")[0])
    adapter = Path(config.adapter).expanduser()
    for name in ("training.toml", "adapter_config.json"):
        if not (adapter / name).is_file():
            raise ConfigError(
                f"{adapter} holds no {name}: give the adapter folder of a run (RUN/adapter)"
            )
    trained = load(TrainConfig, adapter / "training.toml")
    if config.dry_run:
        return dry_run(as_trained(config.data, trained.data), ["test"])
    read_settings(adapter)  # refuses it before hours of decoding
    folder = Path(config.output_dir or adapter.parent / "evaluation")
    first = os.environ.get("RANK", "0") == "0"
    ask = Aside(faithfulness.prepare).ask if first else partial  # spaCy loads meanwhile
    accelerator = Accelerator(cpu=config.cpu, mixed_precision="no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.is_main_process:
        open_results(folder)
    generation = time.perf_counter()
    generated = generate_both(
        config, trained, accelerator.process_index, accelerator.num_processes, accelerator.device
    )
    generation = time.perf_counter() - generation
    if accelerator.is_main_process:
        evaluation, outputs = evaluate(config, generated, trained, ask)
        print_scores(evaluation.figures)
        timing = {"generation_s": generation, "all_s": time.perf_counter() - start}
        ids = [pair.id for pair in generated.pairs]
        write_report(
            folder,
            evaluation,
            generated.pairs,
            outputs,
            run=adapter.parent,
            settings=_settings(config, trained),
            show_text=config.show_text > 0,
        )
        timing["all_s"] = time.perf_counter() - start
        if config.save_predictions:
            write_predictions(folder, generated.pairs, generated.texts)
        else:
            remove_predictions(folder)
        write_results(folder, evaluation, ids, timing)
        print(f"written: {folder / 'scores.json'} and {folder / 'report.html'}")
        if config.show_text:
            show_examples(generated.pairs, outputs, config.show_text)
    accelerator.end_training()


def _settings(config: EvalConfig, trained: TrainConfig) -> dict[str, str]:
    """What the page lists: settings of the evaluation and of the training, one line each."""
    told = {f"evaluation.{name}": str(value) for name, value in asdict(config).items()}
    return told | {f"training.{name}": str(value) for name, value in asdict(trained).items()}


if __name__ == "__main__":
    main()
