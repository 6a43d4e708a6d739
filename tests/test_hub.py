"""The real hub loading code against the stand-in hub: what is asked for, what is refused, offline.

Importing the libraries costs some 8 s. The commands run in forks of one process that has them
already, with a hub and then without; the last, offline, is a plain subprocess.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.hub_stand_in import HubStandIn, environment
from tests.programs import ROOT, ForkServer, Result
from tests.waiting import HANG_S

BASE_ID, DATA_ID = "google-t5/t5-small", "hejazizo/mimic-iii"  # of the published recipe
NOWHERE = "http://127.0.0.1:9"  # nothing listens on this port
N_TRAIN = 40


class World(NamedTuple):
    """The folders behind the hub, and a place for runs."""

    tmp: Path
    base: Path
    data: Path

    def train(self, run: str, *flags: str) -> list[str]:
        places = ["--output_dir", str(self.tmp / run), "--data.cache_dir", str(self.tmp / "tokens")]
        return ["train_loop.py", "--max_steps", "2", *places, *flags]

    def evaluate(self, run: str) -> list[str]:
        adapter = str(self.tmp / run / "adapter")
        return ["eval.py", "--adapter", adapter, "--n", "5", "--max_new_tokens", "8"]

    def keep_cache(self, name: str) -> None:
        """Put the hub's cache aside: the next command finds none."""
        (self.tmp / "home").rename(self.tmp / name)

    @property
    def marker(self) -> Path:
        """What the code in the trapped repositories would write."""
        return self.tmp / "code_was_run"

    def trap(self, name: str, source: Path, code: str) -> Path:
        """A copy of a repository with a Python file in it."""
        folder = Path(shutil.copytree(source, self.tmp / name))
        text = f"open({str(self.marker)!r}, 'w')\nclass Trap: pass\n"
        (folder / code).write_text(text)
        return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from report2impression.corpora.synthetic import generate, write_splits
    from report2impression.reading.options import SourceConfig
    from report2impression.weights.new_base import NewBaseConfig, new_base

    tmp = tmp_path_factory.mktemp("hub")
    write_splits(tmp / "corpus", 200, 1, 1, seed=1)
    new_base(
        NewBaseConfig(
            output_dir=str(tmp / "base"),
            data=SourceConfig(path=str(tmp / "corpus")),
            d_model=32,
            d_ff=64,
            d_kv=16,
            n_heads=2,
            n_layers=1,
            vocab_size=400,
        )
    )
    rows = [{"prompt": r.prompt, "impressions": r.impression} for r in generate(N_TRAIN + 16)]
    splits = {"train": rows[16:], "validation": rows[:8], "test": rows[8:16]}
    splits["train"].insert(3, {"prompt": "no acute disease", "impressions": " "})
    (tmp / "data").mkdir()
    for name, part in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp / "data" / f"{name}.jsonl").write_text(text)
    return World(tmp, tmp / "base", tmp / "data")


@pytest.fixture(scope="module")
def hub(world: World) -> Iterator[HubStandIn]:
    pickled = Path(shutil.copytree(world.base, world.tmp / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    bare = Path(shutil.copytree(world.base, world.tmp / "bare"))
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    coded = world.trap("coded", world.base, "trap.py")
    edit_json(coded / "config.json", auto_map={"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"})
    edit_json(coded / "tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.Trap", None]})
    models = {
        BASE_ID: world.base,
        "invented/pickled": pickled,
        "invented/coded": coded,
        "invented/bare": bare,
    }
    scripted = world.trap("scripted", world.data, "scripted.py")
    datasets = {DATA_ID: world.data, "invented/scripted": scripted}
    with HubStandIn(models=models, datasets=datasets) as hub:
        yield hub


class Session(NamedTuple):
    results: dict[str, Result]
    requests: dict[str, list[str]]


@pytest.fixture(scope="module")
def server(world: World, hub: HubStandIn) -> Iterator[ForkServer]:
    with ForkServer(environment(hub.endpoint, world.tmp / "home")) as server:
        yield server


@pytest.fixture(scope="module")
def published(world: World, hub: HubStandIn, server: ForkServer) -> Session:
    """The published recipe, nothing but places and length given, into an empty cache."""
    start = len(hub.requests)
    result = server.run(*world.train("published"))
    return Session({"train": result}, {"train": hub.requests[start:]})


@pytest.fixture(scope="module")
def online(world: World, hub: HubStandIn, server: ForkServer, published: Session) -> Session:
    """More commands against the hub, with a cache of their own that the first one fills."""
    local_data = ["--data.path", str(world.data), "--data.on_bad_row", "skip"]
    local_base = ["--model.path", str(world.base)]
    both = ["--model.revision", hub.commit, "--data.revision", hub.commit]
    commands = {
        "pinned": world.train("pinned", *both),
        "eval": world.evaluate("published"),
        "wrong model revision": world.train("no", *local_data, "--model.revision", "0" * 40),
        "wrong data revision": world.train("no", *local_base, "--data.revision", "0" * 40),
        "pickled": world.train("no", *local_data, "--model.path", "invented/pickled"),
        "coded": world.train("coded_run", *local_data, "--model.path", "invented/coded"),
        "scripted": world.train("no", *local_base, "--data.path", "invented/scripted"),
        "bare": world.train("no", *local_data, "--model.path", "invented/bare"),
    }
    world.keep_cache("home_published")
    session = Session({}, {})
    for name, command in commands.items():
        start = len(hub.requests)
        session.results[name] = server.run(*command)
        session.requests[name] = hub.requests[start:]
    return session


@pytest.fixture(scope="module")
def unreachable(
    world: World, hub: HubStandIn, server: ForkServer, online: Session
) -> dict[str, Result]:
    """The hub has gone, and its cache with it."""
    hub.close()
    world.keep_cache("home_online")
    local_data = ["--data.path", str(world.data), "--data.on_bad_row", "skip"]
    commands = {
        "nothing local": world.train("lost"),
        "local model": world.train("lost", "--model.path", str(world.base)),
        "local data": world.train("lost", *local_data),
    }
    return {name: server.run(*command) for name, command in commands.items()}


def fetched(requests: list[str], file: str) -> list[str]:
    return [target for target in requests if target.startswith("GET ") and target.endswith(file)]


def test_the_published_recipe_trains_on_the_published_ids(
    world: World, hub: HubStandIn, published: Session
) -> None:
    result, requests = published.results["train"], published.requests["train"]
    assert result.code == 0, result.stderr
    assert fetched(requests, "/model.safetensors")[0].startswith(f"GET /{BASE_ID}/resolve/")
    assert fetched(requests, "/train.jsonl")[0].startswith(f"GET /datasets/{DATA_ID}/resolve/")
    assert not fetched(requests, "/pytorch_model.bin")
    names = {path.name for path in (world.tmp / "published" / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "training.toml"} <= names
    assert "error" not in result.stderr.lower() and "warn" not in result.stderr.lower()


def test_the_bad_row_of_the_hub_is_skipped_and_counted(published: Session) -> None:
    stdout = published.results["train"].stdout
    assert f"train: 1 of {N_TRAIN + 1} rows skipped" in stdout
    assert f"{DATA_ID} train row 4: `impressions` is empty" in stdout
    assert re.search(rf"train\W+source\W+{N_TRAIN}\b", stdout)


def test_the_adapter_is_evaluated_against_the_hub(world: World, online: Session) -> None:
    assert online.results["eval"].code == 0, online.results["eval"].stderr
    scores = json.loads((world.tmp / "published" / "evaluation" / "scores.json").read_text())
    assert scores["n"] == 5 and {"base", "lora", "baselines"} <= scores.keys()
    assert "published: LoRA (MIMIC-III)" in online.results["eval"].stdout


def test_a_pinned_revision_is_the_only_one_asked_for(
    world: World, hub: HubStandIn, online: Session
) -> None:
    assert online.results["pinned"].code == 0, online.results["pinned"].stderr
    requests = online.requests["pinned"]
    for file in ("/model.safetensors", "/tokenizer.json", "/train.jsonl", "/validation.jsonl"):
        assert fetched(requests, f"/resolve/{hub.commit}{file}"), file
    revisions = re.findall(r"/(?:resolve|revision|tree|paths-info)/([^/?\s]+)", " ".join(requests))
    assert set(revisions) == {hub.commit}
    recorded = (world.tmp / "pinned" / "adapter" / "training.toml").read_text()
    assert recorded.count(hub.commit) == 2


def test_a_wrong_revision_is_refused_in_one_line(online: Session) -> None:
    assert BASE_ID in online.results["wrong model revision"].error(2)
    assert DATA_ID in online.results["wrong data revision"].error(3)


def test_pickled_weights_are_refused_unread(online: Session) -> None:
    line = online.results["pickled"].error(2)
    assert "invented/pickled" in line and "safetensors" in line
    assert fetched(online.requests["pickled"], "/config.json")
    assert not fetched(online.requests["pickled"], "/pytorch_model.bin")


def test_a_base_without_tokenizer_is_refused(online: Session) -> None:
    assert "tokenizer from hub id invented/bare" in online.results["bare"].error(2)


def test_code_of_a_model_is_neither_fetched_nor_run(world: World, online: Session) -> None:
    assert online.results["coded"].code == 0, online.results["coded"].stderr
    assert fetched(online.requests["coded"], "/config.json")  # with the auto_map in it
    assert not fetched(online.requests["coded"], ".py")
    assert not world.marker.exists()


def test_a_data_set_with_a_script_is_refused(world: World, online: Session) -> None:
    """`datasets` reads the script and then refuses the repository; it must not run it."""
    assert "invented/scripted" in online.results["scripted"].error(3)
    assert not world.marker.exists()


def test_refused_runs_write_nothing(world: World, online: Session) -> None:
    assert online.results
    assert not (world.tmp / "no").exists()


def test_nothing_asks_another_host(hub: HubStandIn, published: Session, online: Session) -> None:
    assert published.requests["train"] and online.requests["pinned"]
    assert hub.elsewhere == []


@pytest.mark.parametrize(
    ("case", "code", "wanted"),
    [("nothing local", 2, BASE_ID), ("local data", 2, BASE_ID), ("local model", 3, DATA_ID)],
)
def test_an_unreachable_hub_is_told_at_once(
    world: World, unreachable: dict[str, Result], case: str, code: int, wanted: str
) -> None:
    line = unreachable[case].error(code)
    for word in (wanted, "make demo", "--data.path", "--model.path", "HF_HUB_OFFLINE=1"):
        assert word in line
    assert unreachable[case].slept < 30  # transformers itself would retry for minutes
    assert unreachable[case].stdout == ""
    assert not (world.tmp / "lost").exists()


def test_a_filled_cache_is_enough_offline(world: World, published: Session) -> None:
    assert published.results["train"].code == 0
    home = next(h for h in (world.tmp / "home_published", world.tmp / "home") if h.exists())
    env = environment(NOWHERE, home) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *world.train("offline")]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    runs = [
        world.tmp / run / "adapter/adapter_model.safetensors" for run in ("published", "offline")
    ]
    assert runs[0].read_bytes() == runs[1].read_bytes()
