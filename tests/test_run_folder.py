"""What a second start in a run folder does: goes on, refuses, says that all is done; and how a run
tells its end when the disk, the memory or a signal stops it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import train_loop
from bench.reliability import fault_runs
from bench.reliability.disk_faults import Fault, ended, faulty, in_a_child, kills, operations, start
from bench.reliability.fault_runs import bits, steps_kept
from report2impression.engine.fast import FastEngine
from report2impression.program.errors import PreemptedError, ResumeError
from report2impression.runs import durable, run_folder
from report2impression.runs import run as run_module
from report2impression.runs.checkpoint import Checkpoints
from report2impression.runs.durable import Stored
from report2impression.runs.processes import StopSignals
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run_folder import _flat, compare
from report2impression.training import validation as epoch_end
from tests.test_resume import flags, run, stopped_after
from tests.tiny import Tiny, one_line
from tests.waiting import until_written

SLOW = pytest.mark.slow


pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(tiny, folder)
    return folder


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    return stopped_after(5, whole, tmp_path / "run")


def refusal(
    capfd: pytest.CaptureFixture[str], tiny: Tiny, folder: Path, **changes: Any
) -> tuple[int, str]:
    """Exit code and the error's one line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(tiny, folder, **changes)
    assert isinstance(caught.value.code, int)
    told = capfd.readouterr().err.splitlines()
    return caught.value.code, one_line("\n".join(line for line in told if "rror: " in line))


def everything(folder: Path) -> dict[str, bytes]:
    """All files but those that say who was there, and when."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in (".lock", "exit_status.json")
    }


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "exit_status.json").read_text())


# --- a second start ------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_how_to_begin_again(
    tiny: Tiny, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = everything(folder)
    for _ in range(2):
        run(tiny, folder)
        assert "finished" in (told := capsys.readouterr().out) and "--fresh" in told
        assert everything(folder) == before and status(folder)["code"] == 0
    (folder / "evaluation").mkdir()
    left = ("adapter.partial", "adapter.old", "evaluation.old", "curves.png.partial")
    for name in left:
        (folder / name).mkdir()
    (folder / ".tmp-config.toml-12").write_text("")
    (folder / "mine.old").write_text("")
    train_loop.main([*flags(tiny, folder), "--fresh"])
    assert not [name for name in (*left, ".tmp-config.toml-12") if (folder / name).exists()]
    assert (folder / "mine.old").exists()
    assert not (folder / "evaluation").exists()
    assert bits(folder) == bits(whole)
    train_loop.main([*flags(tiny, folder), "--config", str(folder / "config.toml")])
    assert "finished" in capsys.readouterr().out  # --fresh counts for one start only


def test_goes_on_is_told_and_rows_are_not_told_twice(
    tiny: Tiny, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny, stopped)
    assert f"going on from {stopped / 'checkpoints' / 'step-00000005'}" in capsys.readouterr().out
    steps = [line["step"] for line in bits(stopped)["log"]]
    assert steps == [3, 4, 6, 8, 8]


def test_a_damaged_checkpoint_is_named_and_passed_over(
    tiny: Tiny, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stopped / "checkpoints" / "step-00000005" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    run(tiny, stopped)
    out = capsys.readouterr().out
    assert str(file.parent) in out and "weights.safetensors: " in out
    assert "step-00000004" in out
    assert bits(stopped) == bits(whole)
    assert (file.parent.with_name(".bad-step-00000005-0") / file.name).read_bytes() == data


def test_no_whole_checkpoint_is_an_error_and_nothing_is_touched(
    tiny: Tiny, stopped: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in durable.stored(stopped / "checkpoints"):
        (folder / "manifest.json").write_text("{}")
    before = everything(stopped)
    code, message = refusal(capfd, tiny, stopped)
    assert code == 4 and "--fresh" in message and "step-00000005" in message
    assert everything(stopped) == before and status(stopped)["code"] == 4
    train_loop.main([*flags(tiny, stopped), "--fresh"])
    assert bits(stopped) == bits(whole)


def change_row(tiny: Tiny, folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny.data, folder)
    rows = (folder / "train.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    rows[0] = json.dumps({**first, "prompt": first["prompt"] + "."})
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return {"data__path": folder}


def change_order(tiny: Tiny, folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny.data, folder)
    first, *rest = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([*rest, first]) + "\n")
    return {"data__path": folder}


def change_validation(tiny: Tiny, folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny.data, folder)
    rows = (folder / "validation.jsonl").read_text().splitlines()
    (folder / "validation.jsonl").write_text("\n".join(rows[1:]) + "\n")
    return {"data__path": folder}


def change_base(tiny: Tiny, folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny.base, folder)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    return {"model__path": folder}


def change_tokenizer(tiny: Tiny, folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny.base, folder)
    table = json.loads((folder / "tokenizer.json").read_text())
    table["model"]["vocab"][-1][1] -= 1.0
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return {"model__path": folder}


SETTINGS: dict[str, Any] = {
    **{"learning_rate": 1e-3, "model__dropout": 0.2, "seed": 1, "patience": 3},
    "precision": "bf16",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_row, "data"),
        (change_order, "data"),
        (change_validation, "data"),
        (change_base, "base"),
        (change_tokenizer, "tokenizer"),
        (lambda *_: SETTINGS, "config"),
    ],
)
def test_what_changed_is_named_and_may_be_allowed(
    tiny: Tiny,
    stopped: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[Tiny, Path], dict[str, Any]],
    named: str,
) -> None:
    changes, before = change(tiny, tmp_path / "changed"), everything(stopped)
    code, message = refusal(capfd, tiny, stopped, **changes)
    assert code == 5 and f"--allow_change {named}" in message and "--fresh" in message
    other = "tokenizer" if named != "tokenizer" else "data"
    code, again = refusal(capfd, tiny, stopped, **changes, allow_change=other)
    assert (code, again) == (5, message)
    assert everything(stopped) == before
    run(tiny, stopped, **changes, allow_change=named)
    assert status(stopped)["code"] == 0


@pytest.mark.parametrize(("name", "value"), SETTINGS.items())
def test_each_changed_setting_is_refused_and_named(
    tiny: Tiny, stopped: Path, capfd: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    code, message = refusal(capfd, tiny, stopped, **{name: value})
    assert code == 5 and "--allow_change config" in message
    assert name.replace("__", ".") in message and f"{value} now" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": "full", "engine": "hf"},
        {"deterministic": True},
        {"micro_batch_size": 4},
        {"grad_accum_steps": 1},
        {"reports_per_step": 24},
    ],
    ids=str,
)
def test_what_cannot_be_allowed(
    tiny: Tiny, stopped: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    code, message = refusal(capfd, tiny, stopped, **changes, allow_change="all")
    assert code == 5 and "--fresh" in message
    assert any(name in message for name in (*changes, "reports"))


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 1, "checkpoint_steps": 3, "keep_checkpoints": 2},
        {"micro_batch_size": 4, "grad_accum_steps": 4},
        {"micro_batch_size": 16, "grad_accum_steps": 1},
        {"micro_batch_size": 3, "reports_per_step": 16},
    ],
    ids=str,
)
def test_what_may_change_freely(tiny: Tiny, stopped: Path, changes: dict[str, Any]) -> None:
    run(tiny, stopped, **changes)
    assert status(stopped)["code"] == 0


def test_a_moved_run_folder_and_copied_inputs_are_the_same(
    tiny: Tiny, stopped: Path, tmp_path: Path, whole: Path
) -> None:
    stopped.rename(tmp_path / "moved")
    shutil.copytree(tiny.data, tmp_path / "data")
    shutil.copytree(tiny.base, tmp_path / "base")
    places = {"data__path": tmp_path / "data", "model__path": tmp_path / "base"}
    run(tiny, tmp_path / "moved", **places)
    assert bits(tmp_path / "moved")["weights"] == bits(whole)["weights"]


def test_the_second_of_two_starts_refuses(
    tiny: Tiny, stopped: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with run_folder.locked(stopped):
        before = everything(stopped)
        code, message = refusal(capfd, tiny, stopped)
        assert code == 2 and f"process {os.getpid()} on " in message
        assert everything(stopped) == before and not (stopped / "exit_status.json").exists()
    run(tiny, stopped)
    assert bits(stopped) == bits(whole)


def test_a_lock_ends_with_its_process(stopped: Path) -> None:
    def killed() -> None:
        with run_folder.locked(stopped):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -9
    with run_folder.locked(stopped):
        pass


@settings(max_examples=30)
@given(
    st.recursive(st.none() | st.integers() | st.text(), st.lists)
    | st.dictionaries(st.text(), st.integers())
)
def test_an_odd_exit_status_is_not_a_finished_run(
    tmp_path_factory: pytest.TempPathFactory, told: object
) -> None:
    folder = tmp_path_factory.mktemp("status")
    (folder / "exit_status.json").write_text(json.dumps(told))
    finished = isinstance(told, dict) and told.get("code") == 0
    assert run_folder._is_finished(folder) == finished


# --- killed, and disks that fail ------------------------------------------------------------------


def some(faults: list[Fault], n: int) -> list[Fault]:
    """Evenly spread ones, of all kinds."""
    return faults[:: max(1, len(faults) // n)]


@pytest.mark.parametrize("n", [2, pytest.param(60, marks=SLOW)])
def test_killed_anywhere_the_run_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, whole: Path, n: int
) -> None:
    """At file operations of all kinds over the whole run, each time the same run again."""
    settings = {"checkpoint_steps": 3, "keep_checkpoints": 1}
    calls = operations(lambda: run(tiny, tmp_path / "calls", **settings))
    folder = tmp_path / "run"
    faults = some(kills(calls), n)
    for fault in faults:

        def killed(fault: Fault = fault) -> None:
            with faulty(fault):
                run(tiny, folder, **settings)

        assert in_a_child(killed) == -9
        assert in_a_child(lambda: run(tiny, folder, **settings)) == 0
        assert bits(folder) == bits(whole), fault
        shutil.rmtree(folder)
    assert len(faults) >= n


@pytest.mark.parametrize(
    "kind", ["full", *(pytest.param(k, marks=SLOW) for k in ("broken", "quota", "read-only"))]
)
def test_a_failing_disk_ends_the_run_with_7_and_it_goes_on_later(
    tiny: Tiny, tmp_path: Path, whole: Path, kind: str
) -> None:
    calls = operations(lambda: run(tiny, tmp_path / "calls"))
    writes = [at for at, name in enumerate(calls) if name in ("write", "fsync", "mkdir", "open")]
    for at in writes[len(writes) // 2 :: len(writes) // 3]:
        folder = tmp_path / str(at)

        def failing(at: int = at, folder: Path = folder) -> None:
            with faulty(Fault(at, kind)):
                run(tiny, folder)

        assert in_a_child(failing) == 7
        assert status(folder)["code"] == 7
        assert durable.newest(folder / "checkpoints")[0] and not list(folder.rglob(".tmp-*"))
        run(tiny, folder)
        assert bits(folder) == bits(whole)


def test_a_full_disk_is_told_with_the_room_it_needs(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "ROOM", 10**15)
    code, message = refusal(capfd, tiny, tmp_path / "run")
    assert code == 7 and str(tmp_path / "run") in message and "are free" in message


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_vanished_run_folder_ends_the_run_with_7(
    tiny: Tiny,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_every: int,
) -> None:
    """Met first by the log, or by the checkpoint."""
    folder = tmp_path / "run"
    at_step(monkeypatch, 6, lambda: shutil.rmtree(folder))
    code, message = refusal(capfd, tiny, folder, log_every=log_every)
    assert code == 7 and "No such file" in message and not folder.exists()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do that when the step (from 1) begins."""
    mix_seed = train_loop.mix_seed

    def note(seed: int, now: int, shard: int) -> int:
        if (now, shard) == (step - 1, 0):
            action()
        return mix_seed(seed, now, shard)

    monkeypatch.setattr(train_loop, "mix_seed", note)


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_a_read_only_log_ends_the_run_with_7(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def replace_log() -> None:
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()

    at_step(monkeypatch, 5, replace_log)
    code, message = refusal(capfd, tiny, folder)
    assert code == 7 and str(folder) in message


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_a_batch_too_large_for_memory_is_named(
    tiny: Tiny,
    tmp_path: Path,
    whole: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        numbers = iter(range(1, 100))
        forward = FastEngine.forward

        def spoiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            if next(numbers) == 4:
                raise error
            return forward(self, *args, **kwargs)

        patch.setattr(FastEngine, "forward", spoiled)
        code, message = refusal(capfd, tiny, folder)
    assert code == 2 and "8 reports" in message and "16 reports" in message
    assert "--micro_batch_size" in message and "--grad_accum_steps" in message
    assert steps_kept(folder) == [1]
    if isinstance(error, MemoryError):  # whichever it was, what is kept is the same
        run(tiny, folder, micro_batch_size=4, grad_accum_steps=4)  # as it says
        assert status(folder)["code"] == 0


def test_other_errors_of_the_forward_stay_what_they_are(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 2, raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run(tiny, tmp_path / "run")
    assert status(tmp_path / "run")["code"] == 1


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, pytest.param(signal.SIGINT, marks=SLOW)]
)
def test_a_signal_keeps_the_step_and_ends_with_75(
    tiny: Tiny,
    tmp_path: Path,
    whole: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    folder, before = tmp_path / "run", signal.getsignal(number)
    settings = {"checkpoint_steps": 0}
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(tiny, folder, **settings)
    assert caught.value.code == 75
    err = capfd.readouterr().err
    assert f"stopped: stopped by {number.name} after step 3" in err and "same command" in err
    assert steps_kept(folder) == [3]
    assert (status(folder)["code"], status(folder)["checkpoint"]) == (75, "step-00000003")
    assert signal.getsignal(number) is before
    run(tiny, folder, **settings)
    assert bits(folder) == bits(whole)


@pytest.mark.parametrize("where", ["reading", "validation", "generation", "writing"])
def test_a_signal_while_there_is_nothing_to_keep_stops_at_once(
    tiny: Tiny, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "run"
    module, name = {
        "reading": (data, "survey"),
        "validation": (epoch_end, "validation_loss"),
        "generation": (epoch_end.EpochEnd, "_generation_scores"),
        "writing": (epoch_end, "write_model_card"),
    }[where]

    def signalled(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, signalled)
        with pytest.raises(SystemExit) as caught:
            run(tiny, folder, checkpoint_steps=0)
    assert caught.value.code == 75
    if where == "reading":
        assert not folder.exists()
    else:
        assert steps_kept(folder) == [4]
    run(tiny, folder, checkpoint_steps=0)
    assert bits(folder) == bits(whole)


def test_a_second_ctrl_c_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopSignals()
    with stop.listening(), stop.deferred():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(PreemptedError), stop.at_once():
            raise AssertionError("never here")
    assert stop.asked == signal.SIGTERM


def test_minutes_count_from_the_last_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on by 20 s at every look, one a step and one a checkpoint."""
    looks = iter(range(0, 10_000, 20))
    clock = partial(Checkpoints, clock=lambda: float(next(looks)))
    monkeypatch.setattr(run_module, "Checkpoints", clock)
    run(tiny, tmp_path / "run", checkpoint_steps=0, checkpoint_minutes=0.99, grad_accum_steps=1)
    assert steps_kept(tmp_path / "run") == [3, 6, 8, 11, 14, 16]


def test_a_lost_launcher_stops_the_run(tiny: Tiny, tmp_path: Path, whole: Path) -> None:
    """The process between dies without passing anything on."""
    folder = tmp_path / "run"
    told = tmp_path / "worker"

    def launcher() -> None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        (child,) = fault_runs.launch(flags(tiny, folder, checkpoint_steps=0, epochs=1000))
        told.write_text(str(child))
        ended(child)

    between = start(launcher)
    until_written(folder / "metrics.jsonl", '"step": 3')
    os.kill(between, signal.SIGKILL)
    assert ended(between) == -signal.SIGKILL
    until_written(folder / "exit_status.json", "75")
    assert status(folder)["code"] == 75


def test_a_setting_that_an_older_version_did_not_have_stands_for_its_default() -> None:
    now = json.loads(durable.canonical(_flat(asdict(TrainConfig()))))
    facts = {"settings": now, "digests": {}}
    older = {name: value for name, value in now.items() if name != "data.normalise"}
    checkpoint = Stored(Path("step"), {"settings": older, "digests": {}}, {})
    compare(checkpoint, TrainConfig(), facts)
    with pytest.raises(ResumeError, match="data.normalise is keep in step, ascii now"):
        compare(checkpoint, TrainConfig(), facts | {"settings": now | {"data.normalise": "ascii"}})
    removed = Stored(Path("step"), {"settings": now | {"gone": 1}, "digests": {}}, {})
    with pytest.raises(ResumeError, match="gone is 1"):
        compare(removed, TrainConfig(), facts)
