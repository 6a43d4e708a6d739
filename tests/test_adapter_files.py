"""Adapters from anybody: what PEFT wrote loads, everything else is one line that names its part."""

import json
import os
import pickle
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from bench.reliability.disk_faults import in_a_child
from model import attach_lora
from report2impression.program.errors import ConfigError
from report2impression.weights.adapter_files import CONFIG, WEIGHTS
from report2impression.weights.loading import load_adapter
from report2impression.weights.options import LoraSettings
from report2impression.weights.saving import save_model

SIZES = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "vocab_size": 64}
V = "base_model.model.decoder.block.1.layer.0.SelfAttention.v.lora_B.weight"


def small_base(n_layers: int = 2) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(T5Config(num_layers=n_layers, **SIZES))


@pytest.fixture(scope="module")
def base() -> T5ForConditionalGeneration:
    torch.set_num_threads(1)
    return small_base()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    model = attach_lora(small_base(), LoraSettings(r=4, target_modules=("q", "v")))
    save_model(model, folder, write_extras=lambda folder: None)
    return folder


@pytest.fixture
def adapter(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def refused(base: T5ForConditionalGeneration, folder: Path) -> str:
    """The one line of the refusal, before which the base was not touched."""
    before = dict(base.named_modules())
    with pytest.raises(ConfigError) as caught:
        load_adapter(base, folder)
    assert dict(base.named_modules()).keys() == before.keys()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600, message
    return message


# --- what PEFT writes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},  # PEFT's defaults: it writes an auto_mapping
        {"task_type": "SEQ_2_SEQ_LM", "r": 3, "lora_alpha": 7, "lora_dropout": 0.2},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q", "wi"], "rank_pattern": {"wi": 2}, "alpha_pattern": {"q": 3}},
        {"target_modules": ["q"], "use_dora": True, "exclude_modules": ["EncDecAttention.q"]},
        {"target_modules": ["v"], "init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_what_plain_peft_wrote_loads_with_the_same_outputs(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = get_peft_model(small_base(), LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.normal_()
    theirs.save_pretrained(str(tmp_path))
    untouched = small_base()
    plain = {n.replace(".base_layer", ""): w for n, w in theirs.get_base_model().named_parameters()}
    untouched.load_state_dict({n: plain[n] for n, _ in untouched.named_parameters()}, strict=False)
    ours = load_adapter(untouched, tmp_path)
    assert not ours.training and not any(w.requires_grad for w in ours.parameters())
    ids = torch.randint(3, 60, (2, 5))
    with torch.no_grad():
        logits = [m(input_ids=ids, decoder_input_ids=ids).logits for m in (ours, theirs)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_fp32(
    base: T5ForConditionalGeneration, adapter: Path, kind: torch.dtype
) -> None:
    halves = {name: weight.to(kind) for name, weight in load_file(adapter / WEIGHTS).items()}
    save_file(halves, adapter / WEIGHTS)
    model = load_adapter(small_base(), adapter)
    own = {n: w for n, w in model.named_parameters() if "lora_" in n}
    assert {weight.dtype for weight in own.values()} == {torch.float32}
    name = V.replace(".weight", ".default.weight")
    assert torch.equal(own[name], halves[V].float())


# --- adapter_config.json (H3) --------------------------------------------------------------------

BAD_FIELDS: list[tuple[str, Any]] = [
    *(("r", value) for value in (0, -1, 10**9, "x", True, 1.5, None, [4], 1e999)),
    *(("lora_alpha", value) for value in (1e30, 0, -1, True, "8", None, [8])),
    *(("peft_type", value) for value in ("PICKLE", "LOHA", "lora", None, 7, ["LORA"])),
    *(("target_modules", value) for value in ("(a+)+$", ".*", "all-linear", [], ["(a+)+$"], [""])),
    *(("target_modules", [value]) for value in ("q.*", "../q", "q\n", "a" * 5000, "\x00")),
    ("target_modules", [3]),
    ("exclude_modules", "(a|a)*$"),
    ("exclude_modules", ["v|q"]),
    *(("rank_pattern", {name: rank}) for name, rank in (("(a+)+$", 4), ("q", 10**9), ("q", True))),
    ("rank_pattern", []),
    ("alpha_pattern", {"q": 1e30}),
    ("alpha_pattern", {".*": 1}),
    ("alpha_pattern", {"q": "1"}),
    *(("init_lora_weights", value) for value in ("pissa", "loftq", "corda", "eva", 1, None)),
    *(("bias", value) for value in ("all", "lora_only", None)),
    *(("use_rslora", value) for value in (1, "true", None)),
    ("use_dora", 1),
    ("modules_to_save", ["lm_head"]),
    ("layers_to_transform", [0]),
    ("layers_pattern", "(a+)+$"),
    ("layer_replication", [[0, 10**9]]),
    ("megatron_core", "os"),
    ("megatron_config", {"x": 1}),
    ("loftq_config", {"loftq_bits": 4}),
    ("trainable_token_indices", [1]),
    ("target_parameters", ["(a+)+$"]),
    ("use_qalora", True),
    ("fan_in_fan_out", True),
    ("fan_in_fan_out", 0),
    ("corda_config", {"cache_file": "/etc/passwd"}),
    ("eva_config", {}),
    ("runtime_config", {}),
    ("_instantiator", "os.system"),
    ("unknown", 1),
    ("../../x", 1),
    ("x" * 5000, 1),
    ("a\nb\x1b[2J", 1),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda part: ascii(part)[:40])
def test_a_field_out_of_bounds_is_refused_by_name(
    base: T5ForConditionalGeneration, adapter: Path, name: str, value: Any
) -> None:
    settings = json.loads((adapter / CONFIG).read_text()) | {name: value}
    (adapter / CONFIG).write_text(json.dumps(settings))
    message = refused(base, adapter)
    if name == "r" and value == float("inf"):
        assert "JSON" in message  # json writes Infinity, which is none
    else:
        assert CONFIG in message and ascii(name)[1:40].rstrip("'") in message


@pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_a_missing_field_is_refused_by_name(
    base: T5ForConditionalGeneration, adapter: Path, name: str
) -> None:
    settings = json.loads((adapter / CONFIG).read_text())
    del settings[name]
    (adapter / CONFIG).write_text(json.dumps(settings))
    assert f"lacks {name}" in refused(base, adapter)


NOT_JSON = {
    "a list": b"[]",
    "nothing": b"",
    "not UTF-8": b"\xff\xfe{}",
    "nested": b'{"r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": b'{"r": 4, "r": 8}',
    "NaN": b'{"r": 4, "lora_alpha": NaN}',
    "1e999": b'{"peft_type":"LORA","target_modules":["q"],"r":4,"lora_alpha":1e999}',
    "long digits": b'{"r": ' + b"9" * 10_000 + b"}",
    "large": b'{"r": "' + b"x" * 2**20 + b'"}',
    "a pickle": pickle.dumps({"r": 4}),
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_no_json_object_is_refused(
    base: T5ForConditionalGeneration, adapter: Path, content: bytes
) -> None:
    (adapter / CONFIG).write_bytes(content)
    assert CONFIG in refused(base, adapter)


def test_a_pipe_is_not_waited_for(base: T5ForConditionalGeneration, adapter: Path) -> None:
    (adapter / CONFIG).unlink()
    os.mkfifo(adapter / CONFIG)
    assert CONFIG in refused(base, adapter)


NAMES = ("../../base", "/etc/passwd", "owner/name", "C:\\x", "~root/x", "https://host/x", "a\0b", 3)
OF_NO_USE: list[tuple[str, Any]] = [
    # `--model.path ../base` and absolute folders are what users train on.
    *(("base_model_name_or_path", name) for name in (*NAMES, "x" * 5000)),
    *(("auto_mapping", value) for value in ({"parent_library": "os"}, "os", 3)),
    *(("task_type", value) for value in ("CAUSAL_LM", "os.system", ["x"])),
    *(("lora_dropout", value) for value in (2, -0.1, "0", None)),
    *(("revision", value) for value in ("a\nb", 3)),
    *(("inference_mode", False), ("peft_version", "../x")),
    ("target_modules", ["q", "v"] * 9999),
]


@pytest.mark.parametrize(("name", "value"), OF_NO_USE, ids=lambda part: ascii(part)[:40])
def test_what_is_of_no_use_is_passed_over(good: Path, adapter: Path, name: str, value: Any) -> None:
    """No word of it is opened, imported or asked of a hub, and the adapter is the same."""
    settings = json.loads((adapter / CONFIG).read_text()) | {name: value}
    (adapter / CONFIG).write_text(json.dumps(settings))
    with opened_files() as files:
        model = load_adapter(small_base(), adapter)
    assert files and not [file for file in files if not file.startswith(str(adapter))]
    stored = load_file(good / WEIGHTS)
    own = {n.replace(".default", ""): w for n, w in model.named_parameters() if "lora_" in n}
    assert own.keys() == stored.keys() and all(torch.equal(own[n], stored[n]) for n in own)
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLinear)} == {16.0}


HOOKS: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and HOOKS and isinstance(arguments[0], str | os.PathLike):
        HOOKS[-1].append(os.fspath(arguments[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """What Python opens meanwhile (hooks cannot be taken away: one, and a switch)."""
    if not getattr(sys, "_files_are_noted", False):
        sys.addaudithook(_note)
        sys._files_are_noted = True  # type: ignore[attr-defined]
    HOOKS.append([])
    try:
        yield HOOKS[-1]
    finally:
        HOOKS.pop()


# --- adapter_model.safetensors (H2) --------------------------------------------------------------


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


NOTHING = json.dumps(entry(0, 0, [0])).encode()


def spoiled(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        from safetensors.torch import load

        weights = load(data)
        change(weights)
        return save(weights)

    return spoil


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The same body under another header."""

    def spoil(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        return file_of(header, data[8 + length :])

    return spoil


def twice(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].strip()
    first = text.index(b'"base_model')
    again = text[first : text.index(b"}", first) + 1]
    return file_of(text[:-1] + b"," + again + b"}", data[8 + length :])


def set_to(value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights[V].__setitem__((0, 0), value)


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty file": (lambda _: b"", WEIGHTS),
    "seven bytes": (lambda data: data[:7], WEIGHTS),
    "no tensors": (lambda _: file_of({}), "lacks"),
    "header 2^63": (lambda data: file_of({}, data, 2**63), WEIGHTS),
    "header 2^64-1": (lambda data: file_of({}, data, 2**64 - 1), WEIGHTS),
    "header past the end": (lambda data: file_of({}, b"", 10**6), WEIGHTS),
    "header of 101 MB": (lambda _: file_of(b"{" + b" " * 101_000_000 + b"}"), "header"),
    "10^6 tensors": (
        lambda _: file_of(
            b"{" + b",".join(b'"t%d":%s' % (i, NOTHING) for i in range(10**6)) + b"}"
        ),
        "header",
    ),
    "header no JSON": (lambda _: file_of(b"os.system"), "header"),
    "header a list": (lambda _: file_of([]), "header"),
    "nested header": (lambda _: file_of(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "header"),
    "tensor twice": (twice, "twice"),
    "overlap": (rewritten(lambda h: h[V].update(data_offsets=[0, 256])), WEIGHTS),
    "negative offset": (rewritten(lambda h: h[V].update(data_offsets=[-256, 0])), WEIGHTS),
    "huge offset": (rewritten(lambda h: h[V].update(data_offsets=[0, 2**63])), WEIGHTS),
    "no offsets": (rewritten(lambda h: h[V].pop("data_offsets")), WEIGHTS),
    "negative shape": (rewritten(lambda h: h[V].update(shape=[-16, -4])), WEIGHTS),
    "overflowing shape": (rewritten(lambda h: h[V].update(shape=[2**62, 4])), WEIGHTS),
    "unknown kind": (rewritten(lambda h: h[V].update(dtype="OBJ")), WEIGHTS),
    "hole": (rewritten(lambda h: h.pop(V)), ""),
    "trailing bytes": (lambda data: data + b"\0", WEIGHTS),
    "cut off": (lambda data: data[:-100], WEIGHTS),
    "NaN": (spoiled(set_to(float("nan"))), V),
    "inf": (spoiled(set_to(float("inf"))), V),
    "-inf": (spoiled(set_to(float("-inf"))), V),
    "missing": (spoiled(lambda w: w.pop(V)), V),
    "all B missing": (spoiled(lambda w: [w.pop(n) for n in list(w) if "lora_B" in n]), "lora_B"),
    "extra": (spoiled(lambda w: w.update(extra=torch.zeros(1))), "'extra'"),
    "extra name": (spoiled(lambda w: w.update({"a\n\x1b[2J" * 999: torch.zeros(1)})), "\\x1b"),
    "other rank": (spoiled(lambda w: w.update({V: torch.zeros(16, 3)})), V),
    "transposed": (spoiled(lambda w: w.update({V: w[V].T.contiguous()})), V),
    "integers": (spoiled(lambda w: w.update({V: w[V].int()})), V),
    "fp64": (spoiled(lambda w: w.update({V: w[V].double()})), V),
    "complex": (spoiled(lambda w: w.update({V: w[V].to(torch.complex64)})), V),
}


@pytest.mark.parametrize(("spoil", "named"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_weights_that_are_not_exactly_those_are_refused(
    good: Path, adapter: Path, spoil: Callable[[bytes], bytes], named: str
) -> None:
    (adapter / WEIGHTS).write_bytes(spoil((good / WEIGHTS).read_bytes()))
    assert named in refused(small_base(), adapter)


@pytest.mark.parametrize("kind", ["header of 101 MB", "10^6 tensors", "a tensor of 8 GB"])
def test_a_refusal_takes_little_memory(good: Path, adapter: Path, kind: str) -> None:
    if kind in BAD_FILES:
        (adapter / WEIGHTS).write_bytes(BAD_FILES[kind][0](b""))
    else:  # all names are right; a sparse file
        header = {n: entry(0, 0, [0]) for n in load_file(good / WEIGHTS)}
        header[V] = entry(0, 2**33, [2**31])
        with (adapter / WEIGHTS).open("wb") as file:
            file.write(file_of(header))
            file.truncate(file.tell() + 2**33)
    base = small_base()

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    def measured() -> None:
        before = peak()
        refused(base, adapter)
        assert peak() - before < 50 * 1024

    assert in_a_child(measured) == 0  # whose peak begins with what it holds


# --- pickles and code (H1, H7) -------------------------------------------------------------------


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch"])
@pytest.mark.parametrize(
    "name",
    [WEIGHTS, CONFIG, "adapter_model.bin", "optimizer.pt", "x.npz", "x.pkl", "notes.txt", "README"],
)
def test_a_pickle_is_refused_unopened_under_any_name(
    base: T5ForConditionalGeneration, adapter: Path, tmp_path: Path, name: str, protocol: Any
) -> None:
    if protocol == 0 and name in ("notes.txt", "README"):
        return  # text that nothing reads
    bomb = Bomb(tmp_path / "marker")
    if protocol == "torch":
        torch.save(bomb, adapter / name)
    else:
        (adapter / name).write_bytes(pickle.dumps(bomb, protocol))
    assert name in refused(base, adapter)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["modeling_t5.py", "x.so"])
def test_code_beside_an_adapter_is_refused(
    base: T5ForConditionalGeneration, adapter: Path, name: str
) -> None:
    (adapter / name).write_text("raise SystemExit")
    assert name in refused(base, adapter)


@pytest.mark.parametrize("target", ["zz", "lm_head", "shared", "SelfAttention"])
def test_a_target_that_the_base_lacks_is_refused(
    base: T5ForConditionalGeneration, adapter: Path, target: str
) -> None:
    settings = json.loads((adapter / CONFIG).read_text()) | {"target_modules": ["q", "v", target]}
    (adapter / CONFIG).write_text(json.dumps(settings))
    assert repr(target) in refused(base, adapter)


def test_a_settings_file_that_targets_less_than_the_weights_hold(
    base: T5ForConditionalGeneration, adapter: Path
) -> None:
    settings = json.loads((adapter / CONFIG).read_text()) | {"target_modules": ["q"]}
    (adapter / CONFIG).write_text(json.dumps(settings))
    assert "SelfAttention.v.lora" in refused(small_base(), adapter)


@pytest.mark.parametrize("targets", [("q", "v"), ("all-linear",), ("EncDecAttention.q",)])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_an_adapter_of_a_base_of_other_depth(
    tmp_path: Path, targets: tuple[str, ...], n_layers: int
) -> None:
    """All that the file holds may fit a deeper base, which would then be adapted in part."""
    model = attach_lora(small_base(2), LoraSettings(r=4, target_modules=targets))
    save_model(model, tmp_path / "adapter", write_extras=lambda folder: None)
    load_adapter(small_base(2), tmp_path / "adapter")
    message = refused(small_base(n_layers), tmp_path / "adapter")
    assert "another base" in message and ".lora_A.weight" in message
