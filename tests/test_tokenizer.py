"""A base and the tokenizer beside it: whatever does not fit is told before anything is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

import train_loop
from report2impression.program.errors import ConfigError
from report2impression.weights.loading import load_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import Tiny, one_line


@pytest.fixture
def base(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.base, tmp_path / "base"))


def changed(folder: Path, **settings: Any) -> None:
    """config.json with other settings; None takes one away."""
    file = folder / "config.json"
    content = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"eos_token_id": 5}, "eos_token_id is 5 in config.json and 1 in the tokenizer"),
        ({"eos_token_id": [5, 6]}, "eos_token_id is [5, 6] in config.json and 1"),
        ({"pad_token_id": 3}, "pad_token_id is 3 in config.json and 0"),
        ({"unk_token_id": 0}, "unk_token_id is 0 in config.json and 2"),
        ({"decoder_start_token_id": 10**6}, "decoder_start_token_id is 1000000, but the embedding"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id is -1, but"),
        ({"decoder_start_token_id": "<pad>"}, "decoder_start_token_id is '<pad>', but"),
    ],
)
def test_ids_that_differ_are_named_on_both_sides(
    base: Path, settings: dict[str, Any], told: str
) -> None:
    changed(base, **settings)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(str(base))
    assert told in str(error.value) and str(base) in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": None, "pad_token_id": None},
        {"eos_token_id": [1, 7]},
        {"decoder_start_token_id": None},
        {"decoder_start_token_id": 9},
        {"unk_token_id": 2},
    ],
)
def test_what_fits_is_read(base: Path, settings: dict[str, Any]) -> None:
    changed(base, **settings)
    load_tokenizer(str(base))
    start = load_base(ModelConfig(path=str(base))).config.decoder_start_token_id
    assert start == (settings.get("decoder_start_token_id", 0) or 0)


def test_more_ids_than_rows(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_tokens([f"word{i}" for i in range(100)])  # and no resize of the embedding
    tokenizer.save_pretrained(str(base))
    with pytest.raises(ConfigError, match=r"ids up to \d+, the embedding \d+ rows"):
        load_tokenizer(str(base))


def bpe(folder: Path) -> None:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5}
    model = models.BPE(vocab=vocabulary, merges=[("a", "b")], unk_token="<unk>")
    Tokenizer(model).save(str(folder / "tokenizer.json"))


def words(folder: Path) -> None:
    Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("write", "kind"), [(bpe, "BPE"), (words, "WordLevel")])
def test_another_kind_of_tokenizer_is_named(base: Path, write: Any, kind: str) -> None:
    write(base)
    with pytest.raises(ConfigError, match=rf"is a '{kind}': only T5's own kind"):
        load_tokenizer(str(base))


def test_training_tells_it_in_one_line_before_any_data_is_read(
    tiny: Tiny, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed(base, eos_token_id=5)
    flags = tiny.flags(tmp_path / "run", model__path=base, data__path=tmp_path / "none")
    with pytest.raises(SystemExit) as ended:
        train_loop.main(flags)
    assert ended.value.code == 2 and "eos_token_id" in one_line(capfd.readouterr().err)
