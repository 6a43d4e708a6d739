"""The recipes and the embedded base say what the README promises of them."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from report2impression.program.config import load
from report2impression.program.errors import ConfigError
from report2impression.reporting import published
from report2impression.runs.evaluation import EvalConfig
from report2impression.runs.recipe import TrainConfig
from report2impression.weights.loading import load_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
TINY_BASE = ROOT / "assets" / "tiny_base"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(recipe: Path) -> None:
    load(TrainConfig, recipe)


def test_the_published_recipe_is_the_default() -> None:
    assert load(TrainConfig, ROOT / "recipes/published.toml") == TrainConfig()


def test_the_published_recipe_states_the_published_result() -> None:
    header = (ROOT / "recipes/published.toml").read_text()
    for losses in (published.TRAINING_LOSS, published.VALIDATION_LOSS):
        assert " ".join(f"{loss:.4f}" for loss in losses) in header
    for row in published.SCORES.values():
        assert all(f"{score:.1f}" in header for score in row.values())


def test_the_published_figures_stand_beside_the_published_run_only() -> None:
    default = TrainConfig()
    assert default.is_published
    data, model = default.data, default.model
    assert replace(default, model=replace(model, path="t5-small"), epochs=1).is_published
    for change in (
        {"data": replace(data, path="reports")},
        {"data": replace(data, mix=("more",), weights=(1.0, 1.0))},
        {"model": replace(model, path="google-t5/t5-base")},
        {"model": replace(model, path="assets/tiny_base")},
        {"tuning": "full"},
        {"objective": "denoise"},
    ):
        assert not replace(default, **change).is_published, change


def test_published_steps_follow_from_the_recipe() -> None:
    """59,320 training pairs, 2 processes of 16: 9,270 optimizer steps."""
    assert TrainConfig().total_steps(59_320, n_ranks=2) == 9_270


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"seed": 2**63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"generate_n": 5, "objective": "denoise"}, "generate_n"),
        ({"continued": 0.5}, "continued"),
        ({"objective": "denoise", "continued": 1.5}, "continued"),
        ({"objective": "denoise", "at_impression": 0.5}, "at_impression"),
        ({"objective": "denoise", "continued": 0.5, "at_impression": -0.1}, "at_impression"),
        ({"best_by": "rougeL"}, "best_by"),
        ({"best_by": "rougeL", "generate_n": 5, "objective": "denoise"}, "objective"),
    ],
)
def test_settings_of_no_use_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig(**bad)
    TrainConfig(seed=2**63 - 1)


def numbers(config: Any) -> list[str]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return [name for name, value in values.items() if type(value) in (int, float)]


@pytest.mark.parametrize("config", [TrainConfig(), EvalConfig(adapter="x")], ids=["train", "eval"])
@pytest.mark.parametrize("value", [-11, float("inf"), float("-inf"), float("nan")])
def test_a_number_out_of_bounds_is_refused_by_name(config: Any, value: float) -> None:
    assert len(numbers(config)) > 9
    for name in numbers(config):
        with pytest.raises(ConfigError, match=name):
            replace(config, **{name: value})


def test_launch_files_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        config = load_config_from_file(str(file))
        assert config.mixed_precision == "no"  # the loop does its own
        assert yaml.safe_load(file.read_text())["num_processes"] == config.num_processes


def test_the_embedded_base_is_small_and_reads_the_synthetic_words() -> None:
    assert sum(file.stat().st_size for file in TINY_BASE.iterdir()) <= 8e6
    model, tokenizer = load_base(ModelConfig(path=str(TINY_BASE))), load_tokenizer(str(TINY_BASE))
    assert len(tokenizer) <= model.config.vocab_size
    ids = tokenizer("extract: no acute intracranial hemorrhage 12 mm ____")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids[-1] == tokenizer.eos_token_id
    assert model.config.dropout_rate == 0.1  # T5's own, not that of its pre-training
