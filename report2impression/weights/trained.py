"""The model and the tokenizer of what a training left behind, whichever form it has."""

import hashlib
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from report2impression.weights import adapter_files
from report2impression.weights.base_files import weight_files
from report2impression.weights.folders import TrainedFolder
from report2impression.weights.loading import load_adapter, load_base, merged
from report2impression.weights.options import ModelConfig
from report2impression.weights.tokenizer import load_tokenizer


def check_trained(found: TrainedFolder) -> None:
    """Refuse an adapter before hours of decoding. Raises ConfigError."""
    if found.is_adapter:
        adapter_files.read_settings(found.path)


def trained_tokenizer(found: TrainedFolder, base: ModelConfig) -> PreTrainedTokenizerBase:
    """The one trained with: a whole model has its own beside it. Raises ConfigError."""
    if found.is_adapter:
        return load_tokenizer(base.path, base.revision)
    return load_tokenizer(str(found.path))


def trained_model(
    found: TrainedFolder, base: ModelConfig, loaded: PreTrainedModel | None = None
) -> PreTrainedModel:
    """In fp32, an adapter merged into its base; `loaded` is that base, if it is there already, and
    is consumed. Raises ConfigError."""
    if found.is_adapter:
        return merged(load_adapter(loaded or load_base(base), found.path))
    return load_base(replace(base, path=str(found.path), revision=None, dropout=None))


def weights_sha256(found: TrainedFolder) -> str:
    """Of the files of weights, which alone tell one training from another."""
    adapter = [found.path / adapter_files.WEIGHTS] if found.is_adapter else []
    digest = hashlib.sha256()
    for file in adapter or weight_files(found.path):
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
