"""An untrained small T5 for any reports: config, SentencePiece tokenizer trained on them, random
weights.

    python -m report2impression new-base --data.path DIR --output_dir OUT
    accelerate launch train_loop.py --config recipes/denoise.toml --model.path OUT --data.path DIR

The first line makes the base, the second pre-trains it: the way to a T5 where no hub can be
reached.
"""

from report2impression.program.errors import exits_cleanly
from report2impression.weights.options import NewBaseConfig, new_base_settings

if __name__ == "__main__":
    new_base_settings()  # --help and mistakes are answered before torch is loaded

import re
import shutil
import string
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration, T5Tokenizer

from report2impression.program.errors import ConfigError
from report2impression.program.files import new_folder
from report2impression.reading.sources import read_pairs
from report2impression.weights.tokenizer import load_tokenizer

N_SENTINELS = 100  # <extra_id_0> ... <extra_id_99>, as in T5
WORD_START = "\u2581"  # SentencePiece's mark of a blank
LONGEST_PIECE = 16  # characters, SentencePiece's own limit
NUMBER = re.compile(WORD_START + "[0-9]{1,2}")  # a size is copied in one step, or in few


def train_tokenizer(texts: list[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """A T5 tokenizer trained on the texts: unigram pieces, <pad> 0, </s> 1, <unk> 2, sentinels.

    Raises ConfigError if the vocabulary has no room for single characters.
    """
    # The seeds are words of the reports: they stay in a folder that only the owner can read.
    with tempfile.TemporaryDirectory() as private:
        prefix = Path(private) / "spiece"
        try:
            train_pieces(texts, vocab_size, prefix)
        except RuntimeError:  # SentencePiece's own, whose text may quote a report
            raise ConfigError(
                f"vocab_size {vocab_size} is too small for the characters of the reports: give "
                "200 or more"
            ) from None
        shutil.copy(prefix.with_suffix(".model"), folder)
    return T5Tokenizer.from_pretrained(str(folder), extra_ids=N_SENTINELS)


def train_pieces(texts: list[str], vocab_size: int, prefix: Path) -> None:
    """Write prefix.model (and .vocab)."""
    seeds = prefix.with_name("seeds.tsv")
    lines = (f"{piece}\t{count}\n" for piece, count in seed_pieces(texts).items())
    seeds.write_text("".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        model_type="unigram",
        seed_sentencepieces_file=str(seeds),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        character_coverage=1.0,
        max_sentence_length=1_000_000,  # bytes; longer ones would be left out silently
        num_threads=1,  # the same pieces on every machine
        minloglevel=2,
    )


def seed_pieces(texts: list[str]) -> Counter[str]:
    """Candidate pieces with their counts: all parts of words, up to whole words; of digits, only
    numbers of one or two.

    SentencePiece's own seeds are parts that two different words share, so a small corpus gets no
    piece for a common word that stands alone, and is cut into twice as many tokens.
    """
    words = Counter(word for text in texts for word in text.split())
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        marked = WORD_START + word
        for start in range(len(marked)):
            for end in range(start + 1, min(start + LONGEST_PIECE, len(marked)) + 1):
                piece = marked[start:end]
                has_digits = any(map(str.isdigit, piece))
                if len(piece) == 1 or not has_digits or NUMBER.fullmatch(piece):
                    pieces[piece] += count
    return Counter({piece: n for piece, n in pieces.items() if n > 1 or len(piece) == 1})


def t5_config(config: NewBaseConfig, n_tokens: int) -> T5Config:
    """T5 1.0 (ReLU, tied embeddings). The vocabulary rounds up to a multiple of 64 for the
    hardware's sake."""
    return T5Config(
        vocab_size=-(-n_tokens // 64) * 64,
        d_model=config.d_model,
        d_ff=config.d_ff,
        d_kv=config.d_kv,
        num_heads=config.n_heads,
        num_layers=config.n_layers,
        dropout_rate=config.dropout,
        decoder_start_token_id=0,
    )


def new_base(config: NewBaseConfig) -> int:
    """Write the base into config.output_dir, whole or not at all; returns its number of
    parameters. Raises ConfigError if the folder is not empty or cannot be written."""
    folder = Path(config.output_dir).expanduser()
    with new_folder(folder) as partial:
        given, texts = None, []
        if config.tokenizer is None:
            pairs = read_pairs(config.data, "train").pairs
            texts = [text for pair in pairs for text in (pair.prompt, pair.impression)]
        else:
            given = load_tokenizer(config.tokenizer)
        try:
            return write_base(config, given, texts, partial)
        except SafetensorError as error:  # when the disk is full
            reason = type(error).__name__
            raise ConfigError(f"cannot write {folder}: {reason} (--output_dir)") from None


def write_base(
    config: NewBaseConfig, given: PreTrainedTokenizerBase | None, texts: list[str], folder: Path
) -> int:
    """Tokenizer (the given one, or one trained on the texts) and random weights into folder."""
    tokenizer = given or train_tokenizer(texts, config.vocab_size, folder)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(config.seed)
    model = T5ForConditionalGeneration(t5_config(config, len(tokenizer)))
    model.save_pretrained(str(folder))
    return model.num_parameters()


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = new_base_settings(argv)
    n_parameters = new_base(config)
    print(
        f"untrained T5 with {n_parameters:,} parameters: {config.output_dir} (next: pre-train it)"
    )


if __name__ == "__main__":
    main()
