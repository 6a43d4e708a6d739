"""corpus/new_base.py: a base that the loop can load, or one line and nothing left behind."""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from report2impression.corpora.synthetic import write_splits
from report2impression.program.errors import ConfigError
from report2impression.reading.options import SourceConfig
from report2impression.weights import new_base as module
from report2impression.weights.loading import load_base
from report2impression.weights.new_base import NewBaseConfig, main, new_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.tiny import one_line

SMALL: dict[str, Any] = {
    "d_model": 16,
    "d_ff": 16,
    "d_kv": 8,
    "n_heads": 2,
    "n_layers": 1,
    "vocab_size": 300,
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    write_splits(folder, 30, 1, 1, seed=0)
    return folder


def flags(reports: Path, folder: Path, **changes: Any) -> list[str]:
    values = {**SMALL, "data.path": reports, "output_dir": folder, **changes}
    return [f"--{name}={value}" for name, value in values.items()]


def test_a_base_and_its_tokenizer(reports: Path, tmp_path: Path) -> None:
    main(flags(reports, tmp_path / "base"))
    assert os.listdir(tmp_path) == ["base"]
    files = {file.name for file in (tmp_path / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".tsv", ".vocab"))]
    path = str(tmp_path / "base")
    model, tokenizer = load_base(ModelConfig(path=path)), load_tokenizer(path)
    assert model.config.d_model == 16 and len(tokenizer) <= model.config.vocab_size

    main(flags(reports, tmp_path / "second", tokenizer=path))  # it needs no reports then
    assert load_tokenizer(str(tmp_path / "second")).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 10),
        ("d_model", 0),
        ("d_ff", 0),
        ("d_kv", -4),
        ("n_heads", 0),
        ("n_layers", -1),
        ("dropout", 5),
        ("dropout", "nan"),
        ("seed", -1),
        ("seed", 2**63),
        ("tokenizer", "missing/folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    reports: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    value: Any,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as caught:
        main(flags(reports, tmp_path / "base", **{name: value}))
    assert caught.value.code == 2
    message = one_line(capfd.readouterr().err)
    assert name in message and str(value) in message
    assert os.listdir(tmp_path) == ["temporary"] and not os.listdir(tmp_path / "temporary")


def test_a_folder_that_cannot_be_made(
    reports: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        main(flags(reports, tmp_path / "file" / "base"))
    assert caught.value.code == 2
    message = one_line(capfd.readouterr().err)
    assert str(tmp_path / "file" / "base") in message and "--output_dir" in message


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("x"), "SafetensorError"),
    ],
)
def test_a_failure_half_way_leaves_nothing(
    reports: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    reason: str,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(module.T5ForConditionalGeneration, "save_pretrained", full)
    config = NewBaseConfig(
        output_dir=str(tmp_path / "base"), data=SourceConfig(path=str(reports)), **SMALL
    )
    with pytest.raises(ConfigError, match=reason):
        new_base(config)
    assert os.listdir(tmp_path) == []


def test_words_of_the_reports_are_for_the_owner_only(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    train = module.sentencepiece.SentencePieceTrainer.train

    def spy(**settings: Any) -> None:
        folder = Path(settings["seed_sentencepieces_file"]).parent
        assert folder == Path(settings["model_prefix"]).parent
        modes.append(stat.S_IMODE(folder.stat().st_mode))
        train(**settings)

    monkeypatch.setattr(module.sentencepiece.SentencePieceTrainer, "train", spy)
    main(flags(reports, tmp_path / "base"))
    assert modes == [0o700]
