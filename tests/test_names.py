"""Names that data and files hold never become paths; with local folders no hub is asked, also where
a file is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import sklearn.feature_extraction.text  # noqa: F401  (for the forks)

import eval as evaluation
import train_loop
from report2impression.scoring.faithfulness import checks as faithfulness
from tests.programs import connections, run_program
from tests.tiny import Tiny, one_line

HOSTILE = [
    *("../../outside", "/tmp/outside", "x" * 5000, "two\nlines", "-rf", "CON", "~"),
    *("\uff0fetc", "..", ".", "\u202ereversed", "=1+1", "a/b"),  # the readers refuse controls
]


def hostile_data(tiny: Tiny, folder: Path) -> Path:
    """Ids, groups and patients that would do harm as paths or on a terminal."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (tiny.data / f"{split}.jsonl").open()]
        for i, row in enumerate(rows):
            name = HOSTILE[i % len(HOSTILE)]
            row |= {"id": f"{name}{i}" if i >= len(HOSTILE) else name, "group": name}
            row["patient"] = name
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def place(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on plain names, one on hostile ones, both evaluated."""
    faithfulness.findings("No effusion.", "No effusion.")  # loads, for all forks at once
    root = tmp_path_factory.mktemp("names")
    data = {"plain": tiny.data, "hostile": hostile_data(tiny, root / "data")}
    (root / "place").mkdir()
    for name, folder in data.items():
        flags = tiny.flags(root / "place" / name, data__path=folder, max_steps=1)
        assert program(root / "place", f"train {name}", train_loop.main, flags) == 0
        flags = [f"--adapter={root / 'place' / name / 'adapter'}", *FEW]
        assert program(root / "place", f"eval {name}", evaluation.main, flags) == 0
    return root / "place"


FEW = ["--cpu", "--n=9", "--max_new_tokens=2", "--n_resamples=100"]


def program(place: Path, name: str, main: Callable[..., object], flags: list[str]) -> int:
    return run_program(lambda: main(flags), place, name)


def test_names_in_the_data_never_become_paths(place: Path) -> None:
    assert names_below(place / "hostile") == names_below(place / "plain")
    names = {path.name for path in place.iterdir()}
    assert names == {"plain", "hostile", "told", "home", "temp"}
    assert not Path("/tmp/outside").exists() and not (place.parent / "outside").exists()
    ids = json.loads((place / "hostile/evaluation/sample_ids.json").read_text())
    assert len(ids) == 9 and set(ids) & set(HOSTILE)


def test_names_in_the_data_do_not_drive_a_terminal(place: Path) -> None:
    for name in ("train hostile", "eval hostile"):
        told = (place / "told" / name).read_text()
        assert told and not {"\x1b", "\u202e"} & set(told)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_base_that_lacks_a_file_asks_no_hub(tiny: Tiny, tmp_path: Path, missing: str) -> None:
    base = Path(shutil.copytree(tiny.base, tmp_path / "base"))
    for name in (missing, "spiece.model") if "tokenizer" in missing else (missing,):
        (base / name).unlink()
    flags = tiny.flags(tmp_path / "run", model__path=base)
    assert program(tmp_path, "train", train_loop.main, flags) == 2
    assert str(base) in one_line((tmp_path / "told" / "train").read_text())
    assert connections(tmp_path) == []


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_lacks_a_file_asks_no_hub(
    place: Path, tmp_path: Path, missing: str
) -> None:
    adapter = Path(shutil.copytree(place / "plain" / "adapter", tmp_path / "adapter"))
    (adapter / missing).unlink()
    flags = [f"--adapter={adapter}", *FEW]
    assert program(tmp_path, "eval", evaluation.main, flags) == 2
    assert missing in one_line((tmp_path / "told" / "eval").read_text())
    assert connections(tmp_path) == []


def test_nothing_asked_for_a_host(place: Path) -> None:
    assert connections(place) == []


def test_a_question_to_a_hub_would_be_noted(tmp_path: Path) -> None:
    def ask() -> Any:
        return huggingface_hub.HfApi().model_info("owner/name")

    assert run_program(ask, tmp_path, "ask") == 1
    assert connections(tmp_path)
