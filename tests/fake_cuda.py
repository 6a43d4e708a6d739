"""The CUDA path on a machine without a GPU: tensors that have a device, a shape and a type, and no
values (torch's FakeTensorMode). Each check runs the real code and is told as one line of JSON.

What is looked for: two devices or two types in one operation, and a step that waits for the device,
which is to ask a tensor for its value, or to copy it to the host without `non_blocking`. What is
not: results and speed.

    python -m tests.fake_cuda
"""

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_loop
from data import ExtractDataset
from model import PaddedEngine
from report2impression.batching.collation import collator
from report2impression.batching.tokens import Tokens
from report2impression.decoding.cache import Cache, Decoder, next_hidden
from report2impression.engine.fast import FastEngine
from report2impression.engine.precision import DTYPES, autocast
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.tracking import Tracker
from report2impression.training import graphs as training_graphs
from report2impression.training.updates import SkipGuard
from tests.test_fast_t5 import adapted_t5, examples

CUDA = torch.device("cuda", 0)
LENGTHS = [(40, 20), (9, 7), (33, 1), (1, 1)]
ATEN = torch.ops.aten
LINEAR = {ATEN.mm, ATEN.addmm}
PRODUCTS = {*LINEAR, ATEN.bmm, ATEN.baddbmm}
IN_PLACE = {ATEN._fused_adamw_, ATEN._amp_update_scale_}
IN_PLACE |= {ATEN._amp_foreach_non_finite_check_and_unscale_}
FREE = {"detach", "_unsafe_view", "device", "_record_function_enter_new", "_record_function_exit"}
FULL = {torch.float32, torch.int32}  # of the scaler's count


class Strict(TorchDispatchMode):
    """Sees every operation, forward and backward. A value that is asked for is 1, as long as
    `waiting_is_allowed`."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting_is_allowed = True
        self.products: set[torch.dtype] = set()  # of LINEAR
        self.seen: set[Any] = set()  # of IN_PLACE
        self.n_launched = 0  # operations that a GPU would compute

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        is_free = name.startswith(("empty", "new_empty")) or name in FREE
        self.n_launched += not (func.is_view or is_free)
        if func._overloadpacket in PRODUCTS:
            dtypes = {part.dtype for part in args if isinstance(part, Tensor)}
            assert len(dtypes) == 1, f"{func} of {sorted(map(str, dtypes))}"
            # Not attention's: torch takes it apart into fp32 here, on a GPU it does not.
            self.products |= dtypes if func._overloadpacket in LINEAR else set()
        if func in (ATEN._local_scalar_dense.default, ATEN.item.default, ATEN.is_nonzero.default):
            if args[0].device.type == "cuda":
                self._wait("a value is read")
            return 1.0 if args[0].is_floating_point() else 1
        if func in (ATEN._to_copy.default, ATEN.copy_.default):
            source = args[1] if func is ATEN.copy_.default else args[0]
            target = args[0].device if func is ATEN.copy_.default else kwargs.get("device")
            to_host = source.device.type == "cuda" and torch.device(target or CUDA).type == "cpu"
            waits_not = kwargs.get("non_blocking") or args[2:] == (True,)
            if to_host and not waits_not:
                self._wait("a copy to the host")
        if func._overloadpacket in IN_PLACE:  # torch has no fake form of these
            parts = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            assert {t.device for t in parts} == {CUDA} and {t.dtype for t in parts} <= FULL, func
            self.seen.add(func._overloadpacket)
            return args[0] if func._overloadpacket is ATEN._amp_update_scale_ else None
        return func(*args, **kwargs)

    def _wait(self, what: str) -> None:
        assert self.waiting_is_allowed, f"the host waits for the device: {what}"


def _edges(node: Any, gradients: list[Tensor | None]) -> Iterator[tuple[Any, Any]]:
    """Where its gradients go, and what they are."""
    own = hasattr(node, "apply")  # a torch.autograd.Function: it answers for what is no tensor, too
    found = (node.apply if own else node)(*gradients)
    found = found if isinstance(found, tuple) else (found,)
    if own:
        found = [new for new, is_used in zip(found, node.needs_input_grad, strict=True) if is_used]
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        return zip(edges, found, strict=True)
    pairs = zip(node.next_functions, found, strict=True)
    return (pair for pair in pairs if pair[0][0] is not None)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """What autograd's engine does, which has no thread and no stream of such a device: its nodes
    are called here, each when all its gradients are there."""
    root: Any = loss.grad_fn
    uses, stack = Counter({root: 0}), [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                stack += [node] * (node not in uses)
                uses[node] += 1
    given: dict[Any, list[Tensor | None]] = {root: [torch.ones_like(loss)]}
    ready = [root]
    while ready:
        node = ready.pop()
        gradients = given.pop(node, [])
        if hasattr(node, "variable"):
            (new,), before = gradients, node.variable.grad
            node.variable.grad = new if before is None else before + new
            continue
        for (target, place), new in _edges(node, gradients):
            places = given.setdefault(target, [None] * len(target._input_metadata))
            if new is not None:
                wanted = target._input_metadata[place]
                assert new.device == wanted.device, f"{node}: a gradient on {new.device}"
                new = new.sum_to_size(wanted.shape).to(wanted.dtype)  # as the engine does
                old = places[place]
                places[place] = new if old is None else old + new
            uses[target] -= 1
            if not uses[target]:
                ready.append(target)


def prepare() -> None:
    """Let torch believe in a device: what it asks the driver for is answered here."""
    if not torch.cuda._is_compiled():
        # A build without CUDA has no guard of a device, not even for autograd's notes: it is lent
        # that of the meta device, which does nothing. (With CUDA, FakeTensorMode does the same.)
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        guards[1] = guards[14]  # c10::DeviceType of CUDA and of Meta
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False

    class Event:  # of a copy to the host
        def record(self) -> None: ...
        def synchronize(self) -> None: ...

    torch.cuda.Event = Event  # type: ignore[misc, assignment]
    torch.cuda.graph_pool_handle = lambda: None  # type: ignore[assignment, return-value]
    for supported in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        supported.append(FakeTensor)  # many weights in one operation, as real ones
    Tensor.backward = backward  # type: ignore[method-assign, assignment]


@contextmanager
def fake() -> Iterator[Strict]:
    with FakeTensorMode(allow_non_fake_inputs=True), Strict() as strict:
        yield strict


def on_device(model: Any) -> Any:
    """As `.to(CUDA)`, which fake parameters do not know; tied ones stay tied."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                new = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                made = nn.Parameter(new, requires_grad=weight.requires_grad)
                module._parameters[name] = moved.setdefault(id(weight), made)
    return model


def engine_of(kind: str, dtype: torch.dtype, model: Any) -> nn.Module:
    on_device(model)
    return (FastEngine(model, dtype) if kind == "fast" else PaddedEngine(model)).train()


def engine(kind: str, precision: str, *, gated: bool = False) -> None:
    """Forward and backward of one batch."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    collate = collator(packed=kind == "fast", start_id=0, pad_id=0, device=CUDA)
    model = adapted_t5(gated=gated, dropout=0.1, lora_dropout=0.1, num_layers=1)
    with fake() as strict:
        tested = engine_of(kind, dtype, model)
        batch = collate(examples(LENGTHS)).to(CUDA)
        tested(batch)  # position biases are made here
        # transformers' masks look whether there is padding: that is not ours to change.
        strict.waiting_is_allowed = kind == "hf"
        strict.products.clear()
        with autocast(CUDA, precision):
            loss = tested(batch)
        assert loss.device == CUDA and loss.dtype == torch.float32 and loss.dim() == 0
        loss.backward()
        assert strict.products == {dtype}, f"products in {strict.products}"
        weights = [weight for weight in tested.parameters() if weight.requires_grad]
        assert weights
        for weight in weights:
            gradient = weight.grad
            assert gradient is not None and gradient.device == CUDA
            assert gradient.dtype == torch.float32


def loop(
    kind: str,
    precision: Literal["fp16", "fp32"],
    *,
    graphs: bool = False,
    n_layers: int = 1,
    accumulated: int = 2,
) -> int:
    """Three steps of train_loop.train: autocast, GradScaler, clipping, fused AdamW, the guard ->
    operations of the last."""
    source, target = (Tokens(np.ones(n * 8, np.int32), np.arange(9) * n, 0) for n in (30, 9))
    dataset = ExtractDataset("train", [str(i) for i in range(8)], source, target)
    config = TrainConfig(
        micro_batch_size=4 // accumulated,
        grad_accum_steps=accumulated,
        epochs=2,
        max_steps=3,
        precision=precision,
        cuda_graphs=graphs,
    )
    accelerator: Any = SimpleNamespace(
        **{"device": CUDA, "process_index": 0, "num_processes": 1, "is_main_process": True},
        prepare_model=lambda engine: engine,
        no_sync=lambda _: nullcontext(),
        reduce=lambda tensor, _: tensor,
    )
    model = adapted_t5(dropout=0.1, lora_dropout=0.1, num_layers=n_layers)
    judged: list[int] = []
    replayed: list[int] = []
    guard, record = SkipGuard._judge, training_graphs.record
    SkipGuard._judge = lambda self, step, *_: judged.append(step)  # type: ignore[method-assign]
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
    collate = collator(packed=kind == "fast", start_id=0, pad_id=0, device=CUDA)
    try:
        with fake() as strict:
            dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision]
            tested = engine_of(kind, dtype, model)
            n_forwards = 0

            def begun(*_: Any) -> None:
                nonlocal n_forwards
                n_forwards += 1
                # From the second on: the first makes position biases, and before it AdamW looks
                # at its rate.
                strict.waiting_is_allowed = n_forwards == 1 or kind == "hf"

            def recorded(run: Callable[[], Tensor], _: Any) -> Any:
                run()
                return lambda: replayed.append(strict.n_launched), run()

            training_graphs.record = recorded  # type: ignore[assignment]
            tested.register_forward_pre_hook(begun)
            tracker = Tracker(Path(), n_steps=100, log_every=50, enabled=False)
            n_launched, step = [0], tracker.step

            def counted(*args: Any, **figures: Any) -> None:
                step(*args, **figures)
                n_launched.append(strict.n_launched)

            tracker.step = counted  # type: ignore[method-assign]
            end: Callable[..., bool] = lambda *_: False  # noqa: E731
            train_loop.train(
                *(config, accelerator, tested, collate, dataset, tracker, end), scaler=scaler
            )
            assert strict.seen == (IN_PLACE if precision == "fp16" else {ATEN._fused_adamw_})
            n_batches = 3 * accumulated
            assert n_forwards == (2 if graphs else n_batches) and tracker.n_done == 3
            assert len(replayed) == n_batches * graphs
            assert judged == [1, 2, 3], "each step's flag is judged, one step late"
            for weight in tested.parameters():
                assert weight.device == CUDA
            return n_launched[3] - n_launched[2] + len(replayed) // 3
    finally:
        SkipGuard._judge, training_graphs.record = guard, record  # type: ignore[method-assign]


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float, scale: float) -> Tensor:
    """What a GPU takes for attention with a bias: one operation."""
    attend = ATEN._scaled_dot_product_efficient_attention
    return attend(q, k, v, bias, True, dropout_p, False, scale=scale)[0]


def few_launches() -> None:
    """With graphs: a step of one micro-batch, six layers a side."""
    nn.functional.scaled_dot_product_attention = fused  # type: ignore[assignment]
    same: dict[str, Any] = {"n_layers": 6, "accumulated": 1}
    counts = [loop("fast", "fp16", graphs=graphs, **same) for graphs in (False, True)]
    print(json.dumps({"operations of a step without and with CUDA graphs": counts}))
    assert counts[1] < counts[0] / 20


def decoder(precision: Literal["fp16", "fp32"]) -> None:
    """Sources encoded, then five steps."""
    dtype = DTYPES[precision]
    sources = [np.ones(n, np.int32) for n in (40, 9, 3)]
    model = adapted_t5(num_layers=1).eval()
    with fake() as strict, torch.no_grad():
        tested = Decoder(on_device(model), precision)
        cache = Cache(tested, [len(source) for source in sources], 1, 8)
        cache._look_back = lambda: None  # type: ignore[method-assign]  # reads which is the oldest
        cache.put([0, 1, 2], sources)
        strict.waiting_is_allowed = False
        strict.products.clear()
        for _ in range(5):
            hidden = next_hidden(cache, torch.ones(3, dtype=torch.long, device=CUDA))
            token = tested.vocabulary.best(hidden)
            assert token.device == CUDA and token.shape == (3,)
        assert hidden.dtype == dtype and strict.products == {dtype}


def finds_a_wait() -> None:
    with fake() as strict:
        strict.waiting_is_allowed = False
        try:
            bool(torch.ones((), device=CUDA) > 0)
        except AssertionError:
            return
    raise AssertionError("a wait was not seen")


def finds_two_types() -> None:
    with fake():
        one = torch.ones(2, 2, device=CUDA)
        try:
            one @ one.half()
        except AssertionError:
            return
    raise AssertionError("two types were not seen")


def finds_two_devices() -> None:
    with fake():
        try:
            torch.ones(2, device=CUDA) + torch.ones(2)
        except RuntimeError:
            return
    raise AssertionError("two devices were not seen")


CHECKS: dict[str, Callable[[], object]] = {
    "a wait is found": finds_a_wait,
    "two types are found": finds_two_types,
    "two devices are found": finds_two_devices,
    "fast engine, fp16": partial(engine, "fast", "fp16"),
    "fast engine, fp16, gated": partial(engine, "fast", "fp16", gated=True),
    "fast engine, bf16": partial(engine, "fast", "bf16"),
    "hf engine, fp16": partial(engine, "hf", "fp16"),
    "loop, fast engine, fp16": partial(loop, "fast", "fp16"),
    "loop, hf engine, fp16": partial(loop, "hf", "fp16"),
    "loop, CUDA graphs, fp16": partial(loop, "fast", "fp16", graphs=True),
    "CUDA graphs, launches": few_launches,
    "decoder, fp16": partial(decoder, "fp16"),
}


def main() -> None:
    prepare()
    for name, check in CHECKS.items():
        try:
            check()
            told = "ok"
        except Exception as error:  # whatever it is, the next check runs
            told = f"{type(error).__name__}: {error}"
            if "-v" in sys.argv:
                import traceback

                traceback.print_exc()
        print(json.dumps({"check": name, "told": told}), flush=True)


if __name__ == "__main__":
    main()
