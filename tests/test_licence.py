"""The mark of credentialed data: who bears it, who inherits it, and what it forbids."""

import json
import re
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from report2impression.program.errors import ConfigError, DataError
from report2impression.reading.licence import (
    FILE,
    MIMIC_III,
    Mark,
    inherited,
    mark_of,
    read_mark,
    write_mark,
)
from report2impression.reading.options import SourceConfig
from report2impression.runs import trackers
from report2impression.runs.model_card import write_model_card
from report2impression.runs.recipe import TrainConfig
from report2impression.runs.run import require_extras
from report2impression.weights import push
from tests.tiny import Tiny, one_line
from train_loop import main

FREE = Mark("open", "CC0", credentialed=False)


def test_the_mark_comes_back_and_is_private(tmp_path: Path) -> None:
    write_mark(tmp_path, MIMIC_III)
    assert read_mark(tmp_path) == MIMIC_III == mark_of(str(tmp_path))
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source":"","licence":"","credentialed":"no"}'])
def test_a_broken_mark_is_never_a_no(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=FILE):
        mark_of(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "setting", "credentialed"),
    [
        ("hejazizo/mimic-iii", "auto", True),
        ("someone/MIMIC_pairs", "auto", True),
        ("someone/openi", "auto", False),
        ("someone/openi", "yes", True),
        ("hejazizo/mimic-iii", "no", False),
    ],
)
def test_names_and_the_users_word(path: str, setting: Any, credentialed: bool) -> None:
    assert mark_of(path, setting).credentialed == credentialed


def test_a_mark_goes_before_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "not-mimic"
    folder.mkdir()
    assert mark_of(str(folder)).credentialed
    write_mark(folder, FREE)
    assert mark_of(str(folder)) == FREE


def test_weights_inherit_from_data_and_from_the_base(tmp_path: Path) -> None:
    assert inherited(FREE, str(tmp_path)) == FREE
    assert inherited(MIMIC_III, str(tmp_path)) == MIMIC_III
    write_mark(tmp_path, MIMIC_III)
    assert inherited(FREE, str(tmp_path)) == MIMIC_III


@pytest.mark.parametrize("setting", ["yes", "no"])
def test_the_card_names_the_duties(tmp_path: Path, setting: Any) -> None:
    config = TrainConfig()
    config = replace(config, data=replace(config.data, credentialed=setting))
    write_model_card(tmp_path, config, 1, {}, n_processes=1, precision="fp32")
    card = (tmp_path / "README.md").read_text()
    assert ("credentialed: true" in card) == ("## Licence" in card) == (setting == "yes")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_remote_trackers_refuse_credentialed_data(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.invalid")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = TrainConfig(track_with=name)  # the published data
    with pytest.raises(ConfigError, match=r"credentialed.*PhysioNet.*--allow_remote"):
        require_extras(config)
    require_extras(replace(config, allow_remote=True))
    require_extras(replace(config, data=replace(config.data, path="someone/openi")))


def test_what_stays_on_the_machine_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("", "file:///tmp/x", "sqlite:///x.db", "./mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        trackers.refuse_remote("mlflow", MIMIC_III, allowed=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.refuse_remote("wandb", MIMIC_III, allowed=False)


def test_a_missing_tracker_is_told_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        trackers.library("wandb")


def test_trackers_get_figures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    run = SimpleNamespace(log=told.append, finish=lambda: told.append("end"))

    def init(**settings: Any) -> SimpleNamespace:
        told.append(settings)
        return run

    wandb = SimpleNamespace(Settings=lambda **kw: kw, init=init)
    mlflow = SimpleNamespace(
        set_tracking_uri=told.append,
        start_run=lambda **kw: told.append(kw),
        log_metrics=lambda figures, step: told.append((figures, step)),
        end_run=lambda: told.append("end"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("wandb", "mlflow"):
        sink = trackers.open_sink(name, tmp_path)
        assert sink is not None
        sink.log({"step/loss": 1.5}, 3)
        sink.close()
    assert told[0]["settings"]["disable_git"] and told[0]["dir"] == str(tmp_path)
    assert told[1:3] == [{"step/loss": 1.5, "optimizer_step": 3}, "end"]
    assert told[3] == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert {"mlflow.user", "mlflow.source.name", *trackers.GIT} == told[4]["tags"].keys()
    assert told[5:] == [({"step/loss": 1.5}, 3), "end"]


class Hub:
    """What push.py asks of HfApi."""

    public = False

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.sent["private"] = private

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **call: Any) -> Any:
        self.sent |= call
        return SimpleNamespace(commit_url="URL")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


def adapter(folder: Path, mark: Mark | None) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in (*push.NEEDED, "training.toml", "predictions.jsonl"):
        (folder / name).write_text("x")
    if mark:
        write_mark(folder, mark)
    return [f"--adapter={folder}", "--repo_id=me/it"]


@pytest.mark.parametrize(
    ("mark", "flag"), [(MIMIC_III, "--allow_credentialed"), (None, "--allow_unknown")]
)
def test_push_refuses_until_told(
    tmp_path: Path, hub: Hub, mark: Mark | None, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = adapter(tmp_path / "adapter", mark)
    other = "--allow_unknown" if mark else "--allow_credentialed"
    for refused in (flags, [*flags, other], [*flags, "--dry_run"]):
        with pytest.raises(SystemExit) as stop:
            push.main(refused)
        assert stop.value.code == 2 and flag in capsys.readouterr().err and not hub.sent
    push.main([*flags, flag])
    assert "URL" in capsys.readouterr().out and hub.sent["private"]


def test_push_sends_the_allow_list_only(tmp_path: Path, hub: Hub) -> None:
    push.main(adapter(tmp_path / "adapter", FREE))
    assert sorted(hub.sent["allow_patterns"]) == sorted(push.FILES)


def test_a_dry_run_asks_nothing(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push.main([*adapter(tmp_path / "adapter", FREE), "--dry_run"])
    out = capsys.readouterr().out
    assert all(name in out for name in push.FILES) and "training.toml" not in out
    assert not hub.sent


def test_a_public_repository_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.public = True
    with pytest.raises(SystemExit):
        push.main(adapter(tmp_path / "adapter", FREE))
    assert "allow_patterns" not in hub.sent


def test_a_link_is_not_followed(tmp_path: Path, hub: Hub) -> None:
    flags = adapter(tmp_path / "adapter", FREE)
    (tmp_path / "adapter" / "README.md").unlink()
    (tmp_path / "adapter" / "README.md").symlink_to(__file__)
    with pytest.raises(SystemExit):
        push.main(flags)
    assert not hub.sent


@pytest.fixture
def marked(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny data under the mark of MIMIC-III."""
    folder = Path(shutil.copytree(tiny.data, tmp_path / "marked"))
    write_mark(folder, MIMIC_III)
    return folder


@pytest.mark.parametrize("places", [("marked", "free"), ("free", "marked"), ("free", "free")])
def test_a_mixture_is_credentialed_if_one_source_is(tmp_path: Path, places: Any) -> None:
    for name, mark in (("marked", MIMIC_III), ("free", FREE)):
        (tmp_path / name).mkdir()
        write_mark(tmp_path / name, mark)
    first, *others = (str(tmp_path / name) for name in places)
    expected = MIMIC_III if "marked" in places else FREE
    assert SourceConfig(path=first, mix=tuple(others)).mark() == expected
    config = SourceConfig(path=first, mix=tuple(others), credentialed="no")
    assert not config.mark().credentialed


def test_the_hub_ids_of_a_mixture_are_looked_at_too(tmp_path: Path) -> None:
    mark = SourceConfig(path=str(tmp_path), mix=("someone/openi", "a/mimic-cxr@v1")).mark()
    assert mark.credentialed and "mimic-cxr" in mark.source


@pytest.mark.parametrize("mixed", [False, True])
def test_a_tracker_is_refused_before_anything_is_read_or_written(
    tiny: Tiny,
    tmp_path: Path,
    mixed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The folders hold their mark only: reading would be another error."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, mark in (("marked", MIMIC_III), ("free", FREE)):
        (tmp_path / name).mkdir()
        write_mark(tmp_path / name, mark)
    path, mix = tmp_path / "marked", "[]"
    if mixed:
        path, mix = tmp_path / "free", json.dumps([str(tmp_path / "marked")])
    before = sorted(tmp_path.rglob("*"))
    places = {"data__path": path, "data__mix": mix, "data__cache_dir": tmp_path / "cache"}
    with pytest.raises(SystemExit) as stop:
        main(tiny.flags(tmp_path / "run", track_with="wandb", **places))
    assert stop.value.code == 2
    message = one_line(capfd.readouterr().err)
    assert "--track_with wandb" in message and "--allow_remote" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_tells_a_tracker_figures_only(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[dict[str, Any], int]] = []
    sink = SimpleNamespace(
        log=lambda figures, step: told.append((dict(figures), step)), close=lambda: None
    )
    monkeypatch.setattr("report2impression.runs.run.library", lambda name: None)
    monkeypatch.setattr("report2impression.runs.run.open_sink", lambda name, folder, enabled: sink)
    extras = {"track_with": "wandb", "generate_n": 4}
    main(tiny.flags(tmp_path / "run", max_steps=2, **extras))
    assert [step for _, step in told] == [1, 2, 2]
    assert "epoch/validation_loss" in told[-1][0] and "epoch/rouge1" in told[-1][0]
    for figures, _ in told:
        assert all(re.fullmatch(r"(step|epoch)/\w+", name) for name in figures)
        assert all(type(value) in (int, float) for value in figures.values())


def test_an_adapter_bears_the_mark_of_its_data(tiny: Tiny, marked: Path, tmp_path: Path) -> None:
    main(tiny.flags(tmp_path / "run", max_steps=1, data__path=marked))
    adapter = tmp_path / "run" / "adapter"
    assert read_mark(adapter) == MIMIC_III
    assert stat.S_IMODE((adapter / FILE).stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="--allow_credentialed"):
        push.check_mark(adapter, read_mark(adapter), push.PushConfig(str(adapter), "me/it"))


def test_a_run_marks_its_adapter(tiny: Tiny, tmp_path: Path) -> None:
    main(tiny.flags(tmp_path / "run", max_steps=1, data__credentialed="yes"))
    mark = read_mark(tmp_path / "run" / "adapter")
    assert mark and mark.credentialed
    assert "## Licence" in (tmp_path / "run" / "adapter" / "README.md").read_text()
