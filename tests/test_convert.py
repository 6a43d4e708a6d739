"""A base of pickles becomes safetensors, or is refused without anything in it being run."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from report2impression.program.errors import ConfigError
from report2impression.weights import convert as converting
from report2impression.weights.convert import RECORD, convert
from report2impression.weights.loading import load_base
from report2impression.weights.options import ConvertConfig, ModelConfig, convert_settings
from report2impression.weights.tokenizer import load_tokenizer
from tests.test_adapter_files import Bomb
from tests.tiny import Tiny, one_line

BIN = "pytorch_model.bin"
SLOW = pytest.mark.slow  # each opens a pickle in a process that loads torch
Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
Weights = dict[str, Any]


def weights_of(tiny: Tiny) -> Weights:
    return load_base(ModelConfig(path=str(tiny.talkative))).state_dict()


@pytest.fixture
def pickled(tiny: Tiny, tmp_path: Path) -> Path:
    """The same base as it was published years ago: tied weights under each of their names."""
    folder = Path(shutil.copytree(tiny.talkative, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(weights_of(tiny), folder / BIN)
    return folder


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        convert(ConvertConfig(str(folder), str(out)))
    assert not out.exists() and not list(out.parent.glob(".*partial")), "something was left behind"
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_a_genuine_one_gives_the_same_weights(tiny: Tiny, pickled: Path, tmp_path: Path) -> None:
    n_parameters = convert(ConvertConfig(str(pickled), str(tmp_path / "new")))
    new = load_base(ModelConfig(path=str(tmp_path / "new")))
    assert n_parameters == new.num_parameters()
    theirs = weights_of(tiny)
    assert {name: bool(torch.equal(w, theirs[name])) for name, w in new.state_dict().items()} == (
        dict.fromkeys(theirs, True)
    )
    assert new.lm_head.weight is new.shared.weight
    data = (pickled / BIN).read_bytes()
    (origin,) = json.loads((tmp_path / "new" / RECORD).read_text())["converted_from"]
    digest = hashlib.sha256(data).hexdigest()
    assert origin == {"file": BIN, "bytes": len(data), "sha256": digest}
    text = "the lungs are clear"
    old, now = load_tokenizer(str(tiny.talkative)), load_tokenizer(str(tmp_path / "new"))
    assert old(text).input_ids == now(text).input_ids
    assert not list((tmp_path / "new").glob("*.bin")) and not (tmp_path / "new" / ".raw").exists()


@SLOW
def test_shards_are_put_together(tiny: Tiny, pickled: Path, tmp_path: Path) -> None:
    weights = weights_of(tiny)
    (pickled / BIN).unlink()
    files = {name: f"{BIN[:-4]}-{i % 2}.bin" for i, name in enumerate(weights)}
    for file in set(files.values()):
        torch.save({n: w for n, w in weights.items() if files[n] == file}, pickled / file)
    (pickled / f"{BIN}.index.json").write_text(json.dumps({"weight_map": files}))
    convert(ConvertConfig(str(pickled), str(tmp_path / "new")))
    new = load_base(ModelConfig(path=str(tmp_path / "new"))).state_dict()
    assert all(torch.equal(new[name], weight) for name, weight in weights.items())


class Called:
    """Unpickled, it calls what is in nobody's list."""

    def __reduce__(self) -> Any:
        return print, ("called",)


def crafted(weights: Weights, marker: Path) -> dict[str, Callable[[Path], None]]:
    """What each writes into pytorch_model.bin."""

    def saved(content: Any) -> Callable[[Path], None]:
        return lambda file: torch.save(content, file)

    def written(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        return lambda file: None if file.write_bytes(change(file.read_bytes())) else None

    return {
        "code": saved(Bomb(marker)),
        "code beside weights": saved(weights | {"x": Bomb(marker)}),
        "code of the builtins": saved(weights | {"x": Called()}),
        "a plain pickle of code": written(lambda _: pickle.dumps(Bomb(marker))),
        "no table": saved(torch.zeros(3)),
        "a table of numbers": saved({"shared.weight": 3}),
        "names that are none": saved({3: torch.zeros(1)}),
        "cut off": written(lambda data: data[:2000]),
        "nothing": written(lambda _: b""),
        "more than there is memory": saved(
            weights | {"x": torch.zeros(1).expand(2**36)}  # four bytes in the file, 256 GiB in use
        ),
    }


KINDS = list(crafted({}, Path()))


@pytest.mark.parametrize(
    "kind", [KINDS[1], *(pytest.param(k, marks=SLOW) for k in KINDS if k != KINDS[1])]
)
def test_a_crafted_one_is_refused_without_being_run(
    tiny: Tiny, pickled: Path, tmp_path: Path, kind: str
) -> None:
    crafted(weights_of(tiny), tmp_path / "marker")[kind](pickled / BIN)
    message = refused(pickled, tmp_path / "new")
    assert "is not converted" in message and str(pickled / BIN) in message
    assert not (tmp_path / "marker").exists()


def test_the_marker_would_be_there_if_it_ran(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "marker"), tmp_path / BIN)
    torch.load(tmp_path / BIN, weights_only=False)
    assert (tmp_path / "marker").exists()


@SLOW
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({Q: torch.zeros(3, 3)}, r"has the shape \[3, 3\], by config.json it is \[32, 32\]"),
        ({Q: None}, "the weights lack"),
        ({"encoder.block.9.x": torch.zeros(1)}, "the config has no place for"),
        ({Q: torch.full((32, 32), float("nan"))}, "is not finite"),
    ],
)
def test_weights_of_another_model_are_refused(
    tiny: Tiny, pickled: Path, tmp_path: Path, changes: Weights, told: str
) -> None:
    weights = weights_of(tiny) | changes
    torch.save({n: w for n, w in weights.items() if w is not None}, pickled / BIN)
    with pytest.raises(ConfigError, match=told):
        convert(ConvertConfig(str(pickled), str(tmp_path / "new")))


def test_it_takes_no_longer_than_allowed(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "PATIENCE", 0)
    assert "is not converted" in refused(pickled, tmp_path / "new")


def test_what_needs_no_conversion_is_told(tiny: Tiny, pickled: Path, tmp_path: Path) -> None:
    assert "has safetensors already" in refused(tiny.talkative, tmp_path / "new")
    assert "there is no folder" in refused(tmp_path / "none", tmp_path / "new")
    (pickled / BIN).unlink()
    assert "has no pytorch_model.bin" in refused(pickled, tmp_path / "new")


def test_loading_such_a_base_names_the_command(pickled: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_base(ModelConfig(path=str(pickled)))
    assert f"report2impression convert --from {pickled} --to NEW" in str(caught.value)


def test_the_flag_is_the_plain_word(capfd: pytest.CaptureFixture[str]) -> None:
    for argv in (["--from", "A", "--to", "B"], ["--from=A", "--to=B"]):
        assert convert_settings(argv) == ConvertConfig("A", "B")
    with pytest.raises(SystemExit) as ended:
        convert_settings(["--form=A"])
    assert ended.value.code == 2 and "--form" in one_line(capfd.readouterr().err)
