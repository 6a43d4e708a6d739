"""updates.py, precision.py: the schedule in closed form, skips that leave no trace, the guard."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from report2impression.engine import precision
from report2impression.engine.precision import resolve_precision
from report2impression.program.errors import NumericsError
from report2impression.training.updates import SkipGuard, apply_update, learning_rate, mix_seed
from tests.tiny import ROOT

PEAK = 5e-5


def rates_of_transformers(n_warmup: int, n_total: int) -> list[float]:
    """The rate of each update, and the one after the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = get_linear_schedule_with_warmup(optimizer, n_warmup, n_total)
    rates = []
    for _ in range(n_total + 1):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def rates_of_ours(n_warmup: int, n_total: int) -> list[float]:
    updates = torch.arange(n_total + 1, dtype=torch.float32)
    return [float(learning_rate(u, peak=PEAK, n_warmup=n_warmup, n_total=n_total)) for u in updates]


@pytest.mark.parametrize(
    ("n_warmup", "n_total"), [(0, 20), (1, 20), (7, 50), (50, 50), (80, 50), (0, 1), (500, 2000)]
)
def test_schedule_is_that_of_transformers(n_warmup: int, n_total: int) -> None:
    ours, theirs = rates_of_ours(n_warmup, n_total), rates_of_transformers(n_warmup, n_total)
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-12)


def test_first_rate_peak_and_last_rate() -> None:
    rates = rates_of_ours(10, 100)
    assert rates[0] == 0.0 and rates[100] == 0.0
    assert rates[10] == max(rates) == pytest.approx(PEAK)
    assert rates_of_ours(0, 10)[0] == pytest.approx(PEAK)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 100), st.integers(1, 200))
def test_rate_stays_between_zero_and_peak(updates: int, n_warmup: int, n_total: int) -> None:
    applied = torch.tensor(float(updates))  # past the end, too
    rate = learning_rate(applied, peak=1.0, n_warmup=n_warmup, n_total=n_total)
    assert 0.0 <= float(rate) <= 1.0


def test_a_skipped_step_leaves_the_rate_where_it_is() -> None:
    """As the loop counts: `updates += finite`, in place, on the device."""
    updates = torch.zeros(())
    rates = []
    for finite in (True, True, False, False, True):
        rates.append(float(learning_rate(updates, peak=1.0, n_warmup=4, n_total=8)))
        updates += torch.tensor(finite)
    assert rates == [0.0, 0.25, 0.5, 0.5, 0.5]
    assert float(updates) == 3.0


def tiny() -> tuple[Tensor, torch.optim.Optimizer]:
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    return weight, torch.optim.AdamW([weight], lr=torch.tensor(0.1), weight_decay=0.1, fused=True)


def scaler_of(enabled: bool) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)


def update(
    weight: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    gradient: list[float],
    loss: float = 1.0,
) -> None:
    """One step as in the loop, from an unscaled gradient."""
    scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad is not None
    finite = torch.isfinite(weight.grad.norm()) & torch.isfinite(torch.tensor(loss))
    apply_update(optimizer, scaler, finite)
    optimizer.zero_grad(set_to_none=True)


def everything(weight: Tensor, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight.detach().clone(), *(t.clone() for t in optimizer.state[weight].values())]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_non_finite_step_changes_no_bit(enabled: bool, bad: float) -> None:
    (weight, optimizer), scaler = tiny(), scaler_of(enabled)
    update(weight, optimizer, scaler, [1.0, 2.0, -3.0])
    before = everything(weight, optimizer)
    assert len(before) == 4  # weight, step, both moments
    update(weight, optimizer, scaler, [1.0, bad, 1.0])
    assert all(map(torch.equal, everything(weight, optimizer), before))
    assert scaler.get_scale() == (512.0 if enabled else 1.0)
    update(weight, optimizer, scaler, [1.0, 2.0, -3.0])
    assert not any(map(torch.equal, everything(weight, optimizer), before))
    assert float(optimizer.state[weight]["step"]) == 2.0


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_loss_that_is_not_finite_skips_a_step_with_finite_gradients(
    enabled: bool, loss: float
) -> None:
    (weight, optimizer), scaler = tiny(), scaler_of(enabled)
    update(weight, optimizer, scaler, [1.0, 2.0, -3.0])
    before = everything(weight, optimizer)
    update(weight, optimizer, scaler, [1.0, 1.0, 1.0], loss)
    assert all(map(torch.equal, everything(weight, optimizer), before))
    assert scaler.get_scale() == (1024.0 if enabled else 1.0)  # the scale was not to blame
    update(weight, optimizer, scaler, [1.0, 2.0, -3.0])
    assert not any(map(torch.equal, everything(weight, optimizer), before))


@pytest.mark.parametrize("enabled", [False, True])
def test_the_very_first_step_may_be_skipped(enabled: bool) -> None:
    (weight, optimizer), scaler = tiny(), scaler_of(enabled)
    update(weight, optimizer, scaler, [float("nan"), 0.0, 0.0])
    assert weight.tolist() == [1.0, -2.0, 0.5]
    assert not any(float(t.abs().sum()) for t in everything(weight, optimizer)[1:])


def test_skipping_with_and_without_scaler_is_the_same_training() -> None:
    weights = []
    for enabled in (False, True):
        (weight, optimizer), scaler = tiny(), scaler_of(enabled)
        for gradient in ([1.0, 2.0, 3.0], [float("inf"), 0.0, 0.0], [-1.0, 0.5, 4.0]):
            update(weight, optimizer, scaler, gradient)
        weights.append(weight.detach())
    weight, optimizer = tiny()
    for gradient in ([1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]):  # plain AdamW without the bad step
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert all(torch.equal(w, weight) for w in weights)


GOOD, BAD = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_guard_raises_at_exactly_k_in_a_row(k: int) -> None:
    guard = SkipGuard(k)
    for step in range(1, k):
        guard.observe(step, ["x"], BAD)
    with pytest.raises(NumericsError) as caught:
        guard.observe(k, ["report-7", "report-9"], BAD)
    message = str(caught.value)
    assert f"{k} steps in a row" in message and f"step {k} " in message
    assert "report-7, report-9" in message
    assert caught.value.exit_code == 6


def test_a_finite_step_resets_the_row_but_not_the_total() -> None:
    guard = SkipGuard(3)
    for step, flag in enumerate([BAD, BAD, GOOD, BAD, BAD, GOOD, GOOD], start=1):
        guard.observe(step, [], flag)
    guard.finish()
    assert (guard.total, guard.in_a_row) == (4, 0)


def test_a_flag_on_its_way_is_judged_in_the_end() -> None:
    guard = SkipGuard(1)
    guard._pending.append((4, ["late"], BAD, None))  # as CUDA leaves it: one step behind
    with pytest.raises(NumericsError, match="step 4 with examples late"):
        guard.finish()


def test_mix_seed_is_distinct_over_a_grid() -> None:
    grid = itertools.product(range(4), range(400), range(16))
    seeds = [mix_seed(*point) for point in grid]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = sum(f"{seed:063b}".count("1") for seed in seeds) / len(seeds)
    assert bits == pytest.approx(31.5, abs=0.2)  # neighbours share no pattern


def test_mix_seed_never_changes() -> None:
    """A change would change the dropout of every published run."""
    assert mix_seed(0, 0, 0) == 0x11C13ADE1C7E5F48
    assert mix_seed(1, 2, 3) == 0x35728AE0E0563F1B


def splitmix64(state: int) -> int:
    """First output of Vigna's reference splitmix64.c."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mix_seed_chains_splitmix64() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published
    state = 0
    for part in (7, 1000, 5):
        state = splitmix64(state + part)
    assert mix_seed(7, 1000, 5) == state >> 1


@pytest.mark.parametrize("native", [False, True])
def test_auto_precision(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: native)
    assert resolve_precision("auto", torch.device("cpu")) == ("bf16" if native else "fp32")
    assert resolve_precision("auto", torch.device("cuda")) == "fp16"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_named_precision_is_taken(device: str) -> None:
    for name in ("fp16", "bf16", "fp32"):
        assert resolve_precision(name, torch.device(device)) == name


def test_autocast_multiplies_in_the_named_precision() -> None:
    matrix = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with precision.autocast(torch.device("cpu"), name):
            assert (matrix @ matrix).dtype == dtype


def test_no_more_than_the_library_may_use_counts_as_native() -> None:
    """ONEDNN_MAX_CPU_ISA holds on a CPU that could do more."""
    code = "from report2impression.engine.precision import cpu_multiplies_bf16 as native; native()"
    asked = [sys.executable, "-c", f"{code} and exit(1)"]
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(asked, env=env, check=False).returncode == 0
