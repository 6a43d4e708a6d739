"""launcher.py: a process ends with its launcher, and modes that cannot run are refused by name."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

import eval as evaluation
import train_loop
from report2impression.program.launcher import MODES, NOT_OF_FSDP
from tests.tiny import ROOT, one_line

# A launcher that starts a process, as the shell would run it in the background, and waits.
LAUNCHER = """
import subprocess, sys
rank = "from report2impression.program.launcher import accept_launch as go; go(); print('here')"
subprocess.run([sys.executable, "-c", rank + "; import sys; sys.stdout.flush(); sys.stdin.read()"])
"""


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("main", [train_loop.main, evaluation.main], ids=["train", "eval"])
def test_a_mode_that_cannot_run_is_named(
    main: object, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(SystemExit) as ended:
        main(["--adapter=none"] if main is evaluation.main else [])  # type: ignore[operator]
    assert ended.value.code == 2
    told = one_line(capfd.readouterr().err)
    assert MODES[name] in told and "recipes/accelerate" in told


def sharded(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    wanted = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", **more}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


def refused(capfd: pytest.CaptureFixture[str], main: Callable[..., object], *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(flags))
    assert ended.value.code == 2
    return one_line(capfd.readouterr().err)


COVERED = ("--engine=hf", "--precision=fp32")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--engine=fast", "needs --engine hf, not fast"),
        ("--tuning=full", "needs --tuning lora, not full"),
        ("--base_quantization=4bit", "needs --base_quantization none, not 4bit"),
        ("--optimizer=adamw8bit", "needs --optimizer adamw, not adamw8bit"),
        ("--precision=fp16", "needs --precision bf16 or fp32, not fp16"),
        ("--precision=auto", "needs --precision bf16 or fp32, not auto"),
        ("--generate_n=3", "needs --generate_n 0, not 3"),
        ("--deterministic=true", "needs --deterministic false, not true"),
        ("--compile=true", "needs --compile false, not true"),
    ],
)
def test_what_a_base_in_parts_does_not_cover(
    flag: str, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sharded(monkeypatch)
    assert told in refused(capfd, train_loop.main, *COVERED, flag)
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert "fsdp2.yaml" in refused(capfd, train_loop.main, *COVERED)


@pytest.mark.parametrize("name", NOT_OF_FSDP)
def test_what_a_launch_file_of_fsdp_may_not_ask_for(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sharded(monkeypatch, **{name: "true"})
    told = refused(capfd, train_loop.main, *COVERED)
    assert name.lower() in told and NOT_OF_FSDP[name] in told


def test_an_evaluation_takes_no_base_in_parts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sharded(monkeypatch)
    assert "asks for FSDP" in refused(capfd, evaluation.main, "--adapter=none")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal of a parent's death")
@pytest.mark.parametrize("launched", [True, False])
def test_a_process_ends_with_its_launcher(launched: bool) -> None:
    env = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    env |= {"PYTHONPATH": str(ROOT)} | ({"LOCAL_RANK": "0"} if launched else {})
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdin and launcher.stdout
        assert launcher.stdout.readline() == "here\n"
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
        if not launched:  # goes on until its input ends
            launcher.stdin.close()
        assert launcher.stdout.read() == ""  # at its end nobody holds the other side any more
