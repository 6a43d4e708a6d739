"""Signals under the real launcher, which changes exit codes: what counts is exit_status.json."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.reliability.fault_runs import bits, steps_kept
from tests.test_resume import flags
from tests.tiny import ROOT, Tiny
from tests.waiting import HANG_S, until, until_written

pytestmark = pytest.mark.slow
FILES = {1: "cpu.yaml", 2: "cpu_2_processes.yaml"}


def launch(argv: list[str], n_ranks: int) -> subprocess.Popen[bytes]:
    """`accelerate launch`, in a process group of its own."""
    # A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(ROOT / "recipes/accelerate" / FILES[n_ranks])),
            *("--main_process_port", str(port), "train_loop.py", *argv),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def alive(folder: Path) -> list[int]:
    """Processes of a run, whatever their group: its folder stands in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()  # empty for zombies
        except OSError:
            continue
        if str(folder).encode() in command and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    runs = {}
    for n_ranks in FILES:
        runs[n_ranks] = tmp_path_factory.mktemp("whole") / "run"
        done = launch(flags(tiny, runs[n_ranks], micro_batch_size=8 // n_ranks, epochs=15), n_ranks)
        assert done.wait(timeout=HANG_S) == 0
    yield runs


@pytest.mark.parametrize("n_ranks", FILES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("target", ["launcher", "group"])
def test_a_signal_to_the_launcher_keeps_the_step(
    tiny: Tiny,
    tmp_path: Path,
    whole: dict[int, Path],
    n_ranks: int,
    number: signal.Signals,
    target: str,
) -> None:
    if (target, number) == ("group", signal.SIGKILL):
        pytest.skip("nobody is left to write a status")
    folder = tmp_path / "run"
    argv = flags(tiny, folder, micro_batch_size=8 // n_ranks, epochs=15, checkpoint_steps=0)
    launcher = launch(argv, n_ranks)
    log = folder / "metrics.jsonl"
    until_written(log, '"step": 9')
    (os.killpg if target == "group" else os.kill)(launcher.pid, number)
    until(lambda: launcher.poll() is not None and not alive(folder))
    assert launcher.returncode != 0
    told = json.loads((folder / "exit_status.json").read_text())
    assert told["code"] in (75, 8)  # 8: a rank whose peer the launcher ended first
    assert steps_kept(folder)[-1] >= 9 - 1
    again = launch(argv, n_ranks)
    assert again.wait(timeout=HANG_S) == 0
    assert bits(folder) == bits(whole[n_ranks])
