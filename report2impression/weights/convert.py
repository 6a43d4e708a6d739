"""A base that exists only as pytorch_model.bin -> the same base in safetensors.

    report2impression convert --from DIR --to DIR2

Such a file is a pickle, which can run code when it is opened. Here it is opened in a process of its
own, for tensors only and within limits (weights/unpickle.py); what comes back must have the names
and shapes of the model that config.json describes. converted.json keeps where it came from.
"""

from report2impression.program.errors import exits_cleanly
from report2impression.weights.options import ConvertConfig, convert_settings

if __name__ == "__main__":
    convert_settings()  # --help and mistakes are answered before torch is loaded

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from report2impression.program.errors import ConfigError
from report2impression.program.files import discard, new_folder
from report2impression.weights import unpickle
from report2impression.weights.base_files import (
    CONFIGS,
    MAX_TOKENIZER_JSON,
    check_base,
    pickled_weights,
    read_header,
    shown,
    weight_files,
)
from report2impression.weights.families import check_family
from report2impression.weights.loading import load_base
from report2impression.weights.opening import one_line_errors
from report2impression.weights.options import ModelConfig

KEPT = (
    *(*CONFIGS, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "README.md"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.json", "merges.txt"),
)
RECORD = "converted.json"
# Of the process that opens the pickle: a clone of each tensor, and what the library takes besides.
TIMES_SIZE, SPARE_MIB = 4, 512
SECONDS, SECONDS_PER_GIB = 60, 60  # of a processor
PATIENCE = 20  # times that, by the clock


def convert(config: ConvertConfig) -> int:
    """Write the base to config.to, whole or not at all; returns its number of parameters.

    Raises ConfigError: nothing to convert, more than tensors in it, another model's, or too large.
    """
    source, target = Path(config.from_).expanduser(), Path(config.to).expanduser()
    if not source.is_dir():
        raise ConfigError(f"there is no folder {source}: fetch the base first (--from)")
    check_base(source)
    pickles = pickled_weights(source)
    if weight_files(source) or not pickles:
        there = "safetensors already" if weight_files(source) else "no pytorch_model.bin"
        raise ConfigError(f"{source} has {there}: there is nothing to convert")
    with new_folder(target) as folder:
        raw = folder / ".raw"
        raw.mkdir()
        _copy_kept(source, raw)
        shapes = _shapes(raw)
        weights = raw / "model.safetensors"
        _unpickled(pickles, weights)
        _compare(weights, pickles[0], shapes)
        model = load_base(ModelConfig(path=str(raw)))  # names, and that all of it is finite
        discard(raw)
        model.save_pretrained(str(folder))
        _copy_kept(source, folder)
        origin = [
            {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in pickles
        ]
        (folder / RECORD).write_text(json.dumps({"converted_from": origin}, indent=2))
    return model.num_parameters()


def _copy_kept(source: Path, folder: Path) -> None:
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Of every weight of the model that the config describes; it takes no memory for them."""
    with one_line_errors("model", str(folder)):
        settings = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    check_family("model", str(folder), settings.model_type)
    with one_line_errors("model", str(folder)), torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(settings, trust_remote_code=False)
    return {name: list(weight.shape) for name, weight in model.state_dict().items()}


def _unpickled(pickles: Sequence[Path], out: Path) -> None:
    size = sum(file.stat().st_size for file in pickles)
    mib = SPARE_MIB + TIMES_SIZE * size // 2**20
    seconds = SECONDS + SECONDS_PER_GIB * size // 2**30
    program = [sys.executable, "-I", unpickle.__file__, str(out), str(mib), str(seconds)]
    try:
        done = subprocess.run(
            [*program, *map(str, pickles)],
            env={"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE * seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        done = 1
    if done:
        raise ConfigError(
            f"{pickles[0]} is not converted: it asks for more than tensors, is cut off, or takes "
            f"more than {mib:,} MiB or {seconds:,} s: fetch it again from where it is published"
        )


def _compare(weights: Path, pickled: Path, shapes: dict[str, list[int]]) -> None:
    with weights.open("rb") as stream:
        header = read_header(stream, weights, MAX_TOKENIZER_JSON)
    for name, entry in header.items():
        if name in shapes and entry.get("shape") != shapes[name]:
            raise ConfigError(
                f"{pickled} is of another model: {shown(name)} has the shape "
                f"{shown(entry.get('shape'))}, by config.json it is {shapes[name]}: fetch both "
                "from one place"
            )


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = convert_settings(argv)
    n_parameters = convert(config)
    print(f"{n_parameters:,} parameters in safetensors: {config.to} (origin: {RECORD})")


if __name__ == "__main__":
    main()
