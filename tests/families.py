"""A tiny random base of each kind that is read, with a tokenizer of that kind's own class."""

import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    ByT5Tokenizer,
    GemmaTokenizer,
    MBartTokenizer,
    PegasusTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

Settings = dict[str, Any]
WORDS = ("the", "lungs", "are", "clear", "no", "acute", "heart", "size", "is", "normal", "with")
T5: Settings = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
LAYERS: Settings = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"layers": 2, "ffn_dim": 24, "attention_heads": 2}.items()
}
BART: Settings = {"d_model": 16, "max_position_embeddings": 128, **LAYERS}
GEMMA: Settings = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 8},
    # The first layer sees its neighbours, the second everything.
    **{"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}
PICTURES: Settings = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}


def pieces(*special: str) -> list[tuple[str, float]]:
    """A SentencePiece vocabulary: words, and every ASCII sign."""
    signs = [*string.ascii_letters, *string.digits, *string.punctuation, "▁"]
    words = [(f"▁{word}", -2.0) for word in WORDS]
    return [*((token, 0.0) for token in special), *words, *((sign, -6.0) for sign in signs)]


def of_bart(kind: type[Any] = RobertaTokenizer) -> PreTrainedTokenizerBase:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    return kind(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def of_mbart() -> PreTrainedTokenizerBase:
    return MBartTokenizer(vocab=pieces("<s>", "<pad>", "</s>", "<unk>"), src_lang="en_XX")


def of_gemma() -> PreTrainedTokenizerBase:
    own = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters]
    tokens = [*own, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)


def of_t5() -> PreTrainedTokenizerBase:
    return T5Tokenizer(vocab=pieces("<pad>", "</s>", "<unk>"), extra_ids=4)


def of_pegasus() -> PreTrainedTokenizerBase:
    return PegasusTokenizer(vocab=pieces("<pad>", "</s>", "<mask_1>", "<unk>"))


class Family(NamedTuple):
    """How a base of this kind is made."""

    model_type: str
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    settings: Callable[[int], Settings]  # of a vocabulary's size


def flat(**own: Any) -> Callable[[int], Settings]:
    return lambda n: {"vocab_size": n, **own}


def gemma(n: int) -> Settings:
    side = {"vocab_size": n, **GEMMA}
    return {"encoder": side, "decoder": {**side, "cross_attention_hidden_size": 16}}


def gemma_2(n: int) -> Settings:
    """The text's side and the pictures': three of the words mean a picture."""
    marks = {"eoi_token_index": n - 1, "boi_token_index": n - 2, "image_token_index": n - 3}
    side = {"vocab_size": n, **GEMMA}
    encoder = {"text_config": side, "vision_config": PICTURES, "mm_tokens_per_image": 4, **marks}
    return {"encoder": encoder, "decoder": side, "image_token_index": n - 3}


T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: dict[str, Family] = {
    "T5 1.0": Family("t5", of_t5, flat(**T5)),
    "T5 1.1, Flan-T5": Family("t5", of_t5, flat(**T5, **T5_1_1)),
    "ByT5": Family("t5", ByT5Tokenizer, flat(**T5, **T5_1_1)),
    "mT5": Family("mt5", of_t5, flat(**T5)),
    "umT5": Family("umt5", of_t5, flat(**T5)),
    "LongT5": Family("longt5", of_t5, flat(**T5, local_radius=3)),
    "LongT5, transient global": Family(
        "longt5",
        of_t5,
        flat(**T5, encoder_attention_type="transient-global", local_radius=3, global_block_size=4),
    ),
    "BART": Family("bart", of_bart, flat(**BART)),
    "mBART": Family("mbart", of_mbart, flat(**BART, decoder_start_token_id=5)),
    "Pegasus": Family("pegasus", of_pegasus, flat(**BART)),
    "LED": Family(
        "led",
        partial(of_bart, RobertaTokenizer),
        flat(
            **{"d_model": 16, "attention_window": 4, **LAYERS},
            **{"max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 64},
        ),
    ),
    "T5Gemma": Family("t5gemma", of_gemma, lambda n: {**gemma(n), "vocab_size": n}),
    "T5Gemma 2": Family("t5gemma2", of_gemma, gemma_2),
}


def make_base(name: str, folder: Path, **sizes: int) -> Path:
    """Weights so large that outputs depend on the source; `sizes` of another base than the
    smallest."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    config = AutoConfig.for_model(family.model_type, **family.settings(len(tokenizer)) | sizes)
    torch.manual_seed(2)  # of those with which no base writes one output for every source
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for layer, weight in model.named_parameters():
            # Gemma's would else repeat the token before.
            small = "gemma" in family.model_type and "embed" in layer
            if weight.dim() > 1:
                weight.normal_(std=0.1 if small else 0.4)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
