"""The benchmarks run on the tiny base, count what they claim to count, and end with JSON."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import T5Config

from bench.common import BenchConfig, evenly
from bench.corpora import large as corpora
from bench.flops import StepFlops
from bench.gpu import PARTS, markdown, rows_of
from bench.peers import InGivenOrder
from bench.reliability import fault_runs, soak
from bench.reliability.disk_faults import in_a_child
from bench.reliability.run_faults import Place
from bench.timing import in_turn
from report2impression.engine.fast import FastEngine
from report2impression.engine.precision import cpu_multiplies_bf16
from report2impression.reading.options import DataConfig
from report2impression.runs import tracking
from report2impression.weights.options import ModelConfig
from tests.programs import forked
from tests.test_fast_t5 import adapted_t5, packed
from tests.tiny import Tiny, one_line, python


def last_line(tiny: Tiny, name: str, *flags: str, run: Any = forked) -> dict[str, Any]:
    common = (f"--data.path={tiny.data}", f"--model.path={tiny.base}", "--threads=1", "--steps=2")
    small = (f"--data.cache_dir={tiny.cache}", "--rounds=1", "--micro_batch_size=8", "--lora.r=4")
    done = run("-m", f"bench.{name}", *common, *small, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_train_speed(tiny: Tiny) -> None:
    found = last_line(tiny, "train_speed")
    half = {"trainer_bf16_grouped"} if cpu_multiplies_bf16() else set()
    assert set(found["peers"]) - half == {
        "trainer_fp32_random",
        "trainer_fp32_grouped",
        "no_trainer_loop",
    }
    assert set(found["ratio"]) == set(found["peers"])
    assert found["machine"]["threads"] == 1 and found["machine"]["versions"]["torch"]
    ours = found["ours"]
    assert ours["samples_per_s"] > 0 and ours["peak_share"] > 0
    for name, speed in found["peers"].items():
        assert found["ratio"][name] == pytest.approx(ours["samples_per_s"] / speed)


def test_every_side_runs_once_a_round_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = in_turn({name: partial(side, name) for name in "ab"}, 2, warm_up=1)
    assert calls == [*"ababab"] and found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_peer_that_is_none_is_named(tiny: Tiny) -> None:
    for name in ("train_speed", "generate_speed"):
        done = forked("-m", f"bench.{name}", '--sides=["ct3"]')
        assert done.returncode == 2 and "ct3 is none of" in one_line(done.stderr)


def test_extraction(tiny: Tiny, trained: Path) -> None:
    flags = [f"--adapter={trained / 'adapter'}", f"--data.path={tiny.data}", "--max_new_tokens=12"]
    done = forked("-m", "bench.extraction", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] == found["n"] == 13
    assert 0 < found["generation_s"] < found["all_s"] and 0 < found["outside"] < 1


def test_padding(tiny: Tiny) -> None:
    found = last_line(tiny, "padding")
    over = found["over_ideal"]
    assert 1.0 <= over["ours"] <= over["ours_padded"] <= over["random"] <= over["fixed"]
    assert set(found["rank_imbalance"]) == {"2", "4", "8"}


@pytest.mark.parametrize("flags", [(), ("--drawn=500",)])
def test_graphs(tiny: Tiny, flags: tuple[str, ...]) -> None:
    found = last_line(tiny, "graphs", *flags)
    first, later = found["epochs"]
    assert 1 <= found["graphs"] <= 32 and first["held"] == 1 and 0.8 < later["held"] <= 1
    for epoch in (first, later):
        assert 0 < epoch["tokens_without"] <= epoch["tokens_with"]


def test_memory_of_one_row(tiny: Tiny) -> None:
    found = last_line(tiny, "memory", "--rows=ours_fp32")["ours_fp32"]
    assert found["peak"] >= found["libraries"] > 0


@pytest.mark.slow
def test_memory_of_one_row_in_a_fresh_process(tiny: Tiny) -> None:
    """Forks share the libraries' pages; a row's own process, as a user starts it, does not."""
    found = last_line(tiny, "memory", "--rows=ours_fp32", run=python)["ours_fp32"]
    assert found["peak"] >= found["libraries"] > 0


def test_profile_accounts_for_the_whole_step(tiny: Tiny, tmp_path: Path) -> None:
    found = last_line(tiny, "profile", f"--trace={tmp_path / 'trace.json'}")
    assert sum(found["parts"].values()) == pytest.approx(1.0)
    assert found["parts"]["matrix products"] > 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_scaling(tiny: Tiny) -> None:
    """Steps only: the corpora are below, each process costs seconds."""
    found = last_line(
        tiny, "scaling", "--processes=false", "--largest_corpus=0", "--tokenised_reports=0"
    )
    assert set(found["step_ms_per_sample"]) == {"batch", "source tokens", "target tokens"}
    assert found["corpus"] == found["tokenising"] == []


def bench_config(tiny: Tiny) -> BenchConfig:
    data = DataConfig(path=str(tiny.data), cache_dir=str(tiny.cache))
    return BenchConfig(data=data, model=ModelConfig(path=str(tiny.base)))


def test_a_made_up_corpus_is_in_the_files_that_training_reads(tiny: Tiny, tmp_path: Path) -> None:
    n = corpora.CHUNK + 7
    config = bench_config(tiny)
    found = corpora.corpus(n, config, tmp_path)
    # int32 ids, a name, and int64 offsets of names, impressions, sources and targets
    assert found["cache_bytes_per_report"] == pytest.approx(4 * (125 + 38) + 10 + 4 * 8, rel=0.05)
    assert min(found[key] for key in ("read_reports_per_s", "plan_peak_mib", "write_s")) > 0
    dataset = corpora.store(tmp_path, n, config)
    assert len(dataset) == n and dataset.ids[n - 1] == f"train-{n - 1}"
    assert dataset.source_lengths.mean() == pytest.approx(125, rel=0.05)
    assert dataset.source.ids.min() >= 3 and dataset.source.ids.max() < corpora.VOCABULARY


def test_the_given_reports_are_tokenised_again_and_again(tiny: Tiny, tmp_path: Path) -> None:
    found = corpora.tokenising(1000, bench_config(tiny), tmp_path)
    rates = ("survey_reports_per_s", "tokenise_reports_per_s", "tokens_per_s")
    assert found["reports"] == 1000 and min(found[key] for key in rates) > 0
    assert found["peak_mib"] >= found["loaded_mib"] > 0


@pytest.mark.parametrize("gated", [False, True])
def test_flops_are_those_that_torch_counts(gated: bool) -> None:
    """One example that fills its grid: nothing is padded, so engine and ideal are the same."""
    model = adapted_t5(gated=gated)
    engine, (source, target) = FastEngine(model, torch.float32), (32, 16)
    in_place = {
        torch.ops.aten.baddbmm_: lambda _, a, b, *rest, **__: 2 * a[0] * a[1] * a[2] * b[2],
        torch.ops.aten.addmm_: lambda _, a, b, *rest, **__: 2 * a[0] * a[1] * b[1],
        # (x, weight (O, I), ...), or with a summand before the weight
        torch.ops.mkldnn._linear_pointwise: lambda x, a, b, *_, **__: 2 * x[0] * prod((b or a)[:2]),
    }
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        engine(packed([(source, target)])).backward()
    config: T5Config = model.config
    layers = config.num_layers, config.num_decoder_layers
    counted = StepFlops.of(config, 4).step(np.array([source]), np.array([target]), n_layers=layers)
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)


def test_an_even_sample_stands_for_all(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path)
    whole = replace(config.data, max_source_tokens=512, max_target_tokens=256)
    dataset = tiny.training_data(replace(config, data=whole))
    everything = [np.arange(i, i + 3) for i in range(0, 57, 3)]
    assert {b[0] for b in evenly(everything, dataset, 19)} == {b[0] for b in everything}
    chosen = evenly(everything, dataset, 5)
    costs = [int(dataset.source_lengths[b].max()) for b in chosen]
    assert len({int(b[0]) for b in chosen}) == 5 and costs[0] < costs[-1]


def test_the_trainer_of_the_benchmark_takes_the_batches_it_is_given() -> None:
    assert "_get_train_sampler" in vars(InGivenOrder)


def test_a_fork_does_not_wait_for_the_bar_of_one_that_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = multiprocessing.RLock()
    monkeypatch.setattr(tqdm, "_lock", lock, raising=False)

    def killed() -> None:
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def counts() -> None:
        signal.alarm(30)  # ends it, if it waits
        list(tqdm(range(3)))

    assert in_a_child(killed) == -signal.SIGKILL
    assert in_a_child(counts) == 0


def test_a_long_run_that_ends_badly_is_one_that_did_not_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "draw_curves", tracking.draw_curves)  # a Place takes it away
    monkeypatch.setattr(soak, "N_REPORTS", 40)
    monkeypatch.setattr(fault_runs, "run", lambda *_, **__: [7])
    trials = soak.soak(Place(tmp_path, 0), 100)
    assert (trials.tried, trials.survived) == (1, 0)


FIGURES: dict[str, dict[str, Any]] = {
    "train_speed": {
        "ours": {"samples_per_s": 10.0, "precision": "fp16"},
        **{"peers": {"trainer": 4.0}, "ratio": {"trainer": 2.5}},
    },
    "generate_speed": {
        **{"ours": 8.0, "peers": {"hf": 2.0}, "ratio": {"hf": 4.0}},
        "identical": {"ours": 1.0},
    },
    "memory": {"ours": {"peak": 1234.5}},
    "profile": {"parts": {"softmax": 0.25}},
}


def test_every_part_of_make_gpu_has_its_rows() -> None:
    assert FIGURES.keys() == PARTS.keys()
    rows = [row for part, figures in FIGURES.items() for row in rows_of(part, figures)]
    assert markdown("a GPU", rows).splitlines() == [
        *("| a GPU | side | figure |", "|---|---|---|"),
        "| train_speed | ours, fp16 | 10.0 samples/s |",
        "| train_speed | trainer | 4.0 samples/s (ours x 2.50) |",
        "| generate_speed | ours | 8.0 reports/s |",
        "| generate_speed | hf | 2.0 reports/s (ours x 4.00, 100.0% the same tokens) |",
        "| memory | ours | 1,234 MiB at the peak |",
        "| profile | softmax | 25.0% of a step |",
    ]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu")
def test_make_gpu_without_a_gpu_says_so_and_gives_the_cpus_half(tiny: Tiny) -> None:
    flags = (f"--data.path={tiny.data}", f"--model.path={tiny.base}", "--micro_batch_size=8")
    done = python("-m", "bench.gpu", *flags, "--threads=1", f"--data.cache_dir={tiny.cache}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no GPU: ")
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "CPU, no GPU" in table[0]
    assert {line.split(" | ")[0].strip("| ") for line in table[2:]} == set(PARTS)


def test_transfer(tiny: Tiny, tmp_path: Path) -> None:
    rows = (tiny.data / "train.jsonl").read_text().splitlines(keepends=True)
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, part in (("ct", rows[:20]), ("mr", rows[20:45]), ("few", rows[:5])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\nlearning_rate = 1e-3\n[data]\nmax_target_tokens = 12\n")
    flags = [f"--folder={folder}", f"--output_dir={tmp_path / 'out'}", f"--recipe={recipe}"]
    done = forked("-m", "bench.transfer", *flags, f"--base={tiny.base}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["base alone", "ct", "mr", "all"]
    assert all(list(row) == ["ct", "mr"] for row in found.values())
    splits = {
        name: {
            split: (tmp_path / "out" / name / "data" / f"{split}.jsonl").read_text().splitlines()
            for split in ("train", "validation", "test")
        }
        for name in ("ct", "mr", "all")
    }
    assert [len(part) for part in splits["mr"].values()] == [15, 5, 5]
    assert not {*splits["all"]["train"]} & {*splits["ct"]["test"], *splits["mr"]["test"]}
    assert sum(map(len, splits["all"].values())) == 45
