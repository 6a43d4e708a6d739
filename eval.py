"""Base vs LoRA adapter on N sampled test reports: generate, score, compare, report.

    python eval.py --adapter RUN/adapter [--data.path DIR] --n 1000 [--show_text 3]
    python eval.py --adapter RUN/model ...                a fully tuned or merged model instead
    accelerate launch eval.py --adapter RUN/adapter ...                on several processes
    report2impression compare RUN_A RUN_B                              two evaluated runs, paired

Base and adapter see the same reports, the same tokens, the same order. The adapter is merged in
fp32. A whole model is compared with the base that it came from, or with any --model.path; that one
gets tokens of its own where its tokenizer is another one.
"""

from report2impression.program.errors import exits_cleanly
from report2impression.program.process import Aside, keep_freed_memory, load_quickly, loaded
from report2impression.runs.settings import evaluation_settings

if __name__ == "__main__":
    evaluation_settings()  # --help, mistakes and --dry_run are answered before torch is loaded
    load_quickly()

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from report2impression.batching.prompts import Prompts
from report2impression.batching.signs import Signs, Spelling, named, refuse_unknown
from report2impression.batching.tokens import Tokens, tokenise, tokenizer_digest
from report2impression.decoding.generate import generate, to_text
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.extracting import agreement
from report2impression.program.errors import DataError
from report2impression.reading.options import DataConfig, SourceConfig
from report2impression.reading.pairs import Pair, Split, has_split
from report2impression.reading.sources import read_pairs, sample_indices, tell_skipped
from report2impression.reporting import plots
from report2impression.reporting.results import (
    LABELS,
    open_results,
    print_scores,
    remove_predictions,
    show_examples,
    write_predictions,
    write_report,
    write_results,
)
from report2impression.runs.evaluation import EvalConfig, sources_of
from report2impression.runs.recipe import TrainConfig, is_published
from report2impression.scoring import baselines
from report2impression.scoring.comparison import Ahead, Evaluation, Inputs, ahead, compare
from report2impression.scoring.faithfulness import checks as faithfulness
from report2impression.scoring.guard_rails import Limits
from report2impression.weights.folders import find_trained
from report2impression.weights.loading import load_base
from report2impression.weights.tokenizer import load_tokenizer
from report2impression.weights.trained import (
    check_trained,
    trained_model,
    trained_tokenizer,
    weights_sha256,
)

LIBRARIES = ("torch", "transformers", "peft", "tokenizers")


def training_pairs(
    config: SourceConfig, spelling: Spelling | None = None
) -> list[tuple[str, str]] | None:
    """(findings, impression), what baselines are made from; none where there is no training
    split."""
    try:
        pairs = read_pairs(config, "train").pairs
        pairs = [spelling.pair(pair) for pair in pairs] if spelling is not None else pairs
        return [(pair.prompt, pair.impression) for pair in pairs]
    except DataError:
        if has_split(config.path, "train"):
            raise  # it is there, and broken
        return None


@dataclass(frozen=True)
class Sample:
    """The test reports, as texts and as tokens. Nothing here goes to disk."""

    pairs: list[Pair]
    source: Tokens
    n_long_references: int  # of more than max_new_tokens tokens
    n_unknown: dict[str, int]  # tokens of sources and references
    signs: dict[str, str]  # the commonest of each, by code points
    spelling: Spelling | None

    @property
    def prompts(self) -> list[str]:
        return [pair.prompt for pair in self.pairs]

    @property
    def references(self) -> list[str]:
        return [pair.impression for pair in self.pairs]

    def inputs(self, outputs: dict[str, list[str]], *more: Any) -> Inputs:
        """Of a comparison."""
        ids, groups = [p.id for p in self.pairs], [p.group or None for p in self.pairs]
        return Inputs(ids, groups, self.prompts, self.references, outputs, *more)


def sample(
    config: EvalConfig, data: DataConfig, test: Split, tokenizer: PreTrainedTokenizerBase
) -> Sample:
    """N test reports, written as in training. DataError if the tokenizer knows too little."""
    pairs = [test.pairs[i] for i in sample_indices(len(test.pairs), config.n, config.seed)]
    prompts = Prompts(tokenizer, data)
    spelling = prompts.spelling
    pairs = [spelling.pair(pair) for pair in pairs] if spelling is not None else pairs
    findings, references = [p.prompt for p in pairs], [p.impression for p in pairs]
    source = prompts.tokens(findings)
    target = tokenise(references, tokenizer, max_tokens=config.max_new_tokens + 1)
    sides, signs = {"source": source, "reference": target}, {}
    if source.n_unknown or target.n_unknown:
        texts = {"source": prompts.written(findings), "reference": references}
        signs = {side: named(Signs(tokenizer).unknown(texts[side])) for side in sides}
        for side, tokens in () if data.allow_unknown else sides.items():
            n_tokens, stop = int(tokens.offsets[-1]), data.normalise == "stop"
            refuse_unknown(f"test {side}", tokens.n_unknown, n_tokens, signs[side], stop=stop)
    n_long = int((target.lengths > config.max_new_tokens).sum())
    n_unknown = {side: tokens.n_unknown for side, tokens in sides.items()}
    return Sample(pairs, source, n_long, n_unknown, signs, spelling)


def made_ahead(
    config: EvalConfig, data: SourceConfig, reports: Sample
) -> tuple[dict[str, list[str]], Ahead]:
    """Outputs of the baselines, and what else of the comparison needs no model."""
    train = training_pairs(data, reports.spelling)
    made = baselines.outputs(reports.prompts, reports.references, train)
    return made, ahead(reports.inputs(made, train), stemmer=config.stemmer, tokens=config.tokens)


class Meanwhile:
    """What needs no model, or one system's texts only, while the next system writes; `ask` may do
    it elsewhere."""

    def __init__(
        self, config: EvalConfig, data: SourceConfig, ask: Callable[..., Any] = partial
    ) -> None:
        self._ask, self._made_ahead = ask, partial(made_ahead, config, data)
        self.unsupported: dict[str, Callable[[], Any]] = {}  # by system
        self.agreement: dict[str, Callable[[], Any]] = {}

    def sampled(self, reports: Sample) -> None:
        self.ahead = self._ask(self._made_ahead, reports)
        self.wrote("reference", reports.references, reports)
        self._ask(plots.prepare)

    def wrote(self, system: str, texts: list[str], reports: Sample) -> None:
        self.unsupported[system] = self._ask(faithfulness.unsupported_rates, reports.prompts, texts)
        if system in LABELS:
            one = {system: texts}
            self.agreement[system] = self._ask(agreement.counts_by, one, reports.references)


@dataclass(frozen=True)
class Generated:
    """What base and adapter wrote for the sampled reports. Texts: nothing here goes to disk."""

    sample: Sample
    texts: dict[str, list[str]]
    n_cut: dict[str, int]  # outputs that ran into max_new_tokens
    n_unknown: dict[str, int]  # tokens in them
    provenance: dict[str, str]


def generate_both(
    config: EvalConfig,
    trained: TrainConfig,
    rank: int = 0,
    n_ranks: int = 1,
    device: Any = "cpu",
    meanwhile: Meanwhile | None = None,
) -> Generated:
    """Outputs of base and adapter on the sampled test reports, the same on every rank; `meanwhile`
    is told as soon as there are some."""
    data, base_config = sources_of(config, trained)
    found = find_trained(config.adapter)
    test = read_pairs(data, "test")
    if rank == 0:
        tell_skipped(test.name, test.n_rows, test.skipped, len(test.skipped))
    tokenizer = trained_tokenizer(found, base_config)
    reports = sample(config, data, test, tokenizer)
    if meanwhile:
        meanwhile.sampled(reports)
    sources = {"base": reports.source, "lora": reports.source}
    base_tokenizer = tokenizer
    if not found.is_adapter:  # it may have got a vocabulary of its own
        base_tokenizer = load_tokenizer(base_config.path, base_config.revision)
    if tokenizer_digest(base_tokenizer) != tokenizer_digest(tokenizer):
        prompts = Prompts(base_tokenizer, data)
        findings = [prompts.spelled(pair.prompt) for pair in reports.pairs]
        sources["base"] = prompts.tokens(findings)
    tokenizers = {"base": base_tokenizer, "lora": tokenizer}
    base = load_base(base_config).to(device)
    provenance = {"base": base_config.path, "base_sha256": _weights_sha256(base)}
    outputs: dict[str, list[Output]] = {}
    texts: dict[str, list[str]] = {}
    loaded()
    for name, label in LABELS.items():
        model = base if name == "base" else trained_model(found, base_config, base).to(device)
        outputs[name] = generate(
            model,
            sources[name],
            config,
            tokenizer=tokenizers[name],
            rank=rank,
            n_ranks=n_ranks,
            progress=f"{label}: generating",
        )
        texts[name] = to_text(tokenizers[name], [output.ids for output in outputs[name]])
        if meanwhile:
            meanwhile.wrote(name, texts[name], reports)
    kind = "adapter" if found.is_adapter else "model"
    provenance[f"{kind}_sha256"] = weights_sha256(found)
    provenance |= {"data": data.path, "data_sha256": _pairs_sha256(reports.pairs)}
    provenance |= {name: version(name) for name in LIBRARIES}
    unknown = {name: tokenizers[name].unk_token_id for name in outputs}
    ids = {name: [output.ids for output in some] for name, some in outputs.items()}
    return Generated(
        reports,
        texts,
        {name: sum(output.cut for output in some) for name, some in outputs.items()},
        {name: sum(row.count(unknown[name]) for row in some) for name, some in ids.items()},
        provenance,
    )


def _pairs_sha256(pairs: Sequence[Pair]) -> str:
    rows = [[pair.id, pair.prompt, pair.impression] for pair in pairs]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


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
    meanwhile: Meanwhile,
) -> tuple[Evaluation, dict[str, list[str]]]:
    """All figures of scores.json, and every system's outputs; needs no model."""
    reports = generated.sample
    made, known = meanwhile.ahead()
    outputs = {**generated.texts, **made}
    limits = Limits(
        max_new_tokens=config.max_new_tokens,
        long_references=reports.n_long_references,
        unfinished=generated.n_cut,
        max_source_tokens=trained.data.max_source_tokens,
        truncated_sources=reports.source.n_truncated,
        unknown_tokens={**reports.n_unknown, **generated.n_unknown},
        unknown_signs=reports.signs,
    )
    evaluation = compare(
        reports.inputs(outputs, None, limits),
        known,
        stemmer=config.stemmer,
        tokens=config.tokens,
        seed=config.seed,
        n_resamples=config.n_resamples,
    )
    rates = {name: meanwhile.unsupported[name]() for name in (*generated.texts, "reference")}
    agreed = {name: meanwhile.agreement[name]()[name] for name in generated.texts}
    figures = evaluation.figures
    figures["faithfulness"] = {
        check: {name: found[check] for name, found in rates.items()}
        for check in faithfulness.CHECKS
    }
    how = {"seed": config.seed, "n_resamples": config.n_resamples}
    figures["structured"] = agreement.figures(agreed, **how)
    names = [f.name for f in fields(DecodingConfig) if f.name not in ("batch_size", "cache_mib")]
    search = "greedy" if config.num_beams == 1 else "beams"
    figures["decoding"] = {"search": search} | {name: getattr(config, name) for name in names}
    figures["provenance"] = generated.provenance
    figures["n_truncated_sources"] = reports.source.n_truncated
    return evaluation, outputs


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    start = time.perf_counter()
    config, trained = evaluation_settings(argv)
    adapter = Path(config.adapter).expanduser()
    found = find_trained(adapter)
    check_trained(found)  # refuses it before hours of decoding
    folder = Path(config.output_dir or adapter.parent / "evaluation")
    first = os.environ.get("RANK", "0") == "0"
    ask = Aside(faithfulness.prepare).ask if first else partial  # spaCy loads there
    accelerator = Accelerator(cpu=config.cpu, mixed_precision="no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if accelerator.is_main_process:
        open_results(folder)
    generation = time.perf_counter()
    meanwhile = Meanwhile(config, sources_of(config, trained)[0], ask) if first else None
    generated = generate_both(
        config,
        trained,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        meanwhile,
    )
    generation = time.perf_counter() - generation
    if meanwhile:
        evaluation, outputs = evaluate(config, generated, trained, meanwhile)
        beside_published = is_published(*sources_of(config, trained))
        print_scores(evaluation.figures, beside_published=beside_published)
        if not found.is_adapter:
            print(f"what is named LoRA here is the whole model in {adapter}")
        timing = {"generation_s": generation, "all_s": time.perf_counter() - start}
        ids = [pair.id for pair in generated.sample.pairs]
        write_report(
            folder,
            evaluation,
            generated.sample.pairs,
            outputs,
            run=adapter.parent,
            settings=_settings(config, trained),
            show_text=config.show_text > 0,
            beside_published=beside_published,
            ask=ask,
        )
        timing["all_s"] = time.perf_counter() - start
        if config.save_predictions:
            write_predictions(folder, generated.sample.pairs, generated.texts)
        else:
            remove_predictions(folder)
        write_results(folder, evaluation, ids, timing)
        print(f"written: {folder / 'scores.json'} and {folder / 'report.html'}")
        if config.show_text:
            show_examples(generated.sample.pairs, outputs, config.show_text)
    accelerator.end_training()


def _settings(config: EvalConfig, trained: TrainConfig) -> dict[str, str]:
    """What the page lists: settings of the evaluation and of the training, one line each."""
    told = {f"evaluation.{name}": str(value) for name, value in asdict(config).items()}
    return told | {f"training.{name}": str(value) for name, value in asdict(trained).items()}


if __name__ == "__main__":
    main()
