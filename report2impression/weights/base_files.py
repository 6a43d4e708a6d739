"""What lies in the folder of a base or an adapter, looked at before any library opens it.

Such a folder may come from anybody. Its JSON is data with a known shape and never names code to
import or a file elsewhere; its weights are safetensors, whose header is read within bounds; a
pickle is refused unopened, whatever its name. Names that the files give (of tensors, of shards) are
only compared, never followed out of the folder. Each refusal is a ConfigError of one line.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from report2impression.program.errors import ConfigError
from report2impression.reading.rows import unique_keys

Json = dict[str, Any]

MAX_JSON = 2**20  # bytes of a config
MAX_TOKENIZER_JSON = 2**28  # bytes of a tokenizer.json or an index of shards
SHOWN = 120  # characters of a name that a file gives
SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\.(safetensors|bin)")
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy", ".joblib", ".dill")
# A pickle of protocol 2 to 5, or a zip archive, which is what torch.save and numpy write.
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
# A base's config may not choose code, a kernel, a loader or a file for its weights.
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config", "transformers_weights")
CODE_PREFIXES = ("_attn_", "_experts_", "attn_implementation", "experts_implementation")
# The widest published base (T5's 11B) is far below each of these.
SIZES = {
    **{"vocab_size": 2**24, "d_model": 2**16, "d_kv": 2**14, "d_ff": 2**20, "num_heads": 2**12},
    **{"num_layers": 1000, "num_decoder_layers": 1000, "relative_attention_num_buckets": 2**16},
    "relative_attention_max_distance": 2**24,
    **{"encoder_layers": 1000, "decoder_layers": 1000, "num_hidden_layers": 1000},
    **{"encoder_ffn_dim": 2**20, "decoder_ffn_dim": 2**20, "intermediate_size": 2**20},
    **{"encoder_attention_heads": 2**12, "decoder_attention_heads": 2**12, "hidden_size": 2**16},
    **{"num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**14},
    "max_position_embeddings": 2**24,
}
# Configs of an encoder and a decoder within that of the base.
PARTS = ("encoder", "decoder", "text_config", "vision_config")
# Where the weights show a size: (tensor, dimension) -> the settings whose product it is.
SHOWN_BY = {
    ("shared.weight", 0): ("vocab_size",),
    ("shared.weight", 1): ("d_model",),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", 0): ("num_heads", "d_kv"),
    ("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1): ("d_ff",),
}
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")


def shown(name: object) -> str:
    """A name from a file, on one line and not endless."""
    text = ascii(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def read_json(file: Path, limit: int = MAX_JSON) -> Json:
    """A JSON object. Raises ConfigError: not a regular file, too large, not JSON, a key twice, or
    a NaN."""
    if not file.is_file():  # nor a pipe, which would block
        raise ConfigError(f"{file} is not a file: give the folder whole")
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigError(f"{file} has more than {limit:,} bytes: it is none of a model")
    content = parse_json(data)
    if content is None:
        raise ConfigError(f"{file} is not a JSON object, or has a key twice: fetch it again")
    return content


def parse_json(data: bytes) -> Json | None:
    """The object in these bytes; None if that is no strict JSON."""
    try:
        content = json.loads(data, object_pairs_hook=unique_keys, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _refuse(constant: str) -> float:
    raise ValueError(constant)  # NaN and the infinities are no JSON


def is_whole(value: object, least: int, most: int) -> bool:
    """An integer within bounds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def refuse_code(folder: Path) -> None:
    """Raises ConfigError if a Python file lies there."""
    for file in _files(folder):
        if file.suffix in (".py", ".pyc", ".so"):
            raise ConfigError(
                f"{folder} holds code ({shown(file.name)}), which is never run: remove it"
            )


def refuse_pickles(folder: Path) -> None:
    """Raises ConfigError if a file there is a pickle, by its name or by its first bytes."""
    for file in _files(folder):
        if file.suffix in PICKLES or is_pickle(file):
            raise ConfigError(
                f"{shown(file.name)} in {folder} is a pickle, which can run code: remove it; only "
                "safetensors are read"
            )


def is_pickle(file: Path) -> bool:
    """By its first bytes. Raises ConfigError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(4).startswith(PICKLE_STARTS)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from None


def check_base(folder: Path) -> None:
    """Look at a base's folder before transformers does. Raises ConfigError.

    Pickles may lie beside the safetensors, as in the published bases: they are never opened.
    """
    refuse_code(folder)
    found = {name: read_json(folder / name) for name in CONFIGS if (folder / name).exists()}
    for name, settings in found.items():
        _refuse_code_keys(folder / name, settings)
    if "config.json" in found:  # without, transformers says what is missing
        file, settings = folder / "config.json", found["config.json"]
        _check_sizes(file, settings)
        _compare_sizes(file, settings, headers(folder))


def _check_sizes(file: Path, settings: Json) -> None:
    for name, value in settings.items():
        is_unset = name == "num_decoder_layers" and value is None  # as many as num_layers
        if name in SIZES and not is_unset and not is_whole(value, 1, SIZES[name]):
            raise ConfigError(
                f"{file}: {name} must be a whole number from 1 to {SIZES[name]:,}, not "
                f"{shown(value)}: fetch the base again"
            )
        if name in PARTS and isinstance(value, dict):
            _refuse_code_keys(file, value)
            _check_sizes(file, value)


def headers(folder: Path) -> Json:
    """Name -> type, shape and place of every weight there. Raises ConfigError."""
    found: Json = {}
    for file in weight_files(folder):
        try:
            with file.open("rb") as stream:
                found |= read_header(stream, file, MAX_TOKENIZER_JSON)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    return found


def _compare_sizes(file: Path, settings: Json, found: Json) -> None:
    """Before memory is taken for a size that the weights do not have. Raises ConfigError."""
    for (tensor, dimension), names in SHOWN_BY.items():
        if tensor not in found or any(name not in settings for name in names):
            continue
        told = math.prod(settings[name] for name in names)
        entry = found[tensor]
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or shape[dimension : dimension + 1] != [told]:
            raise ConfigError(
                f"{file}: {' x '.join(names)} is {told:,}, but {tensor} has the shape "
                f"{shown(shape)}: fetch the base again"
            )


def _refuse_code_keys(file: Path, settings: Json) -> None:
    for key in settings:
        if key in CODE_KEYS or key.startswith(CODE_PREFIXES):
            raise ConfigError(
                f"{file}: {shown(key)} is not allowed: it chooses code or other files"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers would open. Raises ConfigError if an index names a file
    that is not in the folder itself."""
    return _whole_or_shards(folder, SAFE)


def pickled_weights(folder: Path) -> list[Path]:
    """The same of pickles, which nobody opens but weights/convert.py."""
    return _whole_or_shards(folder, PICKLED)


def refuse_only_pickled(folder: Path) -> None:
    """Raises ConfigError that names the way out, if there are no other weights."""
    if not weight_files(folder) and pickled_weights(folder):
        raise ConfigError(
            f"{folder} has its weights as {PICKLED} only, a pickle, which can run code: "
            f"report2impression convert --from {folder} --to NEW makes safetensors of it"
        )


def _whole_or_shards(folder: Path, name: str) -> list[Path]:
    single, index = folder / name, folder / f"{name}.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []  # transformers says what is missing
    shards = read_json(index, MAX_TOKENIZER_JSON).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise ConfigError(f"{index}: weight_map must be a table of file names: fetch it again")
    names = sorted(set(shards.values()))
    for shard in names:
        is_right = SHARD.fullmatch(shard) and Path(shard).suffix == Path(name).suffix
        if not is_right or not (folder / shard).is_file():
            raise ConfigError(f"{index}: {shown(shard)} is not the name of a file in {folder}")
    return [folder / shard for shard in names]


def read_header(stream: BinaryIO, file: Path, limit: int) -> Json:
    """The table of tensors at the start of a safetensors file, `limit` bytes of it at most.

    Offsets and sizes are checked by safetensors itself. Raises ConfigError.
    """
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if start.startswith(PICKLE_STARTS):
        raise ConfigError(f"{file} is a pickle under another name: only safetensors are read")
    if len(start) < 8 or length > file.stat().st_size - 8:
        raise ConfigError(f"{file} is cut off, or no safetensors file: fetch it again")
    if length > limit:
        raise ConfigError(f"{file} has a header of {length:,} bytes, {limit:,} are allowed")
    header = parse_json(stream.read(length))
    if header is None:
        raise ConfigError(f"{file} has a header that is no JSON, or a tensor twice: fetch it again")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def refuse_unlike(file: Path, stored: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises ConfigError that names the first tensor which is on one side only."""
    for names, other, what in ((wanted, stored, "lacks"), (stored, wanted, "has no use for")):
        alone = sorted(set(names) - set(other))
        if alone:
            raise ConfigError(
                f"{file} is of another base: {len(set(names) ^ set(other)):,} weights are on one "
                f"side only; it {what} {shown(alone[0])}: give the base it was trained on"
            )
