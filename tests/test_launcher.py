"""launcher.py: a process ends with its launcher, and modes that cannot run are refused by name."""

import os
import signal
import subprocess
import sys

import pytest

import eval as evaluation
import train_loop
from report2impression.program.launcher import MODES
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
