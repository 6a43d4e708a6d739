"""The command `report2impression`: every program of the project, from any folder.

    report2impression train --data.path DIR --output_dir RUN     accelerate launch train_loop.py ...
    report2impression eval --adapter RUN/adapter                  python eval.py ...
    report2impression copy DIR                                    the loop's files, to be changed

The programs are files, run by their path: of a checkout those at its top, installed those in
report2impression/scripts. So `from data import ...` in the loop means its neighbour in both places.
"""

import os
import shutil
import sys
from pathlib import Path

from report2impression.program.errors import ConfigError, exits_cleanly

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = PACKAGE / "scripts" if (PACKAGE / "scripts").is_dir() else PACKAGE.parent
RECIPES = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"

FILES = {
    "train": ("train_loop.py", "fine-tune T5 with LoRA, by accelerate launch"),
    "eval": ("eval.py", "base vs LoRA on sampled test reports"),
    "extract": ("extract.py", "reports -> structured impressions"),
}
MODULES = {
    "compare": ("reporting.compare", "two evaluated runs, paired"),
    "audit": ("audit.audit", "what is wrong with report pairs, before training"),
    "memorisation": ("audit.memorisation", "what a model recites of its training reports"),
    "mimic": ("corpora.mimic_iii", "MIMIC-III's NOTEEVENTS -> report pairs"),
    "sections": ("reading.show_sections", "the sections of whole reports"),
    "synthetic": ("corpora.synthetic", "a synthetic corpus, to try things on"),
    "new-base": ("weights.new_base", "an untrained T5 with a tokenizer of its own"),
    "convert": ("weights.convert", "a base of pytorch_model.bin -> safetensors"),
    "export": ("extracting.export", "a trained model for other programs"),
    "serve": ("serving.serve", "a page and a service over a model, on this machine"),
    "push": ("weights.push", "an adapter to the hub"),
}
# What `accelerate launch` takes before the file is given before these: `train --launch FILE ...`.
LAUNCH = "--launch"


def usage() -> str:
    told = {name: help for name, (_, help) in (FILES | MODULES).items()}
    told["copy"] = "the loop, the other programs at the top and recipes/ into a folder of yours"
    rows = "\n".join(f"  {name:13} {help}" for name, help in told.items())
    return (
        "usage: report2impression COMMAND [--help] [FLAGS]\n\n"
        f"{rows}\n\n"
        f"train {LAUNCH} FILE.yaml ... starts it with that configuration of accelerate."
    )


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    """Becomes the program that is asked for. ConfigError if there is none of that name."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "train":
        become(*_launched(flags))
    elif name in FILES:
        become(str(SCRIPTS / FILES[name][0]), *flags)
    elif name in MODULES:
        become("-m", f"report2impression.{MODULES[name][0]}", *flags)
    elif name == "copy":
        copy(flags)
    else:
        raise ConfigError(f"there is no command {name}; report2impression --help lists them")


def become(*argv: str) -> None:
    """This process goes on as Python on these arguments."""
    if sys.stdout is not None:
        sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *argv])


def _launched(flags: list[str]) -> list[str]:
    """By accelerate, but for what needs no process group: it takes seconds to load."""
    options: list[str] = []
    if flags[:1] == [LAUNCH]:
        if len(flags) < 2:
            raise ConfigError(f"{LAUNCH} needs a configuration file of accelerate")
        options, flags = ["--config_file", flags[1]], flags[2:]
    from report2impression.runs.settings import training_settings

    training_settings(flags)  # --help, mistakes and --dry_run end here
    return ["-m", "accelerate.commands.launch", *options, str(SCRIPTS / "train_loop.py"), *flags]


def copy(flags: list[str]) -> None:
    """The files that a user opens and edits. ConfigError: no folder is named, or it has them."""
    if len(flags) != 1 or flags[0].startswith("-"):
        raise ConfigError("copy needs a folder: report2impression copy DIR")
    target = Path(flags[0]).expanduser()
    names = ("train_loop.py", "data.py", "model.py", "eval.py", "extract.py")
    there = [name for name in (*names, "recipes") if (target / name).exists()]
    if there:
        raise ConfigError(f"{target} has {there[0]} already: name another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(SCRIPTS / name, target / name)
        shutil.copytree(RECIPES, target / "recipes", ignore=shutil.ignore_patterns("__*"))
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    print(f"written: {', '.join(names)} and recipes in {target}")


if __name__ == "__main__":
    main()
