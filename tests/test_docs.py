"""What README and docs name is there: programs, flags, targets, files, modules, links. Settings are
looked up in the source, where a program parses them: no program is loaded."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from report2impression.__main__ import FILES, LAUNCH, MODULES
from tests.test_house import ROOT, classes, dotted

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES_OF_README = 200
FOLDERS = ("report2impression", "bench", "tests", "recipes", "assets", "docs")
REPOSITORY = {
    file.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for file in [*ROOT.glob("*"), *(ROOT / folder).rglob("*")]
}
SETTINGS = {
    "train_loop.py": "TrainConfig",
    "eval.py": "EvalConfig",
    "extract.py": "ExtractConfig",
    "report2impression/extracting/export.py": "ExportConfig",
    "report2impression/serving/serve.py": "ServeConfig",
    "report2impression/weights/new_base.py": "NewBaseConfig",
    "report2impression/weights/convert.py": "ConvertConfig",
}
PARSERS = ("parse", "start", "auto_cli")  # what builds a program's settings from its command line
EVERYWHERE = {"help", "config", "print_config"}
MACHINE = re.compile(r"(?<![\w.:/~-])(/(home|root|tmp|work|mnt|Users|data|opt)\b|[A-Z]:\\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def code(text: str) -> Iterator[str]:
    """Each line of a block of commands or a drawing, and each span of code; in tables, too."""
    for language, block in FENCE.findall(text):
        if language not in ("python", "json", "toml"):
            yield from block.replace("\\\n", " ").splitlines()
    for span in SPAN.findall(FENCE.sub("", text)):
        yield " ".join(span.replace(r"\|", "|").split())


def commands(text: str) -> Iterator[list[str]]:
    for line in code(text):
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        if first in ("python", "accelerate", "report2impression", "make"):
            yield shlex.split(line, comments=True)


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def fields(settings: str, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a dataclass, its bases and its tables included."""
    node = classes()[settings]
    for base in filter(classes().get, map(dotted, node.bases)):
        yield from fields(base, prefix)
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield prefix + field.target.id.rstrip("_")  # `from_` is the flag --from
            if (table := dotted(field.annotation)) in classes():
                yield from fields(table, f"{prefix}{field.target.id}.")


@cache
def flags(file: str) -> set[str]:
    """What the program in this file takes; none if it parses no settings."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in PARSERS and node.args:
            name = dotted(node.args[0])
            if name in classes():
                return {*fields(name), *EVERYWHERE}
            if name in functions:
                return {argument.arg for argument in functions[name].args.args} | EVERYWHERE
    return {*fields(SETTINGS[file]), *EVERYWHERE} if file in SETTINGS else set()


@cache
def launch_flags() -> set[str]:
    from accelerate.commands.launch import launch_command_parser

    return {flag.lstrip("-") for flag in launch_command_parser()._option_string_actions}


def named(argv: list[str]) -> Iterator[str]:
    for token in argv:
        if token.startswith("--"):
            yield token[2:].partition("=")[0]


def of_file(file: str, argv: list[str]) -> list[str]:
    if not (ROOT / file).is_file():
        return [f"no program {file}"]
    known = flags(file)
    if not known:
        return [f"{file} is no program"]
    return [f"{file} has no flag --{name}" for name in named(argv) if name not in known]


def of_command(argv: list[str]) -> list[str]:
    """`report2impression NAME ...`, from a checkout or installed."""
    name, *rest = argv or ["--help"]
    if name in ("--help", "copy"):
        return []
    if name in FILES:
        return of_file(FILES[name][0], rest[2:] if rest[:1] == [LAUNCH] else rest)
    if name in MODULES:
        file = f"report2impression/{MODULES[name][0].replace('.', '/')}.py"
        return of_file(file, rest)
    return [f"no command report2impression {name}"]


def of_launch(argv: list[str]) -> list[str]:
    """`accelerate launch [its flags] FILE [flags]`."""
    if argv[:1] != ["launch"]:
        return [f"accelerate has no {argv[0]} here"] if argv else []
    place = next((i for i, token in enumerate(argv) if token.endswith(".py")), len(argv))
    wrong = [name for name in named(argv[:place]) if name not in launch_flags()]
    found = [f"accelerate launch has no flag --{name}" for name in wrong]
    return found + (of_file(argv[place], argv[place + 1 :]) if argv[place:] else [])


def wrong_in(command: list[str]) -> list[str]:
    """What a command names that is not there."""
    program, argv = command[0], command[1:]
    if program == "make":
        return [f"no target {name}" for name in argv if name not in targets()]
    if program == "report2impression":
        return of_command(argv)
    if program == "accelerate":
        return of_launch(argv)
    if argv[:2] == ["-m", "report2impression"]:
        return of_command(argv[2:])
    if argv[:1] == ["-m"]:
        place = argv[1].replace(".", "/")
        is_folder = (ROOT / place).is_dir()
        return of_file(f"{place}/__main__.py" if is_folder else f"{place}.py", argv[2:])
    return of_file(argv[0], argv[1:]) if argv else []


@cache
def all_flags() -> set[str]:
    programs = [file for file in REPOSITORY if file.endswith(".py") and "tests/" not in file]
    return set().union(LAUNCH[2:].split(), launch_flags(), *map(flags, programs))


def missing_files(line: str) -> Iterator[str]:
    """Paths of this repository, and Python files by any ending of their path. Words in capitals
    stand for something of the user's."""
    for path in re.findall(r"[\w.*/-]*[\w*/]", line):
        parts = path.rstrip("/").split("/")
        ours = len(parts) > 1 and parts[0] in FOLDERS
        if any(part.partition(".")[0].isupper() for part in parts) or not (
            ours or path.endswith(".py")
        ):
            continue
        if "*" in path:
            there = any(ROOT.glob(path))
        else:
            there = any(f"/{file}".endswith("/" + "/".join(parts)) for file in REPOSITORY)
        if not there:
            yield f"no file {path}"


def missing_modules(line: str) -> Iterator[str]:
    """`report2impression.room.module`, or a name in it; or a package that is only installed."""
    for name in re.findall(r"\b(?:report2impression|bench|tests)(?:\.\w+)+", line):
        folder, _, last = name.replace(".", "/").rpartition("/")
        there = {name.replace(".", "/") + end for end in (".py", "/__init__.py")} & REPOSITORY
        inside = f"{folder}.py" in REPOSITORY and last in (ROOT / f"{folder}.py").read_text()
        if not there and not inside and name not in (ROOT / "setup.cfg").read_text().split():
            yield f"no module {name}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(text: str, page: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", text)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if link.startswith("https://"):
            continue
        if not target.exists() or anchor and anchor not in anchors(target):
            yield f"dead link {link}"


def mistakes(text: str, page: Path = PAGES[0]) -> list[str]:
    """All that a page names and that is not there."""
    found = [wrong for command in commands(text) for wrong in wrong_in(command)]
    for line in code(text):
        found += [*missing_files(line), *missing_modules(line)]
        bare = re.match(r"--([\w.]+)", line)
        if bare and bare[1] not in all_flags():
            found.append(f"no program has a flag --{bare[1]}")
    found += dead_links(text, page)
    return found + [f"a path of a machine: {path[0]}" for path in MACHINE.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert mistakes(text, page) == []
    assert list(commands(text)), "a page without a command?"


def test_the_readme_is_short() -> None:
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES_OF_README
    assert all(len(line) <= 120 or line.startswith("|") for line in lines), "short by long lines"


def test_every_page_is_reached_from_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize(
    "text",
    [
        "`python train_loop.py --dat.path DIR`",
        "`python train.py`",
        "`python -m bench.speed`",
        "`python -m bench.train_speed --step 6`",
        "`python -m bench.timing`",
        "`python -m report2impression.audit --data.path DIR`",
        "`python -m report2impression audit --fail-on error`",
        "`report2impression mimic --note X`",
        "`report2impression mimick --notes X`",
        "`report2impression synthetic --n_trains 3`",
        "`report2impression train --launch recipes/accelerate/cpu.yaml --epoch 3`",
        "`accelerate launch --config recipes/accelerate/cpu.yaml train_loop.py`",
        "`accelerate launch --config_file recipes/accelerate/gpu.yaml train_loop.py`",
        "`accelerate launch eval.py --adaptor RUN/adapter`",
        "| a | `make demos` |",
        "```\nmake install\nmake demos   # comment\n```",
        "```\npython eval.py \\\n    --adaptor X\n```",
        "```\nx\n```\nand `python\ntrain.py`",
        "`fast_t5.py`",
        "`recipes/publish.toml`",
        "`recipes/*.json`",
        "`bench/faults.py`",
        "`report2impression.reading.pairs.read_splits`",
        "`report2impression.corpus`",
        "give `--on_bad_rows skip`",
        "[x](docs/nothing.md)",
        "[x](README.md#nothing)",
        "![x](assets/nothing.png)",
        "it lies in /home/somebody/data",
    ],
)
def test_a_mistake_would_be_found(text: str) -> None:
    assert mistakes(text)


def test_what_is_right_is_let_through() -> None:
    text = """
`python train_loop.py`, `make demo`, `report2impression copy DIR`, `--data.path DIR`, `data/mimic`
| `accelerate launch --config_file recipes/accelerate/one_gpu.yaml train_loop.py ...` | `plan.py` |
`report2impression train --launch recipes/accelerate/cpu.yaml --cpu`, `recipes/X.toml`
`python -m bench.train_speed --lora.r 8`, `report2impression compare RUN_A RUN_B --seed 1`
`report2impression.reading.pairs.read_split`, `python -m report2impression synthetic --seed 1`
[the readme](README.md), [a heading](#train), [a site](https://example.org/x)
"""
    assert mistakes(text) == []
