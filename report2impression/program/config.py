"""Settings of a run: dataclass <- recipe (TOML) <- flags; nothing here knows the project.

    config = parse(TrainConfig)     # train.py --config recipes/base.toml --data.path reports

The (frozen) dataclass is the only list of settings: a nested dataclass is a TOML table and a dotted
flag, the string literal under a field is its help. Later recipes win over earlier ones, flags over
all recipes wherever they stand. TOML has no null, so the word "null" unsets an optional field.
Every mistake is a ConfigError of one line that names the flag, or the key with its file and line.
"""

import dataclasses
import difflib
import re
import sys
import tomllib
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jsonargparse
import tomli_w

from report2impression.program.errors import ConfigError
from report2impression.program.files import write_file

T = TypeVar("T")
Fields = dict[str, Any]  # dotted name -> type: {"epochs": int, "data": Data, "data.path": str}

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
# For --print_config: jsonargparse's own TOML writer needs another package and fails at null.
jsonargparse.set_dumper("toml", lambda table: tomli_w.dumps(_nulls(table)))


def parse(cls: type[T], argv: Sequence[str] | None = None, *, description: str = "") -> T:
    """Build `cls` from the command line (default: `sys.argv[1:]`), or raise ConfigError.

    The message of a ValueError from a `__post_init__` is kept as it is.
    """
    known = _fields(cls)
    recipes, flags = _split(sys.argv[1:] if argv is None else argv, known)
    parser = jsonargparse.ArgumentParser(
        description=description or None,
        exit_on_error=False,
        parser_mode="toml",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="TOML; the last one wins")
    parser.add_class_arguments(cls)
    for recipe in recipes:
        _check_table(_read(recipe), recipe, known)
        _parse(parser, [f"--config={recipe}"], known, recipe)
    values = _parse(parser, [f"--config={recipe}" for recipe in recipes] + flags, known)
    try:
        values = parser.instantiate(values)  # the tables
        return cls(**{name: values[name] for name in known if "." not in name})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def load(cls: type[T], path: str | Path) -> T:
    """Read what `save` wrote, or any recipe that sets each required field."""
    return parse(cls, [f"--config={path}"])


def save(config: object, path: Path) -> None:
    """Write `config` as TOML that `load` and `--config` read back to an equal object,
    whole or not at all, for its owner only. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, tomli_w.dumps(_nulls(_table(config))).encode())


def _fields(cls: type[Any], prefix: str = "") -> Fields:
    hints, names = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        names[prefix + field.name] = hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            names |= _fields(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
    return names


def _split(argv: Sequence[str], known: Fields) -> tuple[list[str], list[str]]:
    """Part recipes from flags, so that flags win in any order; a bare `--cpu` is `--cpu=true`."""
    recipes, flags, rest = [], [], list(argv)
    if {"-h", "--help"} & set(argv):
        return [], ["--help"]
    while rest:
        name, _, value = (token := rest.pop(0)).partition("=")
        field = name[2:] if name.startswith("--") else ""  # "" for the value of the flag before
        if f"{field}_" in known:  # a word of Python's own: --from is the field from_
            field, name, token = f"{field}_", f"{name}_", token.replace(name, f"{name}_", 1)
        if name == "--config":
            recipes.append(value or (rest.pop(0) if rest else ""))
        elif field and field not in {*known, "print_config"}:
            raise ConfigError(f"unknown flag {name}{_nearest(field, known, '--')}")
        elif dataclasses.is_dataclass(known.get(field)):
            flags.append(_table_flag(token, rest, known))
        elif token == name and bool in (hint := known.get(field), *get_args(hint)):
            bare = not rest or rest[0].startswith("-")
            flags.append(f"{name}={'true' if bare else rest.pop(0)}")
        else:
            flags.append(token)
    return recipes, flags


def _table_flag(token: str, rest: list[str], known: Fields) -> str:
    """`--data {...}` is a table, `--data DIR` a slip that jsonargparse would take for a file."""
    name, _, value = token.partition("=")
    value = value or (rest.pop(0) if rest else "")
    if not value.startswith("{"):
        inner = [field for field in known if field.startswith(f"{name[2:]}.")]
        first = f"{name}.path" if f"{name[2:]}.path" in inner else f"--{inner[0]}"
        raise ConfigError(
            f"{name} {value} lacks a field's name: did you mean {first} {value}? --help lists all"
        )
    return f"{name}={value}"


def _read(recipe: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config needs a TOML file: {recipe!r}: {error.strerror}") from None
    except ValueError as error:  # broken TOML (the message has line and column) or not UTF-8
        raise ConfigError(f"{recipe} is not TOML: {error}; mend it there") from None


def _check_table(table: dict[str, Any], recipe: str, known: Fields, prefix: str = "") -> None:
    """Refuse what jsonargparse would let through (`data = 3`, `epochs = "3"`) or not locate."""
    for name, value in ((prefix + key, value) for key, value in table.items()):
        if name not in known:
            raise ConfigError(f"{_at(recipe, name)}: unknown key {name}{_nearest(name, known)}")
        if dataclasses.is_dataclass(hint := known[name]) and isinstance(value, dict):
            _check_table(value, recipe, known, f"{name}.")
        elif dataclasses.is_dataclass(hint) or isinstance(value, str) and not _text(hint, value):
            raise ConfigError(f"{_at(recipe, name)}: {_mismatch(name, hint, value)}")


def _text(hint: Any, value: str) -> bool:
    options = (hint, *get_args(hint))
    if any(option is str or get_origin(option) is Literal for option in options):
        return True
    return value == "null" and type(None) in options


def _parse(parser: Any, argv: list[str], known: Fields, recipe: str = "") -> Any:
    """Parse, retelling jsonargparse's many lines in one; with `recipe`, only check that file."""
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        text = str(error)
    found = re.search(r'^Parser key "(.+?)":.*(?:Got|Given) value: (.*)', text, re.DOTALL)
    if found and found[1] in known:
        name = found[1]
        where = _at(recipe, name) if recipe else f"--{name}"
        raise ConfigError(f"{where}: {_mismatch(name, known[name], found[2])}")
    if not (recipe and "arguments are required" in text):  # others may still give those
        raise ConfigError(f"{' '.join(text.split())}; --help lists every field")


def _mismatch(name: str, hint: Any, value: object) -> str:
    wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    if get_origin(hint) is Literal:
        wanted = "one of " + ", ".join(map(str, get_args(hint)))
    elif dataclasses.is_dataclass(hint):
        wanted = f"a table: [{name}]"
    elif get_origin(hint) is tuple:
        wanted += f""", as in --{name} '["a","b"]',"""
    return f"{name} must be {wanted}, not {value!r}; see --help"


def _nearest(name: str, known: Fields, dashes: str = "") -> str:
    """`--epoch` suggests `--epochs`; `--path` and `--model.path` suggest `--data.path`."""
    inner = [other for other in known if other.endswith("." + name.rpartition(".")[2])]
    close = inner or difflib.get_close_matches(name, known, 1)
    suggestion = f" (did you mean {dashes}{close[0]}?)" if close else ""
    return f"{suggestion}; --help lists every field"


def _at(recipe: str, name: str) -> str:
    """`FILE, line N` of a dotted key; only `FILE` where the key is quoted or in an inline table."""
    section = ""
    for number, line in enumerate(Path(recipe).read_text(encoding="utf-8").splitlines(), 1):
        if header := re.match(r"\s*\[+([^\[\]]+)\]", line):
            section = header[1].strip() + "."
        key = section[:-1] if header else section + line.split("=")[0].strip()
        if key == name:
            return f"{recipe}, line {number}"
    return recipe


def _table(config: Any) -> dict[str, Any]:
    """Fields as nested dicts, without each None that is also the default."""
    pairs = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return {
        field.name: _table(value) if dataclasses.is_dataclass(value) else value
        for field, value in pairs
        if value is not None or field.default is not None
    }


def _nulls(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _nulls(value) if isinstance(value, dict) else "null" if value is None else value
        for key, value in table.items()
    }
