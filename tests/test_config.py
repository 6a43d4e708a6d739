"""config.py on dummy dataclasses: precedence, types, help, round trip, one-line errors."""

import inspect
import re
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report2impression.program import config
from report2impression.program.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """Where the reports come from."""

    path: str = "reports"
    """Folder of the splits (path)."""
    max_rows: int | None = None
    """Most rows kept of each split (count)."""
    note: str | None = None
    """Free text kept with the run (text)."""


@dataclass(frozen=True)
class Lora:
    """The adapter."""

    rank: int = 8
    """Rank of the update (count)."""
    targets: tuple[str, ...] = ("q", "v")
    """Names of the adapted layers (list)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("lora.rank must be at least 1: a rank of 0 trains nothing")


@dataclass(frozen=True)
class Train:
    """The run."""

    output_dir: str
    """Folder that is written (path)."""
    epochs: int = 3
    """Passes over the data (count)."""
    lr: float = 5e-5
    """Peak learning rate (per step)."""
    clip: float | None = 1.0
    """Largest gradient norm (unitless)."""
    cpu: bool = False
    """Stay on the processor (switch)."""
    resume: bool | None = None
    """Go on from the last checkpoint (switch)."""
    precision: Literal["auto", "fp16", "bf16"] = "auto"
    """Number format of the matrices (name)."""
    data: Data = field(default_factory=Data)
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError("epochs must be at least 1")


OUT = ["--output_dir", "out"]


def parse(*flags: str) -> Train:
    return config.parse(Train, [*OUT, *flags])


@pytest.fixture
def recipe(tmp_path):
    """Write TOML and return its path."""

    def write(text: str, name: str = "recipe.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(Train, argv)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# Values and precedence


def test_defaults_build_the_nested_dataclasses():
    assert parse() == Train(output_dir="out")


def test_the_command_line_is_the_default_argv(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *OUT, "--epochs", "7"])
    assert config.parse(Train) == Train(output_dir="out", epochs=7)


def test_flags_reach_every_depth():
    built = parse("--epochs=2", "--data.path", "x", "--lora.rank", "4", "--precision", "bf16")
    assert built == Train("out", epochs=2, data=Data("x"), lora=Lora(4), precision="bf16")


def test_recipe_wins_over_default_and_flag_over_recipe_in_either_order(recipe):
    path = recipe('output_dir = "r"\nepochs = 5\nlr = 1e-3\n[data]\npath = "r"\nmax_rows = 9\n')
    expected = Train("r", epochs=6, lr=1e-3, data=Data("flag", max_rows=9))
    flags = ["--epochs", "6", "--data.path=flag"]
    assert config.parse(Train, ["--config", path, *flags]) == expected
    assert config.parse(Train, [*flags, "--config", path]) == expected
    assert config.parse(Train, [*flags, f"--config={path}"]) == expected


def test_later_recipe_wins_key_by_key(recipe):
    first = recipe('epochs = 5\nlr = 1e-3\n[data]\npath = "a"\nmax_rows = 1\n', "first.toml")
    second = recipe('epochs = 6\n[data]\npath = "b"\n', "second.toml")
    built = parse("--config", first, "--config", second)
    assert (built.epochs, built.lr, built.data) == (6, 1e-3, Data("b", max_rows=1))
    assert parse("--config", second, "--config", first).epochs == 5


@pytest.mark.parametrize("flags", [["--cpu"], ["--cpu", "true"], ["--cpu=true"]])
def test_a_switch_may_stand_bare(flags):
    assert parse(*flags).cpu is True
    assert config.parse(Train, [*flags, *OUT]).cpu is True
    assert parse(flags[0].replace("cpu", "resume"), *flags[1:]).resume is True


@pytest.mark.parametrize("flags", [["--cpu", "false"], ["--cpu=false"]])
def test_a_switch_can_be_off(flags, recipe):
    assert parse(*flags, "--config", recipe("cpu = true")).cpu is False


def test_a_value_that_is_named_like_a_switch_stays_a_value():
    built = config.parse(Train, ["--output_dir", "cpu", "--data.path", "epochs"])
    assert built == Train("cpu", data=Data("epochs"))


def test_floats_take_exponents_and_whole_numbers(recipe):
    assert parse("--lr", "5e-5").lr == parse("--config", recipe("lr = 5e-5")).lr == 5e-5
    assert type(parse("--config", recipe("lr = 1")).lr) is float


def test_lists_from_flag_and_recipe(recipe):
    expected = Lora(targets=("k", "5", "null"))
    assert parse("--lora.targets", '["k", "5", "null"]').lora == expected
    path = recipe('[lora]\ntargets = ["k", "5", "null"]\n')
    assert parse("--config", path).lora == expected


def test_a_table_may_be_one_flag():
    assert parse("--data", '{"path": "x", "max_rows": 2}').data == Data("x", 2)
    assert parse('--data={"path": "x"}', "--data.max_rows=2").data == Data("x", 2)


def test_null_unsets_an_optional_field(recipe):
    assert parse("--clip", "null").clip is None
    assert parse("--config", recipe('clip = "null"')).clip is None


@pytest.mark.parametrize("text", ["5", "true", "null", "[1]", "a = 1", "", "-"])
def test_text_stays_text(text, recipe):
    assert parse(f"--data.path={text}").data.path == text
    assert parse("--config", recipe(f'[data]\npath = "{text}"')).data.path == text


# Errors: one line that says what, where, and what to do


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epoch", "3"], ["unknown flag --epoch ", "did you mean --epochs?", "--help"]),
        (["--epoc=3"], ["unknown flag --epoc ", "--epochs"]),
        (["--data.pth", "x"], ["--data.pth", "did you mean --data.path?"]),
        (["--max_rows", "3"], ["--max_rows", "did you mean --data.max_rows?"]),
        (["--data.rank", "3"], ["--data.rank", "did you mean --lora.rank?"]),
        (["--zzzzzz"], ["unknown flag --zzzzzz;", "--help"]),
        (["--epochs", "3.7"], ["--epochs", "int", "3.7", "--help"]),
        (["--epochs", "3.0"], ["--epochs", "int"]),
        (["--epochs", "two\nthree"], ["--epochs", "int"]),
        (["--epochs"], ["--epochs", "--help"]),
        (["--lr", "fast"], ["--lr", "float", "fast"]),
        (["--cpu", "maybe"], ["--cpu", "bool", "maybe"]),
        (["--precision", "fp8"], ["--precision", "one of auto, fp16, bf16", "fp8"]),
        (["--data.max_rows", "2.5"], ["--data.max_rows", "int | None", "2.5"]),
        (["--lora.targets", "q"], ["--lora.targets", "tuple[str, ...]"]),
        (["--data", '{"pth": 3}'], ["data", "pth"]),
        (["--data", "absent.toml"], ["data", "absent.toml"]),
        (["--data", "DIR"], ["did you mean --data.path DIR?", "--help"]),
        (["--data=DIR"], ["did you mean --data.path DIR?", "--help"]),
        (["--data"], ["did you mean --data.path "]),
        (["--lora", "4"], ["did you mean --lora.rank 4?"]),
        (["--lora.targets", "q,v"], ["--lora.targets", '\'["a","b"]\'']),
        (["stray"], ["stray", "--help"]),
    ],
)
def test_bad_flags(flags, words):
    message = refusal(*OUT, *flags)
    assert [word for word in words if word not in message] == [], message


def test_missing_required_field():
    message = refusal("--epochs", "3")
    assert "output_dir" in message and "--help" in message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\nepoch = 3", 2, ["unknown key epoch ", "did you mean epochs?", "--help"]),
        ("lr = 1\n[data]\n\npth = 3", 4, ["unknown key data.pth", "did you mean data.path?"]),
        ("[dat]\npath = 'x'", 1, ["unknown key dat", "did you mean data?"]),
        ("config = 'x'", 1, ["unknown key config"]),
        ("epochs = 3.7", 1, ["epochs", "int", "3.7", "--help"]),
        ("epochs = 3.0", 1, ["epochs", "int"]),
        ("epochs = '3'", 1, ["epochs", "int", "'3'"]),
        ("epochs = true", 1, ["epochs", "int"]),
        ("lr = '1e-3'", 1, ["lr", "float"]),
        ("cpu = 'true'", 1, ["cpu", "bool"]),
        ("cpu = 1", 1, ["cpu", "bool"]),
        ("epochs = 'null'", 1, ["epochs", "int"]),
        ("precision = 'fp8'", 1, ["precision", "one of auto, fp16, bf16", "fp8"]),
        ("data = 3", 1, ["data must be a table"]),
        ("[[data]]\npath = 'x'", 1, ["data must be a table"]),
        ("[lora]\nrank = 1\n[data]\nmax_rows = 2.5", 4, ["data.max_rows", "int | None"]),
        ("[data]\npath = 3", 2, ["data.path", "str"]),
        ("[lora]\ntargets = [1]", 2, ["lora.targets", "tuple[str, ...]"]),
        ("epochs = 2020-01-01", 1, ["epochs", "int"]),
    ],
)
def test_bad_recipes(text, line, words, recipe):
    path = recipe(text)
    message = refusal(*OUT, "--config", path)
    assert message.startswith(f"{path}, line {line}: "), message
    assert [word for word in words if word not in message] == [], message


def test_the_guilty_recipe_is_named_even_where_others_set_the_key(recipe):
    bad, good = recipe("epochs = 3.7", "bad.toml"), recipe("epochs = 2", "good.toml")
    message = refusal(*OUT, "--epochs=5", "--config", good, "--config", bad, "--config", good)
    assert message.startswith(f"{bad}, line 1: ")
    assert refusal(*OUT, "--config", good, "--epochs=2.5").startswith("--epochs: ")


def test_key_in_an_inline_table_names_the_file(recipe):
    path = recipe("data = {pth = 1}")
    assert refusal("--config", path).startswith(f"{path}: unknown key data.pth ")


def test_broken_toml_names_file_and_line(recipe):
    path = recipe("epochs = 3\nlr = = 1\n")
    message = refusal(*OUT, "--config", path)
    assert path in message and "line 2" in message


def test_recipe_that_is_missing_or_no_text(tmp_path):
    missing, binary = str(tmp_path / "absent.toml"), tmp_path / "model.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    assert missing in refusal(*OUT, "--config", missing)
    assert str(tmp_path) in refusal(*OUT, "--config", str(tmp_path))
    assert str(binary) in refusal(*OUT, "--config", str(binary))
    assert "--config" in refusal(*OUT, "--config")


def test_rules_of_post_init_keep_their_own_message(recipe):
    assert refusal(*OUT, "--epochs", "0") == "epochs must be at least 1"
    expected = "lora.rank must be at least 1: a rank of 0 trains nothing"
    assert refusal(*OUT, "--lora.rank", "0") == expected
    assert refusal(*OUT, "--config", recipe("[lora]\nrank = 0")) == expected


# Help


def test_help_explains_every_field_with_its_own_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        config.parse(Train, ["--help", "--config", "absent.toml"], description="Trains it.")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Trains it." in text and "--config FILE" in text
    shown = field_docs()
    assert set(shown) == set(config._fields(Train)) - {"data", "lora"}
    for name, doc in shown.items():
        entry = rf" --{re.escape(name)} \S+ {re.escape(doc)} \((required, )?type: "
        assert re.search(entry, text), name


def field_docs() -> dict[str, str]:
    """Dotted name -> the string literal under the field, read from this file."""
    docs = {}
    for cls, prefix in ((Train, ""), (Data, "data."), (Lora, "lora.")):
        for match in re.finditer(r'^    (\w+): .*\n    """(.*)"""$', inspect.getsource(cls), re.M):
            docs[prefix + match[1]] = match[2]
    return docs


def test_print_config_is_a_recipe(capsys, recipe):
    flags = [*OUT, "--epochs", "5", "--clip", "null"]
    with pytest.raises(SystemExit) as caught:
        config.parse(Train, [*flags, "--print_config"])
    assert caught.value.code == 0
    assert config.load(Train, recipe(capsys.readouterr().out)) == config.parse(Train, flags)


# Saving


def texts(*exceptions: str) -> st.SearchStrategy[str]:
    encodable = st.characters(exclude_categories=["Cs"])
    return st.text(encodable, max_size=8).filter(lambda text: text not in exceptions)


floats = st.floats(allow_nan=False)
configs = st.builds(
    Train,
    output_dir=texts(),
    epochs=st.integers(1, 2**40),
    lr=floats,
    clip=st.none() | floats,
    cpu=st.booleans(),
    resume=st.none() | st.booleans(),
    precision=st.sampled_from(["auto", "fp16", "bf16"]),
    data=st.builds(
        Data,
        path=texts() | st.sampled_from(["null", "1", "true", "[1]", "a = 1", "a\r\nb\t\x7f"]),
        max_rows=st.none() | st.integers(0, 10),
        note=st.none() | texts("null"),
    ),
    lora=st.builds(Lora, st.integers(1, 64), st.lists(texts(), max_size=3).map(tuple)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@settings(max_examples=15, deadline=None)
@given(built=configs)
def test_round_trip(built, folder):
    path = folder / "new" / "config.toml"
    config.save(built, path)
    assert config.load(Train, path) == built
    assert path.stat().st_mode & 0o777 == 0o600 and list(path.parent.iterdir()) == [path]


def test_saved_none_is_left_out_unless_the_default_is_a_value(tmp_path):
    path = tmp_path / "config.toml"
    config.save(Train("out", clip=None), path)
    text = path.read_text()
    assert "max_rows" not in text and "resume" not in text and 'clip = "null"' in text
    assert all(f"\n{item.name} = " in text for item in fields(Lora))


def test_load_refuses_unknown_keys(recipe):
    path = recipe('output_dir = "o"\nspeed = 3\n')
    with pytest.raises(ConfigError, match=re.escape(f"{path}, line 2: unknown key speed")):
        config.load(Train, path)
