"""engine = "fast": T5 + LoRA on packed tokens, on the parameters of a Hugging Face + PEFT model.

PEFT owns the parameters and the adapter's format; this file owns the arithmetic (its pieces:
ops.py, attention.py). No linear sees a padding token, linears that share an input are one
matrix product, masks and position biases are built once per stack and step, and the vocabulary is
only projected on at label tokens. `model.PaddedEngine` is the reference: equal loss and gradients
in fp32.

Nothing here waits for the device: every index comes with the batch (collation.collate_packed).

B examples; S source and T target places of the padded grids; N source and M target tokens, packed;
D model width, H heads, K head width, V vocabulary, R LoRA rank.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from report2impression.engine.adapter import Pairs, Step
from report2impression.engine.attention import Grid
from report2impression.engine.batch import PackedBatch
from report2impression.engine.blocks import Block, Group, Memory, Stack
from report2impression.engine.frozen import Reordered, reordered
from report2impression.engine.models import output_scale
from report2impression.engine.ops import Dropout, summed_cross_entropy

REORDERED_BYTES = 2**31  # of copies of the frozen matrices: those of T5-base in fp32 fit


class FastEngine(nn.Module):
    """The training forward of a model that `why_not_train` has no word against.

    Takes the frozen matrices over into `dtype`, once: from then on the model's own layers look at
    the engine's storage (and need autocast to run). The adapter stays fp32. Build it after the
    model is on its device.
    """

    def __init__(self, model: PeftModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model()
        self.config = base.config
        self.start_id: int = base.config.decoder_start_token_id
        self.pad_id: int = base.config.pad_token_id
        self.scale = output_scale(base.config)
        self.dtype = dtype
        self.pairs = Pairs()
        encoder = [Block(block, dtype, self.pairs) for block in base.encoder.block]
        decoder = [Block(block, dtype, self.pairs) for block in base.decoder.block]
        self.encoder = Stack(base.encoder, encoder, dtype)
        self.decoder = Stack(base.decoder, decoder, dtype)
        tied = base.lm_head.weight is base.shared.weight
        self.embedding = _freeze(
            dtype, base.shared, base.encoder.embed_tokens, base.decoder.embed_tokens
        )
        self.vocabulary = _freeze(dtype, base.lm_head)
        if tied:
            base.lm_head.weight, self.vocabulary = base.shared.weight, self.embedding
        self.copies: Reordered | None = None
        self._reorder([group for block in encoder + decoder for group in block.groups()])

    def _reorder(self, groups: Sequence[Group]) -> None:
        """Hold the matrices in oneDNN's order, too, both ways; large ones have no room for that."""
        n_bytes = self.vocabulary.nbytes + sum(group.weight.nbytes for group in groups)
        if 2 * n_bytes > REORDERED_BYTES:
            return
        self.copies = reordered(self.vocabulary)
        for group in groups:
            group.copies = reordered(group.weight) if group.adapted else None

    def forward(self, batch: PackedBatch) -> Tensor:
        """Cross-entropy summed over the label tokens, fp32 scalar."""
        device, heads = batch.source_ids.device, self.config.num_heads
        with torch.autocast(device.type, enabled=False):
            step = self._step(device)
            source = [Grid(*places, heads) for places in batch.sources]
            target = [Grid(*places, heads) for places in batch.targets]
            paddings = [self._padding(keys) for keys in batch.keys]

            # What is added to the scores, (B * H, T or 1, S), once for all blocks of a stack.
            biases = [
                (self.encoder.position_bias(grid.shape[1]) + padding).flatten(0, 1)
                for grid, padding in zip(source, paddings, strict=True)
            ]
            states = self.encoder(step, self.embedding[batch.source_ids], source, biases)
            paddings = [padding.expand(-1, heads, -1, -1).flatten(0, 1) for padding in paddings]
            biases = [
                self.decoder.position_bias(length).expand(n, -1, -1, -1).flatten(0, 1)
                for n, length in (grid.shape for grid in target)
            ]
            memory = Memory(states, source, paddings)
            hidden = self.decoder(step, self.embedding[batch.decoder_ids], target, biases, memory)
            if self.scale != 1:
                hidden = hidden * self.scale
            return summed_cross_entropy(
                hidden,
                self.vocabulary,
                batch.labels,
                None if torch.compiler.is_compiling() else self.copies,
            )

    def position_biases(self, source: int, target: int) -> list[Tensor]:
        """Those of grids so wide; as long as they are kept, biases up to there do not move."""
        return [self.encoder.position_bias(source), self.decoder.position_bias(target)]

    def _padding(self, keys: Tensor) -> Tensor:
        """(B, S) -> (B, 1, 1, S), -inf where there is no token."""
        padding = torch.zeros(keys.shape, dtype=self.dtype, device=keys.device)
        return padding.masked_fill_(~keys, float("-inf"))[:, None, None, :]

    def _step(self, device: torch.device) -> "Step":
        p_lora = self.pairs.dropout if self.training else 0.0
        p_model = self.config.dropout_rate if self.training else 0.0
        in_lora = Dropout(p_lora, self.dtype, device)
        scale = self.pairs.scaling * (in_lora.scale if in_lora.on else 1.0)
        return Step(
            Dropout(p_model, self.dtype, device), in_lora, self.pairs.packed(self.dtype, scale)
        )


def _freeze(dtype: torch.dtype, *modules: nn.Module) -> Tensor:
    """The weight that the modules share, in `dtype`; they keep no other copy."""
    weight = modules[0].weight.detach().to(dtype)  # type: ignore[operator]
    shared = nn.Parameter(weight, requires_grad=False)  # one for all: it is counted once
    for module in modules:
        module.weight = shared
    return weight
