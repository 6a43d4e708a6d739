"""engine = "ctranslate2": the same outputs by the CTranslate2 library (extra "ct2"), on the CPU.

The merged model is converted into a temporary folder, which goes when the outputs have been read.
float32 gives the tokens of the other engines; int8 is faster and differs in a few.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from report2impression.batching.tokens import Tokens
from report2impression.decoding.options import DecodingConfig, Output
from report2impression.decoding.search import of_beam, until
from report2impression.decoding.special import no_wishes, special_ids
from report2impression.engine.models import T5Model
from report2impression.program.errors import ConfigError

COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
DEFAULT_BATCH = 48


class Converted:
    """A model as CTranslate2 holds it. Raises ConfigError if the library is missing or cannot do
    what is asked for."""

    def __init__(
        self,
        model: T5Model,
        tokenizer: PreTrainedTokenizerBase,
        precision: str,
        folder: Path | None = None,
    ) -> None:
        """`folder`: where `convert` has put it; none = convert it now, for this once."""
        self.tokenizer, self.special = tokenizer, special_ids(model)
        if folder is not None:
            self.translator = _translator(folder, precision)
            return
        with tempfile.TemporaryDirectory() as temporary:
            convert(model, tokenizer, Path(temporary) / "ct2", precision)
            self.translator = _translator(Path(temporary) / "ct2", precision)

    def decode(
        self,
        source: Tokens,
        order: Sequence[int],
        search: DecodingConfig,
        *,
        scored: bool = False,
    ) -> Iterator[Output]:
        """Outputs of the sources in `order`; `scored`: with the confidence of each, where nothing
        is forbidden: the library's probabilities are of what is allowed."""
        beams = search.num_beams > 1
        scored = scored and not (search.min_new_tokens or search.no_repeat_ngram)
        names = self.tokenizer.convert_ids_to_tokens
        found = self.translator.translate_iterable(
            (names(source.row(i).tolist()) for i in order),
            max_batch_size=search.batch_size or DEFAULT_BATCH,
            beam_size=search.num_beams,
            max_input_length=0,  # no limit: sources were cut before
            max_decoding_length=search.max_new_tokens,
            min_decoding_length=search.min_new_tokens,
            length_penalty=search.length_penalty,
            no_repeat_ngram_size=search.no_repeat_ngram,
            return_scores=beams or scored,
            end_token=list(self.special.ends),
        )
        for index, result in zip(order, found, strict=True):
            ids = until(self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]), self.special)
            score = result.scores[0] if result.scores else None
            confidence = of_beam(ids, score, search) if scored and score is not None else None
            cut = len(ids) >= search.max_new_tokens
            yield Output(index, ids, score if beams else None, cut, confidence)


def convert(
    model: T5Model, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: str
) -> None:
    """Write the model to a new folder in the library's format. Raises ConfigError."""
    if isinstance(model, PeftModel):
        raise ConfigError("engine = ctranslate2 decodes merged models only: use engine = torch")
    config = model.config
    if config.model_type != "t5" or not tokenizer.is_fast:
        raise ConfigError(
            "engine = ctranslate2 is there for t5 with SentencePiece only: use engine = hf"
        )
    if config.tie_word_embeddings != config.scale_decoder_outputs:
        # Its converter takes the one for the other.
        raise ConfigError("engine = ctranslate2 does not fit this T5's output head: use torch")
    library = _library()
    # Its T5 has end-of-sequence in every source, as ours have.
    with tempfile.TemporaryDirectory() as temporary:
        with no_wishes(model):
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        with _told(precision):
            converter = library.converters.TransformersConverter(temporary)
            converter.convert(str(folder), quantization=COMPUTE_TYPES[precision])


def _translator(folder: Path, precision: str) -> Any:
    with _told(precision):
        return _library().Translator(
            str(folder),
            device="cpu",
            compute_type=COMPUTE_TYPES[precision],
            intra_threads=torch.get_num_threads(),
        )


def _library() -> Any:
    try:
        import ctranslate2
        import ctranslate2.converters
    except ImportError:
        raise ConfigError(
            'ctranslate2 needs the extra "ct2": pip install -c constraints.txt ".[ct2]"'
        ) from None
    return ctranslate2


@contextmanager
def _told(precision: str) -> Iterator[None]:
    """An error of the library in one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"ctranslate2 cannot load this model as {COMPUTE_TYPES[precision]} here "
            f"({type(error).__name__}): try another --precision, or engine = torch"
        ) from None
