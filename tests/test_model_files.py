"""Bases from anybody: no code, no pickle, no file outside the folder, no size out of bounds, no
weight that transformers would make up."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from report2impression.program.errors import ConfigError
from report2impression.weights.base_files import CONFIGS
from report2impression.weights.loading import load_base
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer
from tests.test_adapter_files import Bomb, opened_files
from tests.tiny import Tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
V = "decoder.block.1.layer.0.SelfAttention.v.weight"


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the base, to spoil."""
    return Path(shutil.copytree(tiny.base, tmp_path / "base"))


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_base(ModelConfig(path=str(folder)))
    message = str(caught.value)
    assert message.isprintable() and str(folder) in message, message
    return message


def settings(folder: Path, name: str = "config.json", **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "key", ["auto_map", "_attn_implementation_internal", "quantization_config"]
)
def test_a_setting_that_chooses_code_is_refused(folder: Path, name: str, key: str) -> None:
    settings(folder, name, **{key: {"AutoModel": "modeling.Model"}})
    assert name in refused(folder) and key in refused(folder)
    with pytest.raises(ConfigError, match=key):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["modeling_t5.py", "tokenization.py", "x.so", "__init__.pyc"])
def test_code_in_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("raise SystemExit")
    assert name in refused(folder)


@pytest.mark.parametrize("name", ["transformers_weights", "auto_map"])
@pytest.mark.parametrize("file", ["../other.safetensors", "/tmp/other.safetensors"])
def test_weights_elsewhere_are_refused(folder: Path, name: str, file: str) -> None:
    settings(folder, **{name: file})
    assert name in refused(folder)


BAD_SIZES: list[tuple[str, Any]] = [
    *(("vocab_size", value) for value in (10**12, 0, -1, 1.5, "x", True, None, [512])),
    *(("num_layers", value) for value in (10**9, 0, -1, "2", None)),
    *(("num_decoder_layers", value) for value in (10**9, 0, "2")),
    *((name, 10**12) for name in ("d_model", "d_ff", "d_kv", "num_heads")),
    *((name, -3) for name in ("relative_attention_num_buckets", "relative_attention_max_distance")),
]


@pytest.mark.parametrize(("name", "value"), BAD_SIZES, ids=str)
def test_a_size_out_of_bounds_is_refused_by_name(folder: Path, name: str, value: Any) -> None:
    settings(folder, **{name: value})
    assert name in refused(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("d_ff", 65), ("vocab_size", 2**24), ("num_heads", 4), ("d_model", 2**16)]
)
def test_a_size_that_the_weights_do_not_have_is_named(folder: Path, name: str, value: Any) -> None:
    settings(folder, **{name: value})
    assert f"{name} is" in refused(folder) or f"{name} x" in refused(folder)


ODD_VALUES: tuple[Any, ...] = (
    "x",
    -1,
    0,
    1e308,
    True,
    None,
    [],
    {},
    10**30,
    ["../x"],
    {"a": {"b": "c"}},
)


@pytest.mark.parametrize("value", ODD_VALUES, ids=str)
def test_an_odd_value_anywhere_loads_or_is_one_line(folder: Path, value: Any) -> None:
    original = (folder / "config.json").read_text()
    for name in json.loads(original):
        settings(folder, **{name: value})
        with contextlib.suppress(ConfigError):
            load_base(ModelConfig(path=str(folder)))
        (folder / "config.json").write_text(original)


def test_a_slip_of_ours_is_not_told_as_a_broken_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no settings: our line fails, not the library's."""
    none = SimpleNamespace(model_type="t5")
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: none)
    with pytest.raises(AttributeError, match="no attribute"):
        load_base(ModelConfig(path=str(folder)))


def test_weights_are_neither_made_up_nor_passed_over(folder: Path) -> None:
    """transformers alone gives a random layer, or leaves one out, and says nothing."""
    settings(folder, num_layers=3)
    assert "encoder.block.2.layer.0" in refused(folder) and "lack" in refused(folder)
    settings(folder, num_layers=1)
    assert "encoder.block.1.layer.0" in refused(folder) and "no place" in refused(folder)
    settings(folder, num_layers=2)
    weights = load_file(folder / WEIGHTS)
    save_file({n: w for n, w in weights.items() if n != V}, folder / WEIGHTS, {"format": "pt"})
    assert V in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[V][0, 0] = value
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert V in refused(folder)


def sharded(folder: Path, names: list[str] | None = None, **changes: Any) -> None:
    """Two shards, the index with changed names for them."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = ["a-1.safetensors", "b-2.safetensors"]
    parts = {name: files[i % 2] for i, name in enumerate(sorted(weights))}
    for file in files:
        own = {name: weights[name] for name, part in parts.items() if part == file}
        save_file(own, folder / file, {"format": "pt"})
    told = {n: (names[files.index(f)] if names else f) for n, f in parts.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": told} | changes))


def test_shards_load_as_the_whole(tiny: Tiny, folder: Path) -> None:
    sharded(folder)
    ours, theirs = (load_base(ModelConfig(path=str(f))).state_dict() for f in (folder, tiny.base))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "name",
    [
        *("../stolen.safetensors", "{}/../stolen.safetensors", "/etc/passwd", "sub/a.safetensors"),
        *(
            "a-1.bin",
            "pytorch_model.bin",
            "missing.safetensors",
            ".safetensors",
            "a\x00.safetensors",
        ),
        *("-rf.safetensors\n", "x" * 5000 + ".safetensors", "\uff0fetc.safetensors", ""),
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_a_shard_elsewhere_is_refused_unopened(folder: Path, name: str) -> None:
    outside = folder.parent / "stolen.safetensors"
    save_file({"x": torch.zeros(1)}, outside)
    sharded(folder, [name.format(folder), "b-2.safetensors"])
    with opened_files() as files:
        assert INDEX in refused(folder)
    assert str(outside) not in [os.path.normpath(file) for file in files]


@pytest.mark.parametrize("table", [[], {"a": 3}, None, "a-1.safetensors"])
def test_an_index_without_a_table_is_refused(folder: Path, table: Any) -> None:
    sharded(folder, weight_map=table)
    assert INDEX in refused(folder)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_pickled_weights_under_the_right_name_are_refused(
    folder: Path, tmp_path: Path, protocol: str
) -> None:
    bomb = Bomb(tmp_path / "marker")
    if protocol == "torch":
        torch.save(bomb, folder / WEIGHTS)
    else:
        (folder / WEIGHTS).write_bytes(pickle.dumps(bomb))
    assert "pickle" in refused(folder)
    assert not (tmp_path / "marker").exists()


def test_pickles_beside_the_safetensors_are_never_opened(folder: Path, tmp_path: Path) -> None:
    """As in the published bases; without the safetensors they are refused."""
    torch.save(Bomb(tmp_path / "marker"), folder / "pytorch_model.bin")
    with opened_files() as files:
        load_base(ModelConfig(path=str(folder)))
    assert files and not any(Path(file).suffix == ".bin" for file in files)
    (folder / WEIGHTS).unlink()
    assert "safetensors" in refused(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"model_type": "t5", "model_type": "x"}'])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refused(folder)


def test_no_file_that_a_tokenizer_names_is_opened(folder: Path, tmp_path: Path) -> None:
    """Published ones carry paths of their maker's machine: they are passed over."""
    names = ("vocab_file", "tokenizer_file", "special_tokens_map_file", "added_tokens_file")
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    settings(folder, "tokenizer_config.json", **dict.fromkeys(names, str(outside)))
    with opened_files() as files:
        load_tokenizer(str(folder))
    assert files and str(outside) not in files
