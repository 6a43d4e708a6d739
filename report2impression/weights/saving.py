"""Save an adapter or a whole model, whole or not at all."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from report2impression.program.files import replaced, write_file
from report2impression.weights.adapter_files import CONFIG
from report2impression.weights.families import set_dropout


def save_model(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    write_extras: Callable[[Path], None],
    half: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter (PEFT) or a whole model to `folder`, replacing it only by a complete one
    that is on the disk.

    `write_extras` adds what belongs beside the weights; `half` stores a whole model in fp16;
    `weights` are those of an adapter whose own are in parts.
    Raises OSError.
    """
    with replaced(folder) as temporary:
        if isinstance(model, PeftModel):
            model.save_pretrained(str(temporary), save_embedding_layers=False, state_dict=weights)
            _sort_sets(temporary / CONFIG)
        else:
            stored = copy.deepcopy(model).half() if half else model
            stored.save_pretrained(str(temporary))
            settings = copy.deepcopy(stored.config)
            if hasattr(model, "own_dropout"):
                set_dropout(settings, model.own_dropout)
            settings.save_pretrained(str(temporary))
        write_extras(temporary)


def _sort_sets(file: Path) -> None:
    """PEFT writes sets as lists in any order; the same adapter shall have the same bytes."""
    settings = json.loads(file.read_text())
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings[name], list):
            settings[name].sort()
    write_file(file, json.dumps(settings, indent=2, sort_keys=True).encode())
