"""checkpoint.py by itself: what is stored and restored, and when it saves; no training."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load
from torch import nn

from report2impression.program.errors import PreemptedError, ResumeError, StorageError
from report2impression.runs import checkpoint, durable, processes
from report2impression.runs.checkpoint import (
    SAVE,
    STOP,
    Checkpoints,
    Progress,
    TrainingState,
    base_digest,
)
from report2impression.runs.processes import StopSignals
from report2impression.training.validation import BestSoFar


class Part:
    """Something else with a state."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def trained(n_steps: int, *, seed: int = 0) -> TrainingState:
    """Two layers, the first one frozen, after so many steps of AdamW."""
    torch.manual_seed(seed)
    engine = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    engine[0].requires_grad_(False)
    weights = [weight for weight in engine.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    state = TrainingState(engine, optimizer, scaler, Progress(torch.zeros(())), {"part": Part(0)})
    for step in range(n_steps):
        engine(torch.full((1, 2), 1.0 + step)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        state.progress.advance(torch.tensor(step != 1))
    return state


def test_progress_counts_what_was_tried_and_what_was_applied() -> None:
    progress = Progress(torch.zeros(()))
    for finite in (True, False, True):
        progress.advance(torch.tensor(finite))
    assert progress.state() == {"step": 3, "epoch": 0, "offset": 3, "updates": 2}
    progress.next_epoch()
    progress.advance(torch.tensor(True))
    assert progress.state() == {"step": 4, "epoch": 1, "offset": 1, "updates": 3}
    assert Progress(torch.zeros(())).state() == {"step": 0, "epoch": 0, "offset": 0, "updates": 0}
    progress.next_epoch()
    assert progress.state() == {"step": 4, "epoch": 2, "offset": 0, "updates": 3}
    other = Progress(torch.zeros(()))
    other.restore(progress.state())
    assert other.state() == progress.state() and float(other.updates) == 3.0


def test_all_of_it_comes_back() -> None:
    state, other = trained(3), trained(0, seed=1)
    state.others["part"].value = 7  # type: ignore[attr-defined]
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0, "_growth_tracker": 5})
    files = state.files()
    assert sorted(files) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    assert sorted(load(files["weights.safetensors"])) == ["1.bias", "1.weight"]
    names = [f"{key}.1.{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in BOTH]
    assert sorted(load(files["optimizer.safetensors"])) == sorted(names)
    assert json.loads(files["state.json"]).keys() == {"optimizer", "scaler", "progress", "part"}
    frozen = [weight.clone() for weight in other.engine[0].parameters()]  # type: ignore[index]
    other.restore(files)
    assert other.files() == files
    assert all(map(torch.equal, other.engine[0].parameters(), frozen))  # type: ignore[index]
    assert other.others["part"].value == 7  # type: ignore[attr-defined]
    assert other.scaler.get_scale() == 2.0 and other.scaler._get_growth_tracker() == 5
    for weight in other.weights().values():  # in place: the optimizer has the same ones
        assert other.optimizer.state[weight]["exp_avg"].shape == weight.shape


BOTH = ("bias", "weight")


def test_a_stored_state_is_a_copy() -> None:
    state = trained(2)
    files = state.files()
    with torch.no_grad():
        state.weights()["1.weight"].zero_()
    assert load(files["weights.safetensors"])["1.weight"].any()
    copied = checkpoint._copy(torch.zeros(2, 3).t().requires_grad_())
    of_its_own = torch.zeros(2)
    checkpoint._copy(of_its_own).add_(1)
    assert not of_its_own.any()
    assert copied.is_contiguous() and not copied.requires_grad and copied.device.type == "cpu"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2,), "1.bias is not in the checkpoint: give the settings the run began with"),
        ((2, 2, 2), "2.bias is not in the model: give the settings the run began with"),
        (
            (2, 3),
            "1.bias has the shape (3,), in the model (2,): give the run's own settings",
        ),
    ],
)
def test_another_model_is_told_to_the_letter(sizes: tuple[int, ...], message: str) -> None:
    def state(of: tuple[int, ...]) -> TrainingState:
        engine = nn.Sequential(*(nn.Linear(n, n) for n in of))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        optimizer = torch.optim.AdamW(engine.parameters())
        return TrainingState(engine, optimizer, scaler, Progress(torch.zeros(())))

    here, there = state((2, 2)), state(sizes)
    before = [weight.clone() for weight in here.engine.parameters()]
    there.progress.step = 7
    with pytest.raises(ResumeError) as caught:
        here.restore(there.files())
    assert str(caught.value) == message
    assert all(map(torch.equal, here.engine.parameters(), before)) and here.progress.step == 0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def kept(folder: Path, **settings: Any) -> Checkpoints:
    best = BestSoFar()
    return Checkpoints(folder, Accelerator(cpu=True), StopSignals(), {"n": 1}, best, **settings)


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in durable.stored(folder)]


def at(state: TrainingState, step: int) -> TrainingState:
    state.progress.step = step
    return state


def test_saves_by_steps_at_the_end_of_an_epoch_and_when_asked(tmp_path: Path) -> None:
    checkpoints, state = kept(tmp_path, steps=4, keep=100), trained(1)
    nothing = torch.tensor(0.0)
    for step in range(1, 10):
        wish = torch.tensor(SAVE) if step == 6 else nothing
        checkpoints.after_step(at(state, step), wish, epoch_ends=step in (3, 4))
    assert steps(tmp_path) == [3, 4, 6, 8]
    assert durable.read(tmp_path / "step-00000008").facts == {"n": 1}
    never = kept(tmp_path / "never")
    never.after_step(at(state, 1), nothing, epoch_ends=False)
    assert steps(tmp_path / "never") == []


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints, state = kept(tmp_path, steps=1), trained(1)
    checkpoints.best.step = 2
    for step in range(1, 7):
        checkpoints.after_step(at(state, step), torch.tensor(0.0), epoch_ends=False)
    assert steps(tmp_path) == [2, 5, 6]  # keep is 2


def test_a_stop_saves_once_and_tells(tmp_path: Path) -> None:
    checkpoints, state = kept(tmp_path), trained(1)
    checkpoints.stop.asked = signal.SIGUSR1
    assert checkpoints.wish() == STOP
    with pytest.raises(PreemptedError) as caught:
        checkpoints.after_step(at(state, 1200), torch.tensor(STOP + SAVE), epoch_ends=False)
    assert str(caught.value) == (
        f"stopped by SIGUSR1 after step 1,200, all of it kept in {tmp_path}: run the same command "
        "again to go on"
    )
    assert steps(tmp_path) == [1200]
    before = (tmp_path / "step-00001200").stat().st_ino
    with pytest.raises(PreemptedError):  # nothing new to keep
        checkpoints.after_step(state, torch.tensor(STOP), epoch_ends=True)
    assert (tmp_path / "step-00001200").stat().st_ino == before


def test_minutes_are_those_since_the_last_save(tmp_path: Path) -> None:
    clock = Clock()
    checkpoints, state = kept(tmp_path, minutes=2.0, clock=clock), trained(1)
    assert checkpoints.wish() == 0.0
    clock.now += 119
    assert checkpoints.wish() == 0.0
    clock.now += 1
    assert checkpoints.wish() == SAVE
    checkpoints.after_step(at(state, 3), torch.tensor(SAVE), epoch_ends=False)
    assert checkpoints.wish() == 0.0 and steps(tmp_path) == [3]
    often = kept(tmp_path / "often", minutes=0.5, clock=clock)
    clock.now += 30
    assert often.wish() == SAVE
    clock.now += 10**9
    assert kept(tmp_path, clock=clock).wish() == 0.0  # 0 minutes: never
    checkpoints.accelerator = Other()
    assert checkpoints.wish() == 0.0  # only rank 0 has a clock


class Other:
    is_main_process, num_processes = False, 1


def test_if_nothing_is_said(tmp_path: Path) -> None:
    """Two are kept, none by steps or minutes; the clock is one that nobody sets."""
    plain = kept(tmp_path)
    assert (plain.steps, plain.minutes, plain.keep, plain.found) == (0, 0.0, 2, None)
    assert plain.clock is time.monotonic
    plain.restore(state := trained(1))
    plain.after_step(at(state, 0), torch.tensor(SAVE), epoch_ends=False)  # step 0, too, is a step
    assert steps(tmp_path) == [0]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    first, second = (
        TrainingState(state.engine, state.optimizer, scaler, Progress(torch.zeros(())))
        for _ in range(2)
    )
    first.others["part"] = Part(1)
    assert second.others == {}  # each has its own


def test_goes_on_from_what_was_found(tmp_path: Path) -> None:
    first, state = kept(tmp_path, steps=1), trained(2)
    first.restore(state)  # nothing was found
    assert state.others["best"] is first.best
    first.best.step = 1
    first.after_step(at(state, 5), torch.tensor(0.0), epoch_ends=False)
    found, _ = durable.newest(tmp_path)
    second, other = kept(tmp_path, steps=1, found=found), trained(0, seed=3)
    second.restore(other)
    assert other.files() == state.files() and second.found is None
    assert (second.best.step, other.progress.step) == (1, 5)
    second.after_step(other, torch.tensor(0.0), epoch_ends=True)  # is there already
    assert not list(tmp_path.glob(".bad-*"))


def test_a_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> dict[str, bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainingState, "files", fails)
    with pytest.raises(StorageError) as caught:
        kept(tmp_path, steps=1).after_step(at(trained(1), 1), torch.tensor(0.0), epoch_ends=False)
    assert str(caught.value).startswith(f"cannot use {tmp_path}: No space left on device; ")


class Settings:
    model_type = "t5"

    def __init__(self, **settings: Any) -> None:
        self.__dict__ |= settings

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Base(nn.Module):
    """What base_digest looks at."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layer, self.lora_A = nn.Linear(2, 2), nn.Linear(2, 2)
        self.own_dropout = 0.1
        self.config = Settings(**{"num_heads": 2, "dropout_rate": 0.5, **settings})
        with torch.no_grad():
            for number, weight in enumerate(self.parameters()):
                weight.fill_(number)


def test_the_digest_of_a_base_is_of_what_came_with_it() -> None:
    plain = base_digest(Base())
    assert plain == base_digest(Base(dropout_rate=0.9, use_cache=True))  # the run's own; no matter
    # a change would refuse to go on with any run kept so far
    assert plain == "dc8e5b0db7144f04bad94d4fcb800120b773ddc537b63fc5a4b26e9690fbb975"
    changed = [Base(num_heads=4), Base(tie_word_embeddings=False), Base(), Base(), Base(), Base()]
    changed[2].own_dropout = 0.2
    with torch.no_grad():
        changed[3].layer.weight[1, 1] = 7
    changed[4].layer.to(torch.float64)
    changed[5].layer.weight = nn.Parameter(changed[5].layer.weight.reshape(4, 1))
    assert len({plain, *map(base_digest, changed)}) == 7
    adapted = Base()
    with torch.no_grad():
        adapted.lora_A.weight += 1
    assert plain == base_digest(adapted)


class Wish:
    """A sum of wishes that is on its way from a GPU."""

    is_cuda = True

    def __init__(self, value: float) -> None:
        self.value = value

    def to(self, device: str, *, non_blocking: bool) -> float:
        assert (device, non_blocking) == ("cpu", True)
        return self.value


class Event:
    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


def test_on_cuda_a_wish_is_heard_a_step_later_and_at_the_end_of_an_epoch_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the device within an epoch."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    checkpoints = kept(tmp_path)
    arrived: Any = checkpoints._arrived
    heard = [arrived(Wish(value), wait=False) for value in (1.0, 0.0, 4.0)]
    assert heard == [0.0, 1.0, 0.0]
    assert arrived(Wish(2.0), wait=True) == 6.0
    assert arrived(Wish(8.0), wait=False) == 0.0
    assert arrived(Wish(0.0), wait=True) == 8.0
    after_step: Any = checkpoints.after_step
    state = trained(1)
    after_step(at(state, 1), Wish(SAVE), epoch_ends=False)
    assert steps(tmp_path) == []
    after_step(at(state, 2), Wish(0.0), epoch_ends=False)
    assert steps(tmp_path) == [2]
    with pytest.raises(PreemptedError):
        after_step(at(state, 3), Wish(STOP), epoch_ends=True)


def test_without_checkpoints_nothing_is_wished_or_kept() -> None:
    none = checkpoint.NoCheckpoints()
    assert none.wish() == 0.0


@pytest.mark.parametrize("is_main", [True, False])
def test_what_rank_0_finds_holds_for_all(monkeypatch: pytest.MonkeyPatch, is_main: bool) -> None:
    """Result or UserError; other errors are its own."""
    of_rank_0: list[object] = [None, None]

    calls = []

    def broadcast(outcome: list[object]) -> None:
        calls.append(len(outcome))
        if is_main:
            of_rank_0[:] = outcome
        outcome[:] = of_rank_0

    class Two:
        is_main_process, num_processes = is_main, 2

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    of_rank_0[:] = [7, None]
    assert processes.on_rank_0(Two(), lambda: 7) == 7
    of_rank_0[:] = [None, ResumeError("changed")]

    def refuses() -> None:
        raise ResumeError("changed")

    with pytest.raises(ResumeError, match="changed"):
        processes.on_rank_0(Two(), refuses)
    assert calls == [2, 2]
    Two.num_processes, Two.is_main_process = 1, True
    assert processes.on_rank_0(Two(), lambda: 7) == 7 and calls == [2, 2]


def test_numbers_in_the_optimizer_state_go_on(tmp_path: Path) -> None:
    """8-bit AdamW counts its steps in a plain int."""
    states = []
    for count in (7, 0):
        engine = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(engine.parameters())
        optimizer.state[engine.bias]["step"] = count
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        progress = Progress(torch.zeros(()))
        states.append(TrainingState(engine, optimizer, scaler, progress))
    states[1].restore(states[0].files())
    assert states[1].optimizer.state[states[1].weights()["bias"]] == {"step": 7}
