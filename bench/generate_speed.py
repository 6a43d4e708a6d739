"""Generation speed against the peers: the same model, reports, search and threads.

    python -m bench.generate_speed --model.path BASE --data.path DIR [--decoding.precision bf16]

All sides decode the same test reports, all of them, in turn, round after round; the median counts.
Weights are made ready beforehand on all sides (merged, in the order or the 8 bits that they are
multiplied in).
`--decoding.min_new_tokens 48 --decoding.max_new_tokens 48` forces equal work;
without it outputs end where they end.

    ours                 engine = torch, its own batches; equal reports are decoded once
    ours_each            the same, every report by itself, as the peers do
    hf_b16               transformers' generate, batches of 16 in file order
    hf_sorted_best       the same, sorted by length, the best of several batch sizes
    ct2_float32, _int8   CTranslate2, the best of several batch sizes (converted beforehand)
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from bench.common import BenchConfig, gemm_gflops, known, print_json, start
from bench.machine import machine
from bench.timing import in_turn, timed
from report2impression.batching.tokens import Tokens, tokenise
from report2impression.decoding.cache import Decoder
from report2impression.decoding.ct2 import Converted
from report2impression.decoding.generate import Generator, alike, longest_first
from report2impression.decoding.hf import decode_hf
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.decoding.places import decode
from report2impression.engine.precision import DTYPES
from report2impression.program.errors import exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.sources import read_pairs
from report2impression.weights.loading import load_base
from report2impression.weights.tokenizer import load_tokenizer

HF_BATCHES = (32, 48, 64, 96, 128)
CT2_BATCHES = (16, 48, 96, 192)
PEERS = ("hf_b16", "hf_sorted_best", "ct2_float32", "ct2_int8")
N_TRIED = 256  # at most so many reports, on which batch sizes are compared


@dataclass(frozen=True)
class GenerateSpeedConfig(BenchConfig):
    """What is decoded, and by whom."""

    n: int = 64
    """Test reports, evenly spaced over the lengths; 0 = all."""
    decoding: DecodingConfig = field(
        default_factory=lambda: DecodingConfig(min_new_tokens=48, max_new_tokens=48)
    )
    sides: tuple[str, ...] = PEERS
    """Peers to run beside ours."""


Side = Callable[[], list[Output]]


def best_of(candidates: Mapping[int, Callable[[list[int]], list[Output]]], order: list[int]) -> int:
    """The batch size that is fastest on some of the reports, evenly spaced, each tried once."""
    some, times = order[:: -(-len(order) // N_TRIED)], {}
    next(iter(candidates.values()))(some)  # warms up
    different = {min(size, len(some)): size for size in sorted(candidates, reverse=True)}
    for size in different.values():
        times[size] = timed(partial(candidates[size], some))()
    return min(times, key=times.__getitem__)


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_base(config.model).eval().to(device)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    exact = replace(config.decoding, precision="fp32")
    by_length, in_file = longest_first(source), list(range(len(source.lengths)))

    decoding = config.decoding
    generator, decoder = Generator(model, decoding), Decoder(model, decoding.precision)

    def each() -> list[Output]:
        return list(decode(decoder, source, by_length, decoding))

    def hf(size: int, order: list[int]) -> list[Output]:
        return list(decode_hf(model, source, order, replace(exact, batch_size=size)))

    def ct2(converted: Converted, size: int, order: list[int]) -> list[Output]:
        return list(converted.decode(source, order, replace(exact, batch_size=size)))

    made: dict[str, Side] = {
        "ours": lambda: list(generator.stream(source, by_length)),
        "ours_each": each,
    }
    best: dict[str, int] = {}
    if "hf_b16" in config.sides:
        made["hf_b16"] = partial(hf, 16, in_file)
    sized = {"hf_sorted_best": {size: partial(hf, size) for size in HF_BATCHES}}
    for name, precision in (("ct2_float32", "fp32"), ("ct2_int8", "int8")):
        if name in config.sides:
            converted = Converted(model, tokenizer, precision)
            sized[name] = {size: partial(ct2, converted, size) for size in CT2_BATCHES}
    for name in [name for name in sized if name in config.sides]:
        best[name] = best_of(sized[name], by_length)
        made[name] = partial(sized[name][best[name]], by_length)
    return made, best


def agreement(a: list[Output], b: list[Output]) -> float:
    """Share of reports with the same tokens."""
    found = {output.report: output.ids for output in b}
    return sum(found[output.report] == output.ids for output in a) / len(a)


@exits_cleanly
def main() -> None:
    config = start(GenerateSpeedConfig, (__doc__ or "").partition("\n")[0])
    known(config.sides, PEERS)
    source = reports(config)
    made, best = sides(config, source)
    outputs: dict[str, list[Output]] = {}

    def keep(name: str) -> None:
        outputs[name] = made[name]()

    works = {name: timed(partial(keep, name)) for name in made}
    seconds = in_turn(works, config.rounds, warm_up=1)
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
            speed["ours_each"] / rate,
        )
        for name, rate in speed.items()
    ]
    n_distinct = len(alike(source, range(n)))
    columns = (
        *("", "samples/s", "min to max", "tokens/s"),
        *(f"% same as {reference}", "ours is x", "each is x"),
    )
    title = (
        f"Generation: {n} reports ({n_distinct} different), {torch.get_num_threads()} threads, "
        f"ours in {config.decoding.precision}, {config.decoding.num_beams} beam(s), "
        f"{config.decoding.min_new_tokens} to {config.decoding.max_new_tokens} tokens, "
        f"{config.rounds} rounds"
    )
    print_table(title, columns, rows, digits=2)
    peers = {name: rate for name, rate in speed.items() if not name.startswith("ours")}
    figures: dict[str, Any] = {
        "ours": speed["ours"],
        "ours_each": speed["ours_each"],
        "peers": peers,
        "ratio": {name: speed["ours"] / rate for name, rate in peers.items()},
        "ratio_each": {name: speed["ours_each"] / rate for name, rate in peers.items()},
        "identical": {name: agreement(o, outputs[reference]) for name, o in outputs.items()},
        "best_batch": best,
        "min_max": {name: [n / max(x), n / min(x)] for name, x in seconds.items()},
        "machine": machine(),
        "gemm_gflops": gemm_gflops(DTYPES.get(config.decoding.precision, torch.float32)),
    }
    print_json(figures)


if __name__ == "__main__":
    main()
