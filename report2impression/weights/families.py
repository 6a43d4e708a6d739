"""Which encoder-decoders are read as bases, and in what their configs differ.

An allow-list by `model_type`: on each of these, loss, gradients, merging and generation are tested
against transformers' own (docs/bases.md). Elsewhere a start token, a head or a tower that nobody
looked at would be trained in silence.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from report2impression.program.errors import ConfigError

LIKE_T5 = ("t5", "mt5", "umt5", "longt5")
LIKE_BART = ("bart", "mbart", "pegasus", "led")
LIKE_GEMMA = ("t5gemma", "t5gemma2")
SUPPORTED = (*LIKE_T5, *LIKE_BART, *LIKE_GEMMA)
# Linear layers that a text alone does not reach: of pictures, and of LED's global attention.
LEFT_OUT = {"vision_tower", "multi_modal_projector", "query_global", "key_global", "value_global"}


def check_family(what: str, path: str, model_type: object) -> None:
    """Raises ConfigError if the base is of another kind."""
    if model_type not in SUPPORTED:
        raise ConfigError(
            f"{what} {path} is a {ascii(model_type)[:40]}: only these encoder-decoders are read: "
            f"{', '.join(SUPPORTED)} (docs/bases.md)"
        )


def start_id(settings: Any) -> int | None:
    """What the decoder begins with, where a config does not say it: T5's kind with padding, Gemma's
    with the beginning of a text; of the others it has to be said."""
    stated = getattr(settings, "decoder_start_token_id", None)
    if stated is not None:
        return stated
    if settings.model_type in LIKE_T5:
        return settings.pad_token_id
    return settings.decoder.bos_token_id if settings.model_type in LIKE_GEMMA else None


def dropout_of(settings: Any) -> float:
    """The probability that the config states for its hidden states."""
    return getattr(settings, _dropout_name(settings))


def set_dropout(settings: Any, p: float) -> None:
    """In the config, and in those of its encoder and decoder."""
    name = _dropout_name(settings)
    for part in _parts(settings):
        if hasattr(part, name):
            setattr(part, name, p)


def _dropout_name(settings: Any) -> str:
    return "dropout" if settings.model_type in LIKE_BART else "dropout_rate"


def _parts(settings: Any) -> Iterator[Any]:
    yield settings
    for name in getattr(settings, "sub_configs", ()):
        yield from _parts(getattr(settings, name))


def check_lengths(settings: Any, n_source: int, n_target: int) -> None:
    """Raises ConfigError if a base with a table of positions has none for so many tokens."""
    both = getattr(settings, "max_position_embeddings", None)
    if settings.model_type not in LIKE_BART:
        return  # distances, or rotations: no end
    sides = (
        ("source", n_source, getattr(settings, "max_encoder_position_embeddings", both)),
        ("target", n_target, getattr(settings, "max_decoder_position_embeddings", both)),
    )
    for side, wanted, there in sides:
        if there is not None and wanted > there:
            raise ConfigError(
                f"this {settings.model_type} has {there:,} places for {side} tokens, not "
                f"{wanted:,}: lower --data.max_{side}_tokens or --max_new_tokens"
            )


def lora_targets(base: Any, wanted: Sequence[str]) -> str | list[str]:
    """As PEFT takes them: names of layers or `all-linear`; where the base has layers to leave out,
    the full names of all others."""
    everything = list(wanted) == ["all-linear"]
    if all(LEFT_OUT.isdisjoint(name.split(".")) for name, _ in base.named_modules()):
        return "all-linear" if everything else list(wanted)
    ends = tuple(f".{name}" for name in wanted)
    return [name for name in adaptable(base) if everything or f".{name}".endswith(ends)]


def adaptable(base: Any) -> list[str]:
    """Names of the linear layers that an adapter may change: not the head, which may be tied to the
    embedding, so that merging would change that, too."""
    from torch import nn  # what a dry run asks here needs none

    head = base.get_output_embeddings()
    return [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
        and layer is not head
        and LEFT_OUT.isdisjoint(name.split("."))
    ]
