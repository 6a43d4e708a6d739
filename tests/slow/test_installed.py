"""Installed from a clone into an environment of its own: the command works from any folder, and
nothing called data or eval is importable."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from report2impression.__main__ import FILES, MODULES
from tests.tiny import ROOT

pytestmark = pytest.mark.slow


class Place:
    """A fresh environment that sees the libraries of this one, and an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.bin = folder / "environment" / "bin"
        self.run(sys.executable, "-m", "venv", str(self.bin.parent))
        site = Path(self.run(self.bin / "python", "-c", PURELIB).stdout.strip())
        # A line of a .pth adds a folder, but reads no .pth there: not this checkout's own.
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        clone = folder / "clone"
        self.run("git", "clone", "--quiet", str(ROOT), str(clone))
        self.run(self.bin / "python", "-m", "pip", "install", "--quiet", "--no-deps", str(clone))

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*map(str, command)],
            cwd=self.elsewhere,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("installed"))


@pytest.mark.parametrize("name", ["", *FILES, *MODULES])
def test_every_command_helps_from_any_folder(place: Place, name: str) -> None:
    done = place.run(place.bin / "report2impression", *([name] if name else []), "--help")
    assert "usage" in done.stdout and not done.stderr


@pytest.mark.parametrize("name", ["data", "model", "eval", "train_loop", "bench", "tests"])
def test_no_program_is_importable(place: Place, name: str) -> None:
    assert (
        f"No module named '{name}'"
        in place.run(place.bin / "python", "-c", f"import {name}", code=1).stderr
    )


def test_a_training_of_three_steps(place: Place) -> None:
    ours = place.bin / "report2impression"
    place.run(ours, "synthetic", "--output_dir=data", "--n_train=60", "--n_validation=8")
    sizes = [
        "--d_model=32",
        "--d_ff=64",
        "--d_kv=16",
        "--n_heads=2",
        "--n_layers=2",
        "--vocab_size=400",
    ]
    place.run(ours, "new-base", "--data.path=data", "--output_dir=base", *sizes)
    flags = ["--model.path=base", "--data.path=data", "--data.cache_dir=cache", "--output_dir=run"]
    place.run(ours, "train", "--cpu", "--max_steps=3", *flags)
    assert (place.elsewhere / "run" / "adapter" / "adapter_model.safetensors").is_file()
    place.run(ours, "eval", "--cpu", "--adapter=run/adapter", "--n=4", "--max_new_tokens=8")
    assert (place.elsewhere / "run" / "evaluation" / "scores.json").is_file()
    place.run(ours, "copy", "mine")
    place.run(place.bin / "python", "mine/train_loop.py", "--help")
