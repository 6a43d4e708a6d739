"""What a program loads before it has something to do, and the command that finds them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from report2impression import __main__ as command
from report2impression.program.errors import ConfigError
from tests.tiny import ROOT, Tiny, one_line, python

# Seconds each: no settings need them, and training needs few.
HEAVY = {
    *("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "pandas", "sklearn"),
    *("scipy", "matplotlib", "spacy", "datasketch", "bitsandbytes", "jinja2", "sacrebleu"),
}
FOR_A_PAGE = {"matplotlib", "sklearn", "spacy", "datasketch", "pandas", "datasets", "pyarrow"}


def loaded(code: str) -> set[str]:
    """Which of HEAVY a fresh Python has loaded after this code."""
    done = python("-c", f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return HEAVY & {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_settings_load_nothing_heavy() -> None:
    assert not loaded("import report2impression.runs.settings, report2impression.__main__")


def test_structuring_loads_no_model() -> None:
    code = "import extract; from report2impression.extracting import structuring"
    assert not loaded(code) & {"torch", "transformers", "peft", "accelerate", "datasets"}


def test_training_loads_nothing_that_only_a_page_needs() -> None:
    """bitsandbytes is PEFT's, scipy transformers', where they are installed."""
    assert not loaded("import train_loop") & FOR_A_PAGE


def answers(*argv: str, code: int) -> set[str]:
    """Which of HEAVY a program has loaded by the time it has answered."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "report2impression.program" in names
    return HEAVY & {name.partition(".")[0] for name in names}


def test_what_libraries_bring_is_not_searched_for_garbage() -> None:
    """Not while they are loaded, nor later, nor at the end; what a program makes is."""
    code = """
        import atexit, gc
        from report2impression.program.errors import exits_cleanly
        from report2impression.program.process import load_quickly, loaded
        searched = []
        gc.callbacks.append(lambda *_: searched.append(1))
        atexit.register(lambda: print(len(gc.get_objects()) < 100))
        load_quickly()
        brought = [[i] for i in range(10**5)]
        print(not searched)
        @exits_cleanly
        def main():
            print(not gc.isenabled())
            loaded()
            print(gc.isenabled() and gc.get_freeze_count() > 10**5)
            made = [[i] for i in range(10**5)]
            print(len(searched) > 1)
        main()
    """
    done = python("-c", dedent(code))
    assert done.stdout.split() == ["True"] * 5, done.stderr


@pytest.mark.parametrize("eight_bit", [False, True])
def test_training_loads_bitsandbytes_only_where_it_is_used(tmp_path: Path, eight_bit: bool) -> None:
    optimizer = f"--optimizer={'adamw8bit' if eight_bit else 'adamw'}"
    done = python("-X", "importtime", "train_loop.py", f"--data.path={tmp_path}", optimizer)
    assert done.returncode == 2 and " peft.tuners.lora.layer" in done.stderr
    assert (" bitsandbytes.functional" in done.stderr) == eight_bit


@pytest.mark.parametrize("program", ["train_loop.py", "eval.py", "extract.py"])
def test_help_and_mistakes_are_answered_before_torch_is_loaded(program: str) -> None:
    assert not answers(program, "--help", code=0)
    assert not answers(program, "--adpter=x", code=2)


def test_a_dry_run_is_told_before_torch_is_loaded(tiny: Tiny) -> None:
    assert not answers("train_loop.py", "--dry_run", *tiny.flags(tiny.cache), code=0)


@pytest.mark.parametrize("module", [module for module, _ in command.MODULES.values()])
def test_every_command_helps_before_it_loads_anything_heavy(module: str) -> None:
    loaded = answers("-m", f"report2impression.{module}", "--help", code=0)
    assert not loaded - {"jinja2", "sacrebleu"}  # a tenth of a second


def test_the_command_lists_and_finds_its_programs(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--help"])
    told = capsys.readouterr().out
    for name in (*command.FILES, *command.MODULES, "copy"):
        assert f"\n  {name} " in told
    for file, _ in command.FILES.values():
        assert (command.SCRIPTS / file).is_file()
    for module, _ in command.MODULES.values():
        assert (ROOT / "report2impression" / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize(
    "argv", [["tran"], ["train", "--launch"], ["train", "--epoch=1"], ["copy"], ["copy", "--x"]]
)
def test_a_wrong_call_is_one_line(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2
    one_line(capfd.readouterr().err)


def test_training_starts_by_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, argv: became.append(argv[1:]))
    command.main(["train", "--launch", "two.yaml", "--epochs=1"])
    command.main(["eval", "--n=1"])
    command.main(["audit"])
    launch = ["-m", "accelerate.commands.launch", "--config_file", "two.yaml"]
    assert became == [
        [*launch, str(ROOT / "train_loop.py"), "--epochs=1"],
        [str(ROOT / "eval.py"), "--n=1"],
        ["-m", "report2impression.audit.audit"],
    ]


def test_the_loop_is_handed_out_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["copy", str(tmp_path / "mine")])
    copied = {file.name for file in (tmp_path / "mine").iterdir()}
    assert copied == {"train_loop.py", "data.py", "model.py", "eval.py", "extract.py", "recipes"}
    assert (tmp_path / "mine" / "recipes" / "published.toml").is_file()
    with pytest.raises(ConfigError, match="has train_loop.py already"):
        command.copy([str(tmp_path / "mine")])
