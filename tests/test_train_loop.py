"""The loop: accumulation, skipped steps, determinism, precision, what a run leaves behind."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

import train_loop
from model import PaddedEngine
from report2impression.engine.models import evaluating
from report2impression.program.config import load, parse
from report2impression.program.errors import ConfigError, NumericsError
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run_folder import open_run_folder
from report2impression.training import validation as epoch_end
from report2impression.training.validation import BestSoFar
from tests.programs import ForkServer, forked
from tests.tiny import (
    Recorder,
    Tiny,
    Weights,
    difference,
    metrics,
    one_line,
    run_loop,
    trainable,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- one optimizer step is one set of examples, however it is cut -------------------------------


@pytest.mark.parametrize("n", [57, 50], ids=["last_step_of_9", "last_step_of_2"])
@pytest.mark.parametrize(
    ("dtype", "rate", "tolerance"),
    [(torch.float32, 5e-5, 1e-6), (torch.float64, 3e-3, 1e-12)],
    ids=["fp32", "fp64"],
)
def test_accumulation_equals_one_big_batch(
    tiny: Tiny, tmp_path: Path, n: int, dtype: torch.dtype, rate: float, tolerance: float
) -> None:
    """In fp32 Adam enlarges rounding, by up to the rate, where a gradient is nearly 0."""
    runs = []
    for micro_batch_size, grad_accum_steps in ((16, 1), (8, 2), (4, 4))[:: 2 if n == 50 else 1]:
        config = tiny.recipe(
            tmp_path,
            micro_batch_size=micro_batch_size,
            grad_accum_steps=grad_accum_steps,
            learning_rate=rate,
            epochs=2,
            engine="fast" if dtype == torch.float32 else "hf",
        )
        runs.append(run_loop(config, tiny.training_data(config, n), dtype=dtype))
    whole, *cut = runs
    assert len(whole.steps) == 8 and n % 16
    assert difference(whole.weights[-1], whole.start) > 2 * rate
    for run in cut:
        assert difference(run.weights[-1], whole.weights[-1]) <= tolerance
        assert run.column("loss") == pytest.approx(whole.column("loss"), abs=1e-5)
        assert run.column("grad_norm") == pytest.approx(whole.column("grad_norm"), rel=1e-4)


def test_max_steps_cuts_the_run_and_its_schedule(tiny: Tiny, tmp_path: Path) -> None:
    epochs: list[int] = []

    def note(epoch: int, engine: PaddedEngine) -> bool:
        epochs.append(epoch)
        return False

    config = tiny.recipe(tmp_path, epochs=5, max_steps=11, warmup_steps=3)
    run = run_loop(config, tiny.training_data(config), after_epoch=note)
    peak = config.learning_rate
    rising, falling = [0.0, peak / 3, 2 * peak / 3], [peak * (8 - i) / 8 for i in range(8)]
    assert run.column("lr") == pytest.approx(rising + falling, rel=1e-5)
    assert epochs == [0, 1]


def test_after_epoch_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path, epochs=5, micro_batch_size=32)
    run = run_loop(config, tiny.training_data(config), after_epoch=lambda epoch, _: epoch == 1)
    assert len(run.steps) == 2 * 2


# --- steps that are not finite -------------------------------------------------------------------


def spoiled(bad: Sequence[int], value: float) -> Callable[[int, Tensor], Tensor]:
    return lambda n, gradient: torch.full_like(gradient, value) if n in bad else gradient


def changed(run: Recorder) -> list[bool]:
    """Whether each step changed any weight."""
    before = [run.start, *run.weights[:-1]]
    return [difference(a, b) > 0 for a, b in zip(before, run.weights, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_skipped_step_is_as_if_it_had_never_been(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Not only weights and rate: Adam's moments and step count stay too, or later steps differ."""
    config = tiny.recipe(tmp_path, precision=precision, warmup_steps=4)
    dataset = tiny.training_data(config)
    bad = 5
    value = float("inf") if precision == "fp16" else float("nan")
    run = run_loop(config, dataset, on_gradient=spoiled([bad], value))
    assert changed(run) == [False, *[n != bad for n in range(2, 9)]]  # the first rate is 0
    assert run.column("skipped") == [0.0] * (bad - 1) + [1.0] * (9 - bad)
    assert run.column("lr")[bad] == run.column("lr")[bad - 1]
    assert run.steps[bad - 1]["loss"] is None  # it counts in no loss

    plan = TrainConfig.plan
    monkeypatch.setattr(
        TrainConfig,
        "plan",
        lambda *args: [step for n, step in enumerate(plan(*args), 1) if n != bad],
    )
    without = run_loop(config, dataset)
    assert len(without.weights) == len(run.weights) - 1
    rates = run.column("lr")
    assert without.column("lr") == rates[: bad - 1] + rates[bad:]
    # After a skip the scale is halved; a power of two moves only the smallest fp16 numbers.
    tolerance = 1e-4 if precision == "fp16" else 0.0
    assert difference(run.weights[-1], without.weights[-1]) <= tolerance


def test_fp16_overflow_is_skipped_and_the_scale_found(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path, precision="fp16", warmup_steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-14)
    run = run_loop(config, tiny.training_data(config), scaler=scaler)
    n_skipped = int(run.column("skipped")[-1])
    assert 0 < n_skipped < 4
    assert changed(run) == [n >= n_skipped for n in range(8)]
    assert run.column("lr")[: n_skipped + 1] == pytest.approx(
        [config.learning_rate] * (n_skipped + 1)
    )
    assert run.column("lr")[n_skipped + 1] < run.column("lr")[0]
    assert scaler.get_scale() == 2.0 ** (40 - 14 * n_skipped)


def test_one_bad_micro_batch_skips_the_whole_step(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path, micro_batch_size=4, grad_accum_steps=2, warmup_steps=0)
    run = run_loop(config, tiny.training_data(config), on_gradient=spoiled([3], float("nan")))
    assert changed(run) == [True, False, *[True] * 6]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_skips_the_step_even_if_gradients_are(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    reduce, calls = Accelerator.reduce, iter(range(1, 100))

    def overflow(self: Accelerator, loss: Tensor, *args: Any) -> Tensor:
        return reduce(self, loss, *args) + (float("inf") if next(calls) == 3 else 0.0)

    monkeypatch.setattr(Accelerator, "reduce", overflow)
    config = tiny.recipe(tmp_path, warmup_steps=0, precision=precision)
    run = run_loop(config, tiny.training_data(config))
    assert changed(run) == [n != 3 for n in range(1, 9)]
    assert all(map(math.isfinite, run.column("grad_norm")))
    assert run.column("skipped")[-1] == 1


def test_too_many_skips_in_a_row_stop_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.recipe(tmp_path, max_skips=3)
    dataset = tiny.training_data(config)
    endless = spoiled(range(2, 100), float("nan"))
    with pytest.raises(NumericsError) as caught:
        run_loop(config, dataset, on_gradient=endless)
    assert "3 steps in a row" in str(caught.value) and "step 4 " in str(caught.value)
    fourth = config.plan(dataset, 0, 1)[3]
    assert all(dataset.ids[i] in str(caught.value) for i in fourth.indices)
    assert caught.value.exit_code == 6

    scattered = spoiled([1, 2, 4, 5, 7, 8], float("nan"))
    assert run_loop(config, dataset, on_gradient=scattered).column("skipped")[-1] == 6


# --- determinism and precision -------------------------------------------------------------------


def test_the_seed_decides_everything(tiny: Tiny, tmp_path: Path) -> None:
    def last(**changes: Any) -> Weights:
        torch.rand(7)  # whatever the process drew before
        config = tiny.recipe(tmp_path, **{"dropout": 0.1, "grad_accum_steps": 2, **changes})
        return run_loop(config, tiny.training_data(config)).weights[-1]

    first = last()
    assert difference(first, last()) == 0.0
    assert difference(first, last(seed=1)) > 1e-3
    assert difference(first, last(dropout=0.0)) > 1e-4  # it was on


def test_every_micro_batch_draws_its_own_dropout(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    manual_seed = torch.manual_seed

    def note(seed: int) -> torch.Generator:
        seeds.append(seed)
        return manual_seed(seed)

    monkeypatch.setattr(torch, "manual_seed", note)
    config = tiny.recipe(tmp_path, micro_batch_size=4, grad_accum_steps=2, epochs=2)
    run_loop(config, tiny.training_data(config))
    assert len(seeds) == 1 + 2 * 15  # the adapter's start, and 7 x 2 + 1 micro-batches an epoch
    assert len(set(seeds)) == len(seeds)


def test_precisions_learn_alike(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_update = train_loop.apply_update
    scaled: list[bool] = []

    def spy(optimizer: Any, scaler: torch.amp.GradScaler, finite: Tensor) -> None:
        scaled.append(scaler.is_enabled() and scaler.get_scale() > 1)
        apply_update(optimizer, scaler, finite)

    monkeypatch.setattr(train_loop, "apply_update", spy)
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        config = tiny.recipe(  # the fast engine's precision: test_fast_t5.py
            tmp_path,
            engine="hf",
            precision=precision,
            micro_batch_size=4,
            epochs=2,
            learning_rate=1e-2,
        )
        products: set[torch.dtype] = set()
        scaled.clear()
        with watching_products(products):
            run = run_loop(config, tiny.training_data(config, n=29))
        losses[precision] = run.column("loss")
        assert products == {DTYPES[precision]}
        assert set(scaled) == {precision == "fp16"}
        assert run.column("skipped")[-1] == 0
        assert {weight.dtype for weight in run.weights[-1].values()} == {torch.float32}
    for losses_here in losses.values():
        assert all(loss == loss for loss in losses_here)
        assert sum(losses_here[-8:]) < 0.95 * sum(losses_here[:8])
        assert losses_here == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"] != losses["fp16"]


@contextmanager
def watching_products(seen: set[torch.dtype]) -> Iterator[None]:
    """Collects the result types of all linear layers while it is open."""

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


# --- what a run leaves behind --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train_loop.py with dropout and generation."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_loop.main(
        tiny.flags(
            folder,
            epochs=2,
            model__dropout=0.1,
            lora__dropout=0.1,
            generate_n=5,
            max_new_tokens=8,
        )
    )
    return folder


def test_run_folder(finished: Path, tiny: Tiny) -> None:
    assert {file.name for file in finished.iterdir()} == {
        *("config.toml", "metrics.jsonl", "curves.png", "adapter"),
        *("checkpoints", "exit_status.json", ".lock"),
    }
    assert {file.name for file in (finished / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "LICENCE.json",
        "training.toml",
    }
    saved = load(TrainConfig, finished / "adapter" / "training.toml")
    assert saved == load(TrainConfig, finished / "config.toml")
    assert saved.lora.r == 4 and saved.epochs == 2 and saved.model.path == str(tiny.base)
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all("lora_" in name for name in weights)  # no embedding, no base weight
    for line in metrics(finished, "epoch"):
        assert 0 <= line["rougeL"] <= 100
        assert line["validation_loss"] > 0


FRESH = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoTokenizer, T5ForConditionalGeneration
base, adapter, data = sys.argv[1:]
model = T5ForConditionalGeneration.from_pretrained(base)
model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
tokenizer = AutoTokenizer.from_pretrained(base)
total = n = 0
with torch.no_grad():
    for row in map(json.loads, open(data)):
        ids = tokenizer("extract: " + row["prompt"], return_tensors="pt").input_ids
        labels = tokenizer(row["impressions"], return_tensors="pt").input_ids
        total += model(input_ids=ids, labels=labels).loss.item() * labels.numel()
        n += labels.numel()
print(total / n)
"""


def test_merged_adapter_in_a_fresh_process_has_the_reported_loss(
    finished: Path, tiny: Tiny, libraries: ForkServer
) -> None:
    """By transformers and PEFT alone: one report at a time, no padding, no code of ours."""
    paths = tiny.base, finished / "adapter", tiny.data / "validation.jsonl"
    fresh = libraries.run("-c", FRESH, *paths)
    reported = min(line["validation_loss"] for line in metrics(finished, "epoch"))
    assert float(fresh.stdout) == pytest.approx(reported, abs=1e-5), fresh.stderr


def test_metrics_hold_every_step_and_the_mean_over_tokens(finished: Path, tiny: Tiny) -> None:
    steps, epochs = metrics(finished, "step"), metrics(finished, "epoch")
    assert [step["step"] for step in steps] == list(range(1, 17))
    config = load(TrainConfig, finished / "config.toml")
    dataset = tiny.training_data(config)
    for number, epoch in enumerate(epochs):
        tokens = [step.n_label_tokens for step in config.plan(dataset, number, 1)]
        losses = [step["loss"] for step in steps[8 * number : 8 * number + 8]]
        mean = sum(x * n for x, n in zip(losses, tokens, strict=True)) / sum(tokens)
        assert epoch["training_loss"] == pytest.approx(mean, rel=1e-6)


class FakeValidation:
    """Stands in for validation_loss: given figures, and a copy of the weights at each call."""

    def __init__(self, figures: Sequence[float]) -> None:
        self.figures = list(figures)
        self.seen: list[Weights] = []

    def __call__(self, engine: PaddedEngine, *args: Any, **kwargs: Any) -> float:
        self.seen.append(trainable(engine.model))
        return self.figures[len(self.seen) - 1]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("figures", "patience", "n_epochs", "best"),
    [
        ([3.0, 2.0, 2.5, 2.5, 2.5], 0, 5, 2),
        ([3.0, 2.0, 2.5, 2.5, 1.0], 2, 4, 2),
        ([3.0, 3.5, 2.0, 2.5, 1.0], 2, 5, 5),
        ([3.0, float("nan"), 3.0], 2, 3, 1),
    ],
)
def test_best_is_kept_and_patience_ends(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    figures: list[float],
    patience: int,
    n_epochs: int,
    best: int,
) -> None:
    fake = FakeValidation(figures)
    monkeypatch.setattr(epoch_end, "validation_loss", fake)
    flags = tiny.flags(tmp_path / "run", micro_batch_size=32, epochs=5, patience=patience)
    train_loop.main(flags)
    assert len(metrics(tmp_path / "run", "epoch")) == n_epochs == len(fake.seen)
    base = T5ForConditionalGeneration.from_pretrained(tiny.base)
    kept = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"), is_trainable=True)
    gaps = [difference(trainable(kept), weights) for weights in fake.seen]
    assert gaps[best - 1] == 0.0
    assert sum(gap == 0.0 for gap in gaps) == 1
    folder = str(tmp_path / "run" / "adapter")
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith(folder)]
    assert str(best) in told[0].removesuffix(folder)
    assert f"epoch {best}, the best" in (tmp_path / "run" / "adapter" / "README.md").read_text()


@pytest.mark.usefixtures("no_curves")
def test_best_by_rouge_keeps_the_highest(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, rouge = FakeValidation([1.0, 2.0, 3.0]), iter([5.0, 7.0, 6.0])
    monkeypatch.setattr(epoch_end, "validation_loss", fake)
    monkeypatch.setattr(epoch_end, "generation_scores", lambda *_, **__: {"rougeL": next(rouge)})
    flags = tiny.flags(
        tmp_path / "run", micro_batch_size=32, epochs=3, best_by="rougeL", generate_n=2
    )
    train_loop.main(flags)
    base = T5ForConditionalGeneration.from_pretrained(tiny.base)
    kept = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"), is_trainable=True)
    gaps = [difference(trainable(kept), weights) for weights in fake.seen]
    assert [gap == 0.0 for gap in gaps] == [False, True, False]


def test_no_finite_validation_loss_is_an_error(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a result of an earlier run stay beside the config of the new one."""
    run = tmp_path / "run"
    for name in ("adapter", "model", "evaluation", "other"):
        (run / name).mkdir(parents=True)
        (run / name / "old.txt").write_text("old")
    for name in ("curves.png", "config.toml"):
        (run / name).write_text("old")
    monkeypatch.setattr(epoch_end, "validation_loss", lambda *_, **__: float("nan"))
    with pytest.raises(SystemExit) as caught:
        train_loop.main(tiny.flags(run, micro_batch_size=32))
    assert caught.value.code == 6
    assert {file.name for file in run.iterdir()} == {
        *("config.toml", "metrics.jsonl", "curves.png", "other"),
        *("checkpoints", "exit_status.json", ".lock"),
    }
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["model", "evaluation"])
def test_a_run_does_not_remove_its_own_input(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    used = tmp_path / "run" / name / "inside"
    shutil.copytree(tiny.base if name == "model" else tiny.data, used)
    key = "model__path" if name == "model" else "data__path"
    with pytest.raises(ConfigError) as caught:
        open_run_folder(tmp_path / "run", load_flags(tiny, tmp_path / "run", **{key: used}))
    assert str(used) in str(caught.value) and "--output_dir" in str(caught.value)
    assert list(used.iterdir())


def test_folders_that_no_run_has_made_stay(tiny: Tiny, tmp_path: Path) -> None:
    """Such as those of a project, with --output_dir . in it."""
    (tmp_path / "evaluation").mkdir()
    open_run_folder(tmp_path, tiny.recipe(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"evaluation", "config.toml"}
    open_run_folder(tmp_path, tiny.recipe(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"config.toml"}


def load_flags(tiny: Tiny, folder: Path, **changes: Any) -> TrainConfig:
    return parse(TrainConfig, tiny.flags(folder, **changes))


@pytest.mark.parametrize(("warmup_steps", "told"), [(2, True), (1, False)])
def test_a_warm_up_as_long_as_the_run_is_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup_steps: int, told: bool
) -> None:
    config = tiny.recipe(tmp_path, micro_batch_size=32, warmup_steps=warmup_steps)
    train_loop.tell_run(config, Accelerator(cpu=True), torch.nn.Linear(2, 2), "fast", 57)
    assert ("warning: warmup_steps 2 of 2" in capsys.readouterr().out) == told


def test_tensorboard_that_is_not_installed_is_told_first(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    flags = tiny.flags(tmp_path / "run", data__path=tmp_path / "missing")
    code, message = failure(capfd, [*flags, "--tensorboard"])
    assert code == 2 and "tensorboard" in message
    assert not (tmp_path / "run").exists()


def test_best_so_far_never_takes_nan() -> None:
    best = BestSoFar(patience=1)
    assert not best.improved(1, float("nan")) and best.exhausted


@pytest.mark.usefixtures("no_curves")
def test_full_denoising_gives_a_base_for_the_next_run(tiny: Tiny, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    whole = tiny.flags(first, objective="denoise", tuning="full", learning_rate=1e-2, epochs=2)
    train_loop.main(whole)
    files = {file.name for file in (first / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.toml"} <= files
    assert not (first / "adapter").exists()
    before = T5ForConditionalGeneration.from_pretrained(tiny.base)
    after = T5ForConditionalGeneration.from_pretrained(first / "model")
    assert difference(trainable(before), trainable(after)) > 1e-3

    train_loop.main(tiny.flags(second, model__path=first / "model"))
    assert (second / "adapter" / "adapter_model.safetensors").is_file()
    settings = json.loads((second / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(first / "model")


@pytest.mark.usefixtures("no_curves")
def test_full_tuning_in_fp16_storage_leaves_the_run_alone(tiny: Tiny, tmp_path: Path) -> None:
    for store in ("fp32", "fp16"):
        train_loop.main(
            tiny.flags(tmp_path / store, tuning="full", micro_batch_size=32, epochs=2, store=store)
        )
    losses = [
        [e["training_loss"] for e in metrics(tmp_path / s, "epoch")] for s in ("fp32", "fp16")
    ]
    assert losses[0] == losses[1]
    stored = load_file(tmp_path / "fp16" / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}


# --- modes ---------------------------------------------------------------------------------------


def modes(model: torch.nn.Module) -> set[bool]:
    return {module.training for module in model.modules()}


@pytest.mark.usefixtures("no_curves")
def test_training_goes_on_in_training_mode_after_validation_and_generation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[bool], set[bool]]] = []
    call = epoch_end.EpochEnd.__call__

    def spy(self: epoch_end.EpochEnd, epoch: int, engine: PaddedEngine) -> bool:
        before = modes(engine)
        stop = call(self, epoch, engine)
        seen.append((before, modes(engine)))
        return stop

    monkeypatch.setattr(epoch_end.EpochEnd, "__call__", spy)
    flags = tiny.flags(
        tmp_path / "run", micro_batch_size=32, epochs=2, generate_n=3, max_new_tokens=4
    )
    train_loop.main(flags)
    assert seen == [({True}, {True})] * 2


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_on_every_way_out(training: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2)).train(training)
    with evaluating(model):
        assert modes(model) == {False} and not torch.is_grad_enabled()
    assert modes(model) == {training} and torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert modes(model) == {training} and torch.is_grad_enabled()


# --- the command line ----------------------------------------------------------------------------


def failure(capfd: pytest.CaptureFixture[str], flags: list[str]) -> tuple[int, str]:
    """Exit code and the one line of stderr."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        train_loop.main(flags)
    assert isinstance(caught.value.code, int)
    return caught.value.code, one_line(capfd.readouterr().err)


def test_missing_data_ends_a_process_with_one_line(tiny: Tiny, tmp_path: Path) -> None:
    run, missing = tmp_path / "run", tmp_path / "missing"
    done = forked("train_loop.py", *tiny.flags(run, data__path=missing))
    assert done.returncode in (2, 3)
    assert str(missing) in one_line(done.stderr)
    assert not run.exists()


@pytest.mark.parametrize(
    ("flag", "named"),
    [("--epochs=0", "epochs"), ("--epoch=3", "--epochs"), ("--precision=fp8", "precision")],
)
def test_bad_flags(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str, named: str
) -> None:
    code, message = failure(capfd, [*tiny.flags(tmp_path / "run"), flag])
    assert code == 2 and named in message
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_exits_with_6(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = tiny.flags(
        tmp_path / "run", learning_rate=1e30, warmup_steps=0, max_skips=3, max_grad_norm=0
    )
    with pytest.raises(SystemExit) as caught:
        train_loop.main(flags)
    assert caught.value.code == 6
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "synthetic-" in error[0]
