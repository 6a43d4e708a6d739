"""Generation speed against the peers: the same model, reports, search and threads.

    python -m bench.generate_speed --model.path BASE --data.path DIR [--precision bf16]

All sides decode the same test reports, all of them, in turn, round after round; the median counts.
`--min_new_tokens 48 --max_new_tokens 48` forces equal work; without it outputs end where they end.

    ours                 engine = torch, its own batches
    hf_b16               transformers' generate, batches of 16 in file order
    hf_sorted_best       the same, sorted by length, the best of several batch sizes
    ct2_float32, _int8   CTranslate2, the best of several batch sizes (converted beforehand)
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bench.common import BenchConfig, gemm_gflops, print_json, start
from bench.timing import now
from ct2 import Converted
from errors import exits_cleanly
from generate import DTYPES, DecodingConfig, Output, decode_hf, longest_first, stream
from model import load_base, load_tokenizer
from sources import read_pairs
from tokens import Tokens, tokenise
from tracking import print_table

HF_BATCHES = (32, 48, 64, 96, 128)
CT2_BATCHES = (16, 48, 96, 192)


@dataclass(frozen=True)
class GenerateSpeedConfig(BenchConfig):
    """What is decoded, and by whom."""

    n: int = 192
    """Test reports, evenly spaced over the lengths; 0 = all."""
    decoding: DecodingConfig = field(
        default_factory=lambda: DecodingConfig(min_new_tokens=48, max_new_tokens=48)
    )
    sides: tuple[str, ...] = ("hf_b16", "hf_sorted_best", "ct2_float32", "ct2_int8")
    """Peers to run beside ours."""


Side = Callable[[], list[Output]]


def best_of(candidates: dict[int, Side]) -> tuple[int, Side]:
    """The batch size that is fastest, each tried once after a warm-up of all."""
    times = {}
    for size, side in candidates.items():
        begin = now()
        side()
        times[size] = now() - begin
    size = min(times, key=times.__getitem__)
    return size, candidates[size]


def reports(config: GenerateSpeedConfig) -> Tokens:
    """n test reports in file order, spread evenly over the lengths."""
    split = read_pairs(config.data, "test")
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    prompts = [config.data.prefix + pair.prompt for pair in split.pairs]
    source = tokenise(prompts, tokenizer, max_tokens=config.data.max_source_tokens)
    order = longest_first(source)
    n = min(config.n or len(order), len(order))
    chosen = sorted(order[int((i + 0.5) * len(order) / n)] for i in range(n))
    return source.take(chosen)


def sides(config: GenerateSpeedConfig, source: Tokens) -> tuple[dict[str, Side], dict[str, int]]:
    """Every side as a call that decodes all reports, and the batch sizes that were found best."""
    model = load_base(config.model).eval()
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    exact = replace(config.decoding, precision="fp32")
    by_length, in_file = longest_first(source), list(range(len(source.lengths)))

    def hf(order: list[int], size: int) -> Side:
        return lambda: list(decode_hf(model, source, order, replace(exact, batch_size=size)))

    made: dict[str, Side] = {
        "ours": lambda: list(stream(model, source, by_length, config.decoding))
    }
    best: dict[str, int] = {}
    if "hf_b16" in config.sides:
        made["hf_b16"] = hf(in_file, 16)
    if "hf_sorted_best" in config.sides:
        sized = {size: hf(by_length, size) for size in HF_BATCHES}
        best["hf_sorted_best"], made["hf_sorted_best"] = best_of(sized)
    for name, precision in (("ct2_float32", "fp32"), ("ct2_int8", "int8")):
        if name in config.sides:
            converted = Converted(model, tokenizer, precision)
            sized = {
                size: lambda c=converted, size=size: [  # type: ignore[misc]
                    Output(report, ids, score, cut=False)
                    for report, ids, score in c.decode(source, by_length, exact, size)
                ]
                for size in CT2_BATCHES
            }
            best[name], made[name] = best_of(sized)
    return made, best


def agreement(a: list[Output], b: list[Output]) -> float:
    """Share of reports with the same tokens."""
    found = {output.report: output.ids for output in b}
    return sum(found[output.report] == output.ids for output in a) / len(a)


@exits_cleanly
def main() -> None:
    config = start(GenerateSpeedConfig, (__doc__ or "").partition("\n")[0])
    source = reports(config)
    made, best = sides(config, source)
    outputs = {name: side() for name, side in made.items()}  # warms everything up
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(config.rounds):
        for name, side in made.items():
            begin = now()
            side()
            seconds[name].append(now() - begin)
    n = len(source.lengths)
    speed = {name: n / statistics.median(times) for name, times in seconds.items()}
    least = config.decoding.min_new_tokens  # of special tokens that a random model may write, too
    n_tokens = {
        name: sum(max(least, len(output.ids) + (not output.cut)) for output in found)
        for name, found in outputs.items()
    }
    reference = next((name for name in ("hf_b16", "hf_sorted_best") if name in outputs), "ours")
    rows = [
        (
            name + (f" (batch {best[name]})" if name in best else ""),
            rate,
            f"{n / max(seconds[name]):.2f} to {n / min(seconds[name]):.2f}",
            rate * n_tokens[name] / n,
            100 * agreement(outputs[name], outputs[reference]),
            speed["ours"] / rate,
        )
        for name, rate in speed.items()
    ]
    columns = ("", "samples/s", "min to max", "tokens/s", f"% same as {reference}", "ours is x")
    title = (
        f"Generation: {n} reports, {torch.get_num_threads()} threads, ours in "
        f"{config.decoding.precision}, {config.decoding.num_beams} beam(s), "
        f"{config.decoding.min_new_tokens} to {config.decoding.max_new_tokens} tokens, "
        f"{config.rounds} rounds"
    )
    print_table(title, columns, rows, digits=2)
    figures: dict[str, Any] = {
        "ours": speed["ours"],
        "peers": {name: rate for name, rate in speed.items() if name != "ours"},
        "ratio": {name: speed["ours"] / rate for name, rate in speed.items() if name != "ours"},
        "identical": {name: agreement(o, outputs[reference]) for name, o in outputs.items()},
        "best_batch": best,
        "gemm_gflops": gemm_gflops(DTYPES[config.decoding.precision]),
    }
    print_json(figures)


if __name__ == "__main__":
    main()
