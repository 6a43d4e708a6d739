"""With local folders whole programs, imports included, look no name up and try no connection,
whatever goes wrong (in forks, and faster: tests/test_names.py, tests/test_privacy.py)."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ForkServer, Result
from tests.tiny import Tiny

pytestmark = pytest.mark.slow

# Runs a program with every connection and look-up of a name blocked and noted.
BLOCKED = """
import os, runpy, sys
log, program, *argv = sys.argv[1:]

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        place = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        place = arguments[0]
    else:
        return
    with open(log, "a") as file:
        file.write(f"{event} {place!r}\\n")
    raise ConnectionError("no network here")

sys.addaudithook(note)
sys.argv = [program, *argv]
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture(scope="module")
def results(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Result], Path]:
    """All commands in forks of one process with an empty home and no setting for the hub."""
    place = tmp_path_factory.mktemp("offline")
    script, log = place / "blocked.py", place / "log"
    script.write_text(BLOCKED)
    log.touch()

    def command(program: str, *flags: object) -> list[str]:
        return [str(script), str(log), program, *map(str, flags)]

    def broken(name: str, *missing: str) -> Path:
        folder = place / name
        shutil.copytree(tiny.base, folder)
        for file in missing:
            (folder / file).unlink()
        return folder

    def train(name: str, base: Path | None = None, **changes: Any) -> list[str]:
        flags = tiny.flags(place / name, model__path=base or tiny.base, max_steps=1, **changes)
        return command("train_loop.py", *flags)

    adapter, short = place / "run" / "adapter", ["--cpu", "--n=2", "--max_new_tokens=2"]
    few = [*short, "--n_resamples=100"]
    copies = [f"shutil.copytree({str(adapter)!r}, {str(place / n)!r})" for n in "abc"]
    copies += [f"os.unlink({str(place / 'a' / 'adapter_model.safetensors')!r})"]
    copies += [f"os.unlink({str(place / 'b' / 'adapter_config.json')!r})"]
    copies += [f"open({str(place / 'c' / 'adapter_model.safetensors')!r}, 'w')"]
    copier = place / "copier.py"
    copier.write_text("import os, shutil\n" + "\n".join(copies))
    canary = place / "canary.py"
    canary.write_text("import huggingface_hub; huggingface_hub.HfApi().model_info('a/b')")
    commands = {
        "train": train("run"),
        "eval": command("eval.py", f"--adapter={adapter}", *few),
        "copies": [str(copier)],
        **{
            f"eval {name}": command("eval.py", f"--adapter={place / name}", *few)
            for name in ("a", "b", "c")
        },
        "no weights": train("no 1", broken("base 1", "model.safetensors")),
        "no tokenizer": train("no 2", broken("base 2", "tokenizer.json", "spiece.model")),
        "no config": train("no 3", broken("base 3", "config.json")),
        "no split": train("no 4", data__path=tiny.base),
    }
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(place / "home"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    with ForkServer(env) as server:
        found = {name: server.run(*argv) for name, argv in commands.items()}
        control = server.run(*command(str(canary)))
    assert "getaddrinfo" in log.read_text() or "connect" in log.read_text(), control
    log.rename(place / "control log")
    return found, place


def test_local_runs_end_as_they_should(results: tuple[dict[str, Result], Path]) -> None:
    found, _ = results
    for name in ("train", "eval", "copies"):
        assert found[name].code == 0, found[name].stderr
    for name, wanted in {
        "eval a": "adapter_model.safetensors",
        "eval b": "adapter_config.json",
        "eval c": "adapter_model.safetensors",
        "no weights": "base 1",
        "no tokenizer": "base 2",
        "no config": "base 3",
    }.items():
        assert found[name].code == 2 and "Traceback" not in found[name].stderr
        assert wanted in found[name].stderr.splitlines()[-1]
    found["no split"].error(3)


def test_nothing_asked_for_a_host(results: tuple[dict[str, Result], Path]) -> None:
    """The only entries are those of the control, which was asked to call a hub."""
    _, place = results
    lines = (place / "control log").read_text().splitlines()
    assert lines and len(set(lines)) == 1 and "127.0.0.1" in lines[0], lines
