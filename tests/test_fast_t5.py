"""The fast engine against HF + PEFT: equal loss and gradients, and what it may and may not do."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration

from model import PaddedEngine, build_engine, build_model
from report2impression.batching.collation import Example, collate_packed, collate_padded
from report2impression.engine import attention as fast_attention
from report2impression.engine import fast
from report2impression.engine import ops as fast_ops
from report2impression.engine.batch import PackedBatch
from report2impression.engine.blocks import Group
from report2impression.engine.fast import FastEngine
from report2impression.engine.models import count_parameters, why_not_train
from report2impression.engine.ops import Dropout
from report2impression.weights.loading import with_adapter
from tests.tiny import Tiny, run_loop

VOCABULARY = 128
Lengths = Sequence[tuple[int, int]]  # (source, target) tokens of each example
CPU = torch.device("cpu")


def adapted_t5(
    *,
    gated: bool = False,
    feed_forward: str = "gated-gelu",
    r: int = 4,
    dropout: float = 0.0,
    lora_dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    rslora: bool = False,
    **shape: int,
) -> PeftModel:
    """A small T5 with an adapter that acts (random B); `gated` = the T5 1.1 form: gated GELU, own
    head, unscaled states."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3} | shape
    form = {"feed_forward_proj": feed_forward, "tie_word_embeddings": False} if gated else {}
    config = T5Config(
        vocab_size=VOCABULARY,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        attn_implementation="eager",
        **sizes,
        **form,
    )
    base = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in base.named_parameters():
            if "layer_norm" in name or "relative_attention_bias" in name:
                weight += 0.3 * torch.randn_like(weight)  # ones and near-zeros would hide mistakes
    if gated:
        base.lm_head.weight = nn.Parameter(torch.randn_like(base.lm_head.weight))
    settings = LoraConfig(
        r=r,
        lora_alpha=8,
        lora_dropout=lora_dropout,
        target_modules=targets,
        use_rslora=rslora,
        task_type=TaskType.SEQ_2_SEQ_LM,
    )
    model = with_adapter(base, settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def examples(lengths: Lengths) -> list[Example]:
    draw = np.random.default_rng(0)

    def ids(n: int) -> Any:
        return draw.integers(1, VOCABULARY, n).astype(np.int32)

    return [(ids(source), ids(target)) for source, target in lengths]


def packed(lengths: Lengths, multiple: int = 1, *, cut: bool = False) -> PackedBatch:
    return collate_packed(examples(lengths), start_id=0, pad_id=0, multiple=multiple, cut=cut)


@pytest.fixture(autouse=True)
def _short_grids() -> Iterator[None]:
    """Let small examples part into several grids, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report2impression.batching.collation.SHORT", 4)
        yield


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_hf(model: PeftModel, lengths: Lengths, multiple: int = 1) -> None:
    """Loss to 1e-6, every gradient to 1e-5 relative. One that is what is left of larger terms (a
    dot product near 0) rounds worse, in HF too: it may err, against fp64, as HF does, or by 1e-6 of
    the largest gradient."""
    assert why_not_train(model) is None
    twin, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    theirs = PaddedEngine(model)(collate_padded(examples(lengths), pad_id=0))
    ours = FastEngine(twin, torch.float32)(packed(lengths, multiple, cut=True))
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    theirs.backward()
    ours.backward()
    PaddedEngine(exact)(collate_padded(examples(lengths), pad_id=0)).backward()
    mine, reference, truth = gradients(twin), gradients(model), gradients(exact)
    assert mine.keys() == reference.keys() and mine
    largest = max(float(g.norm()) for g in truth.values())
    for name, gradient in reference.items():
        if float((mine[name] - gradient).norm()) > 1e-5 * float(gradient.norm()):
            hf_error = float((gradient - truth[name]).norm())
            error = float((mine[name] - truth[name]).norm())
            assert error <= 3 * hf_error + 1e-6 * largest, name


# --- exactness -----------------------------------------------------------------------------------

SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(
    lengths=SHAPES,
    r=st.sampled_from([1, 4, 16]),
    gated=st.booleans(),
    rslora=st.booleans(),
    targets=st.sampled_from(["all-linear", ["q", "v"], ["k", "o", "wo"], ["wi", "wi_1"]]),
)
def test_loss_and_gradients_are_those_of_hf(
    lengths: Lengths, r: int, gated: bool, rslora: bool, targets: Any
) -> None:
    assert_equal_to_hf(adapted_t5(r=r, gated=gated, rslora=rslora, targets=targets), lengths)


@pytest.mark.parametrize("multiple", [16, 128])
@pytest.mark.parametrize("lengths", [[(9, 15), (30, 4), (1, 1)], [(16, 16)] * 3], ids=["", "full"])
def test_tokens_that_round_up_change_nothing(lengths: Lengths, multiple: int) -> None:
    assert_equal_to_hf(adapted_t5(), lengths, multiple)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [[(512, 256), (3, 200)], [(16, 16)] * 3, [(1, 1)], [(17, 1), (1, 33)]],
    ids=["longest", "equal_and_full", "one_token", "one_sided"],
)
def test_edges_of_length(lengths: Lengths, gated: bool) -> None:
    assert_equal_to_hf(adapted_t5(gated=gated), lengths)


@pytest.mark.parametrize("feed_forward", ["gated-relu", "gated-silu", "gelu", "relu"])
def test_every_feed_forward_of_the_family(feed_forward: str) -> None:
    """An activation in place may not touch a gate, which is a view of what both halves share."""
    assert_equal_to_hf(adapted_t5(gated=True, feed_forward=feed_forward), [(9, 15), (4, 20)])


def test_cross_entropy_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_ops, "CROSS_ENTROPY_ROWS", 7)
    assert_equal_to_hf(adapted_t5(), [(9, 15), (4, 20)])


def test_the_path_for_cuda_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(q: Any, kv: Any, queries: Any, keys: Any, bias: Any, drop: Any) -> Tensor:
        return fast_attention._sdpa(q, kv, queries, keys, bias, 0.0)

    monkeypatch.setattr("report2impression.engine.blocks.attention", fused)
    assert_equal_to_hf(adapted_t5(), [(9, 15), (30, 4), (1, 1)], multiple=128)


def test_matrices_too_large_for_copies_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied() -> list[bool]:
        engine = FastEngine(adapted_t5(), torch.float32)
        groups = [group for block in engine.encoder.blocks for group in block.groups()]
        return [engine.copies is not None, *(group.copies is not None for group in groups)]

    assert all(copied())
    monkeypatch.setattr(fast, "REORDERED_BYTES", 1000)
    assert not any(copied())
    assert_equal_to_hf(adapted_t5(), [(9, 7), (5, 3)])


def test_another_head_than_the_embedding() -> None:
    model = adapted_t5(gated=True)
    base = model.get_base_model()
    assert base.lm_head.weight is not base.shared.weight
    engine = FastEngine(model, torch.float32)
    assert engine.vocabulary is not engine.embedding


def test_no_examples_cost_nothing_and_still_give_gradients() -> None:
    model = adapted_t5(dropout=0.1, lora_dropout=0.1)
    engine = FastEngine(model, torch.float32)
    loss = engine(collate_packed([], start_id=0, pad_id=0))
    loss.backward()
    assert loss.item() == 0.0
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(gradients(model)) == len(trainable)
    assert not any(g.any() for g in gradients(model).values())


def test_fifty_steps_are_those_of_hf_each_from_the_same_state(tiny: Tiny, tmp_path: Any) -> None:
    """The loss and the whole gradient of every step, at the weights that training has reached by
    then; how rounding adds up over steps says nothing of an engine and differs between CPUs."""
    config = tiny.recipe(tmp_path, epochs=7, max_steps=50)
    dataset = tiny.training_data(config)
    ours, theirs = (build_model(config, CPU) for _ in range(2))
    engine, collate, _ = build_engine(config, ours, CPU)
    reference = PaddedEngine(theirs)
    weights, copies = (
        [p for p in model.parameters() if p.requires_grad] for model in (ours, theirs)
    )
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    start = [weight.detach().clone() for weight in weights]
    steps = [step for epoch in range(7) for step in config.plan(dataset, epoch, 1)][:50]
    for step in steps:
        with torch.no_grad():
            for copy_, weight in zip(copies, weights, strict=True):
                copy_.copy_(weight)
        batch = [dataset[int(i)] for i in step.indices]
        mine = engine(collate(batch))
        true = reference(collate_padded(batch, pad_id=theirs.config.pad_token_id))
        assert mine.item() == pytest.approx(true.item(), rel=1e-6)
        for loss, own in ((mine, weights), (true, copies)):
            for weight in own:
                weight.grad = None
            loss.backward()
        found, wanted = (
            torch.cat([weight.grad.flatten().double() for weight in own])
            for own in (weights, copies)
        )
        assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())
        optimizer.step()
    moved = [float((w.detach() - s).abs().max()) for w, s in zip(weights, start, strict=True)]
    assert len(steps) == 50 and max(moved) > 1e-2


@pytest.fixture(scope="module")
def losses_of(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[float]]:
    @cache
    def run(precision: str, n_steps: int) -> list[float]:
        folder = tmp_path_factory.mktemp(precision)
        config = tiny.recipe(folder, precision=precision, epochs=7, max_steps=n_steps)
        return run_loop(config, tiny.training_data(config)).column("loss")

    return run


@pytest.mark.parametrize("n_steps", [16, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32(
    losses_of: Callable[..., list[float]], precision: str, n_steps: int
) -> None:
    expected = losses_of("fp32", n_steps)
    assert len(expected) == n_steps
    assert losses_of(precision, n_steps) == pytest.approx(expected, rel=0.02)


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_keep_the_share_they_claim(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drop = Dropout(p, dtype, CPU)
    masks = [drop.mask(400, 700) for _ in range(4)]
    n = 4 * 400 * 700
    mean = sum(float(m.double().sum()) for m in masks if m is not None) / n
    error = (p * (1 - p) / n) ** 0.5
    assert abs(mean * drop.scale - 1.0) < 4 * error
    assert abs(1 - 1 / drop.scale - p) <= 1 / 512
    assert masks[0] is not None and set(masks[0].unique().tolist()) == {0.0, 1.0}


def test_masks_are_fresh_independent_and_repeatable() -> None:
    def draw() -> list[Tensor]:
        torch.manual_seed(3)
        drop = Dropout(0.5, torch.float32, CPU)
        return [m for m in (drop.mask(300, 1000), drop.mask(300, 1000)) if m is not None]

    first, second = draw()
    again = draw()
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    centred = (first - 0.5), (second - 0.5)
    n = first.numel()
    for a, b in [centred, (centred[0][:, 1:], centred[0][:, :-1])]:
        assert abs(float((a * b).mean()) * 4) < 4 / n**0.5
    other = Dropout(0.5, torch.float32, CPU).mask(300, 1000)  # the generator has moved on
    assert other is not None and not torch.equal(first, other)


def test_dropout_is_off_in_evaluation() -> None:
    engine = FastEngine(adapted_t5(dropout=0.3, lora_dropout=0.3), torch.float32).eval()
    batch = packed([(9, 7), (5, 3)])
    with torch.no_grad():
        assert engine(batch).item() == engine(batch).item()
        engine.train()
        assert engine(batch).item() != engine(batch).item()


@pytest.mark.parametrize(
    "where",
    [
        pytest.param({"dropout": 0.1}, marks=pytest.mark.slow),
        pytest.param({"lora_dropout": 0.1}, marks=pytest.mark.slow),
        {"dropout": 0.2, "lora_dropout": 0.2},
    ],
)
def test_mean_loss_under_dropout_is_that_of_hf(where: dict[str, float]) -> None:
    model = adapted_t5(**where, num_layers=1)  # type: ignore[arg-type]
    engine = FastEngine(copy.deepcopy(model), torch.float32)
    for drop in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        drop.p = round(256 * drop.p) / 256  # what a byte can express
    reference, n = PaddedEngine(model).train(), 300
    lengths = [(12, 9)] * 4
    padded, ours = collate_padded(examples(lengths), pad_id=0), packed(lengths)
    torch.manual_seed(0)
    with torch.no_grad():
        means = {
            "hf": torch.tensor([reference(padded).item() for _ in range(n)]),
            "fast": torch.tensor([engine.train()(ours).item() for _ in range(n)]),
        }
    error = float((means["hf"].var() / n + means["fast"].var() / n) ** 0.5)
    assert abs(float(means["hf"].mean() - means["fast"].mean())) < 4 * error
    spread = float(means["fast"].std() / means["hf"].std())
    assert 0.8 < spread < 1.25  # as much noise, too: no place without dropout, none with it twice


# --- gradients under dropout ---------------------------------------------------------------------


def test_gradients_under_dropout_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FastEngine(adapted_t5(dropout=0.2, lora_dropout=0.2), torch.float32)
    batch = packed([(9, 7), (5, 3)])
    model = engine.model

    def loss() -> Tensor:
        torch.manual_seed(5)  # the same masks every time
        return engine(batch)

    loss().backward()
    found = gradients(model)
    torch.manual_seed(1)
    direction = {n: torch.randn_like(g) * g.norm() for n, g in found.items()}
    expected = sum(float((found[n] * d).double().sum()) for n, d in direction.items())
    step, weights = (
        1e-3 / max(float(g.norm()) for g in found.values()),
        dict(model.named_parameters()),
    )
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, d in direction.items():
                weights[name] += sign * step * d
            ends.append(loss().item())
            for name, d in direction.items():
                weights[name] -= sign * step * d
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.02)


# --- what a step costs, what it covers ----------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts what reaches a kernel: views and allocations launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        allocates = name.startswith(("empty", "new_empty"))
        if not (func.is_view or allocates or name in ("detach", "_unsafe_view")):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


SYNCS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}


USUAL = [(30 + 3 * i, 8 + i) for i in range(16)]  # (source, target) tokens of a micro-batch


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1520), (torch.bfloat16, 1530)])
def test_a_micro_step_of_t5_small_takes_few_operations_and_no_sync(
    dtype: torch.dtype, most: int
) -> None:
    model = adapted_t5(dropout=0.1, lora_dropout=0.1, num_layers=6, d_model=32, num_heads=8, d_kv=4)
    engine = FastEngine(model, dtype).train()
    batch = packed(USUAL)
    engine(batch).backward()  # biases are cached from here on
    model.zero_grad(set_to_none=True)
    with Operations() as operations:
        engine(batch).backward()
    assert not SYNCS & set(operations.names)
    assert operations.names.total() <= most, operations.names


def test_the_frozen_base_is_stored_once_in_the_compute_dtype() -> None:
    model = adapted_t5()
    n_frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    engine = FastEngine(model, torch.bfloat16)
    matrices = [p for p in model.parameters() if not p.requires_grad and p.dim() == 2]
    large = [p for p in matrices if p.shape != (32, 3)]  # but the table of position biases
    assert {p.dtype for p in large} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in large}
    group = engine.encoder.blocks[0].qkv
    assert isinstance(group, Group)
    held = {t.data_ptr() for t in (engine.embedding, group.weight)}
    assert held <= set(storages)
    assert sum(storages.values()) <= 2 * n_frozen
    assert model.get_base_model().lm_head.weight is model.get_base_model().shared.weight


def test_hf_still_runs_on_the_engines_weights() -> None:
    model = adapted_t5()
    engine = FastEngine(model, torch.bfloat16).eval()
    lengths = [(9, 7), (5, 3)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = PaddedEngine(model)(collate_padded(examples(lengths), pad_id=0))
        ours = engine(packed(lengths))
    assert ours.item() == pytest.approx(theirs.item(), rel=0.02)


# What Dynamo cannot see: the cached tensors are constants.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiles_without_breaking_the_graph() -> None:
    model = adapted_t5(dropout=0.1, lora_dropout=0.1, num_layers=1)
    engine = FastEngine(model, torch.float32).eval()
    batch = packed([(9, 7), (5, 3)])
    with torch.no_grad():
        expected = engine(batch).item()
    compiled = torch.compile(engine, backend="aot_eager", fullgraph=True)
    assert compiled(batch).item() == pytest.approx(expected, rel=1e-6)
    engine.train()
    compiled(batch).backward()
    assert all(torch.isfinite(g).all() for g in gradients(engine).values())


# PEFT's advice for such models, which are none of ours.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_what_it_does_not_cover() -> None:
    def adapted(**changes: Any) -> PeftModel:
        base = adapted_t5().unload()
        settings = {"r": 2, "target_modules": ["q"], "task_type": TaskType.SEQ_2_SEQ_LM} | changes
        return with_adapter(base, LoraConfig(**settings))

    assert why_not_train(adapted()) is None
    assert "no adapter" in (why_not_train(adapted_t5().get_base_model()) or "")
    assert "DoRA" in (why_not_train(adapted(use_dora=True)) or "")
    assert "biases" in (why_not_train(adapted(bias="lora_only")) or "")
    assert "vocabulary" in (why_not_train(adapted(target_modules=["q", "lm_head"])) or "")
    uneven = adapted(target_modules=["q", "v"], rank_pattern={"v": 3})
    assert "differ" in (why_not_train(uneven) or "")
    checkpointed = adapted()
    checkpointed.get_base_model().activation_checkpointing_enable()
    assert "checkpointing" in (why_not_train(checkpointed) or "")
    loose = adapted()
    loose.get_base_model().shared.weight.requires_grad_(True)
    assert "trainable" in (why_not_train(loose) or "")


@pytest.mark.parametrize("gated", [False, True])
def test_as_many_parameters_are_told_as_transformers_counts(gated: bool) -> None:
    """Building the engine takes tied tables apart and q, k, v together: the number stays."""
    model = adapted_t5(gated=gated)
    n_base = copy.deepcopy(model).unload().num_parameters()
    n_adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    engine = FastEngine(model, torch.float32)
    assert count_parameters(engine) == (n_adapter, n_base + n_adapter)
