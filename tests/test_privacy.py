"""Report text stays in the data: canaries in every field, a run with all its ways to fail, and a
search through everything that was printed and written. What the search finds is tested, too."""

import gzip
import importlib
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import datasets
import huggingface_hub
import matplotlib.pyplot  # noqa: F401  (for the forks)
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sklearn.feature_extraction.text  # noqa: F401  (for the forks)
import torch
import transformers
from safetensors.numpy import save_file
from torch.utils.tensorboard import SummaryWriter

import data as data_module
import eval as evaluation
import report2impression
import train_loop
from bench.reliability import fault_runs
from model import PaddedEngine
from report2impression.audit import audit
from report2impression.audit.cleaning import write_clean
from report2impression.corpora.mimic_iii import Log, Report
from report2impression.program import process
from report2impression.program.privacy import (
    SHOW_ALL,
    for_spreadsheet,
    for_terminal,
    private_process,
)
from report2impression.reading.licence import mark_of
from report2impression.reading.pairs import Pair, Split
from report2impression.runs import checkpoint, durable, tracking
from report2impression.scoring.faithfulness import checks as faithfulness
from report2impression.training import gradients
from report2impression.weights.tokenizer import load_tokenizer
from tests.leaks import FIELDS, KINDS, Canaries, canaries
from tests.programs import connections, run_program
from tests.tiny import ROOT, Tiny

N = {"train": 24, "validation": 6, "test": 7}
TEXT = f"The lungs are clear. {canaries('prompt')} No effusion."


def row(split: str, index: int) -> dict[str, str]:
    """A pair with canaries in all fields but the id, which messages may name."""
    return {
        "id": f"{split}-study-{index}",
        "prompt": f"The lungs are clear. {canaries('prompt')} Number {index}, no effusion.",
        "impressions": f"No acute disease {index}. {canaries('impressions')}",
        "group": canaries("group"),
        "patient": f"{canaries('patient')} {split} {index}",
        "note": canaries("extra"),
        "facsimile": f"{index} {canaries('extra')}",
    }


BAD_ROWS = [
    json.dumps(row("bad", 0) | {"prompt": canaries("bad"), "impressions": None}),
    json.dumps(row("bad", 1) | {"prompt": [canaries("bad")]}),
    json.dumps(row("bad", 2) | {"impressions": {canaries("bad"): 1}}),
    json.dumps(row("bad", 3) | {"prompt": 7, "impressions": canaries("bad")}),
    json.dumps(row("bad", 4) | {"patient": [canaries("bad")]}),
    json.dumps([canaries("bad")]),
    f'{{"prompt": "{canaries("bad")}", "impressions": "{canaries("bad")}',
    f'{{"prompt": "{canaries("bad")}\\ud800", "impressions": "{canaries("bad")}"}}',
    canaries("bad"),
]


def write_data(folder: Path, bad: list[str] | None = None) -> Path:
    folder.mkdir()
    for split, n in N.items():
        lines = [json.dumps(row(split, i), ensure_ascii=False) for i in range(n)]
        (folder / f"{split}.jsonl").write_text("\n".join([*lines[:3], *(bad or []), *lines[3:]]))
    return folder


class World:
    """Data on one side; on the other all that programs may write: runs, output, home, temp."""

    def __init__(self, tiny: Tiny, root: Path) -> None:
        self.tiny, self.place, self.cache = tiny, root / "place", root / "cache"
        self.runs = self.place / "runs"
        for name in ("runs", "told", "home", "temp"):
            (self.place / name).mkdir(parents=True)
        self.data = write_data(root / "data")
        self.bad = write_data(root / "bad", BAD_ROWS)
        self.codes: dict[str, int] = {}

    def train(self, run: str, *more: str, data: Path | None = None, **changes: Any) -> list[str]:
        same = {"data__path": data or self.data, "data__cache_dir": self.cache, "engine": "hf"}
        return [*self.tiny.flags(self.runs / run, **{**same, **changes}), *more]

    def run(self, name: str, action: Callable[[], object]) -> None:
        """Curves, slow and of figures alone, are drawn in one of them."""
        whole = action if name == "train" else then(no_curves, action)
        self.codes[name] = run_program(whole, self.place, name)

    def told(self, name: str) -> str:
        return (self.place / "told" / name).read_text()


def no_curves() -> None:
    tracking.draw_curves = lambda *_: None


def quoting(*_: object, **__: object) -> NoReturn:
    """A library that quotes what it choked on, twice."""
    report = TEXT  # also in a local variable, and on this line of code
    try:
        int(report)
    except ValueError as error:
        raise KeyError(report, canaries("impressions")) from error
    raise AssertionError


def spoil(owner: Any, name: str, call: Callable[..., Any], after: int = 0) -> Callable[[], None]:
    """From the call after `after` on, `call` instead of the method."""

    def patch() -> None:
        own, calls = getattr(owner, name), iter(range(10**9))
        setattr(owner, name, lambda *a, **k: (call if next(calls) >= after else own)(*a, **k))

    return patch


def nothing_finite(self: Any, *_: object, **__: object) -> torch.Tensor:
    return sum(p.sum() for p in self.parameters() if p.requires_grad) * torch.nan


def interrupted(number: signal.Signals, times: int, call: Callable[..., Any]) -> Callable[..., Any]:
    def with_signal(*args: object, **kwargs: object) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), number)
        return call(*args, **kwargs)

    return with_signal


def full(*_: object) -> NoReturn:
    raise OSError(28, os.strerror(28), TEXT)


def kill_itself(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def then(*actions: Callable[[], object]) -> Callable[[], None]:
    def both() -> None:
        for action in actions:
            action()

    return both


def run_audit(world: World, data: Path, name: str) -> None:
    clean = world.place.parent / f"clean-{name}"  # cleaned data are data
    flags = [f"--data.path={data}", f"--output_dir={world.runs / name}", f"--clean={clean}"]
    flags += [f"--tokenizer={world.tiny.base}", "--remove=placeholder_target"]
    sys.argv = ["audit", *flags]
    audit.main()


def two_ranks(world: World) -> None:
    """Rank 1 is killed in its third step; both write where this process does."""
    patch = spoil(gradients.GradientSum, "add", kill_itself, after=2)
    argv = world.train("killed rank", micro_batch_size=4)

    def before() -> None:
        if os.environ["RANK"] == "1":
            patch()

    codes = fault_runs.run(argv, 2, before=before, quiet=False)
    assert codes == [8, -signal.SIGKILL]
    sys.exit(8)


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All runs, each in its own process."""
    faithfulness.findings("No effusion.", "No effusion.")  # loads, for all forks at once
    made = World(tiny, tmp_path_factory.mktemp("private"))
    forward = PaddedEngine.forward
    train = partial(partial, train_loop.main)
    run, flags = made.run, made.train

    run("audit", lambda: run_audit(made, made.data, "audit"))
    run("audit bad", lambda: run_audit(made, made.bad, "audit-bad"))
    told: Any = {"tensorboard": "true", "generate_n": 3, "max_new_tokens": 4, "checkpoint_steps": 1}
    run("train", train(flags("run", **told)))
    run("train skip", train(flags("skip", "--data.on_bad_row=skip", data=made.bad, max_steps=1)))
    test = [
        f"--adapter={made.runs / 'run/adapter'}",
        "--cpu",
        "--max_new_tokens=4",
        "--n_resamples=100",
    ]
    run("eval", lambda: evaluation.main(test))
    shown = f"--output_dir={made.place.parent / 'shown'}"
    run("eval shown", lambda: evaluation.main([*test, shown, "--show_text=2"]))

    run("bad row", train(flags("bad row", data=made.bad)))
    csv = write_data(made.place.parent / "csv")
    for file in csv.iterdir():
        file.rename(file.with_suffix(".csv"))
    run("no header", train(flags("no header", data=csv)))
    run("data as config", train([f"--config={made.data / 'train.jsonl'}"]))
    run("data as base", train(flags("no base", model__path=made.data)))
    run("data as adapter", lambda: evaluation.main([f"--adapter={made.data}"]))

    patches = {
        "foreign error": spoil(PaddedEngine, "forward", quoting, after=2),
        "error in tokens": spoil(data_module, "build_dataset", quoting),
        "error at epoch end": spoil(train_loop.EpochEnd, "_loss", quoting),
        "not finite": spoil(PaddedEngine, "forward", nothing_finite, after=2),
        "disk full": spoil(durable, "write_new", full, after=4),
        "disk full at the log": spoil(checkpoint.TrainingState, "files", full, after=1),
        "SIGTERM": spoil(
            *(PaddedEngine, "forward", interrupted(signal.SIGTERM, 1, forward)), after=2
        ),
        "Ctrl-C twice": spoil(
            *(PaddedEngine, "forward", interrupted(signal.SIGINT, 2, forward)), after=2
        ),
    }
    for name, patch in patches.items():
        settings: Any = {"checkpoint_steps": 1, "max_skips": 1, "tensorboard": "true"}
        run(name, then(patch, train(flags(name, **settings))))
    run("foreign error in eval", then(spoil(evaluation, "generate", quoting), train_eval(test)))
    adapter = made.runs / "broken" / "adapter"
    adapter.mkdir(parents=True)
    for file in (made.runs / "run/adapter").iterdir():
        (adapter / file.name).write_bytes(
            file.read_bytes()[: -100 if "model" in file.name else None]
        )
    run("broken adapter", lambda: evaluation.main([f"--adapter={adapter}", "--cpu"]))
    run("killed rank", lambda: two_ranks(made))
    return made


def train_eval(flags: list[str]) -> Callable[[], None]:
    return lambda: evaluation.main(flags)


CODES = {
    **{"audit": 0, "audit bad": 0, "train": 0, "train skip": 0, "eval": 0, "eval shown": 0},
    **{"bad row": 3, "no header": 3, "data as config": 2, "data as base": 2, "data as adapter": 2},
    **{"foreign error": 1, "error in tokens": 1, "error at epoch end": 1, "not finite": 6},
    **{"disk full": 7, "disk full at the log": 7, "SIGTERM": 75, "Ctrl-C twice": 1},
    **{"foreign error in eval": 1, "broken adapter": 2, "killed rank": 8},
}


def test_every_run_ended_as_meant(world: World) -> None:
    for n in CODES:
        print(n, world.codes[n], world.told(n)[-600:] if world.codes[n] != CODES[n] else "")
    assert world.codes == CODES, [world.told(n) for n in CODES if world.codes[n] != CODES[n]]


@pytest.fixture(scope="module")
def search(tiny: Tiny) -> Canaries:
    tokenizer = load_tokenizer(str(tiny.base))
    return Canaries(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])


def test_nothing_written_or_told_holds_a_canary(world: World, search: Canaries) -> None:
    """Groups are categories that audit and evaluation count by name."""
    leaks = search.found_in_tree(world.place)
    by_name = ("told/audit", "told/eval", "runs/audit", "runs/run/evaluation/")
    kept = {
        leak
        for leak in leaks
        if not (leak.canary.startswith("group.") and leak.place.startswith(by_name))
        and leak.place != "told/eval shown"
    }
    assert not kept
    assert list((world.place / "runs" / "run" / "tensorboard").iterdir())
    assert (world.place / "runs" / "run" / "evaluation" / "report.html").is_file()


def test_text_is_shown_where_it_was_asked_for(world: World, search: Canaries) -> None:
    """And so the search finds what the programs themselves write."""
    for place in (world.place / "told/eval shown", world.place.parent / "shown/report.html"):
        found = {leak.canary for leak in search.found_in(place.read_bytes())}
        assert {"prompt.mrn", "impressions.mrn"} <= found, place
        assert not any(name.startswith(("patient", "extra", "bad")) for name in found)


def test_the_cache_holds_ids_under_names_of_digests(world: World, search: Canaries) -> None:
    leaks = search.found_in_tree(world.cache)
    # Names of reports stand there as they are, and the impressions that generate_n compares with.
    plain = ("names.values.npy", "impressions.values.npy")
    assert {leak.spelling for leak in leaks if not leak.place.endswith(plain)} == {"int32 ids"}
    assert not any(leak.place.startswith("name of") for leak in leaks)


def test_files_are_their_owners_under_any_umask(world: World) -> None:
    shown = {world.cache, *world.cache.rglob("*")}
    made = {path for path in world.runs.rglob("*") if "broken" not in path.parts}
    assert len(made) > 60
    for path in sorted(shown | made):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_an_unexpected_error_tells_its_types_and_our_places(world: World) -> None:
    told = world.told("foreign error")
    (line,) = [line for line in told.splitlines() if line.startswith("unexpected")]
    assert "KeyError <- ValueError" in line and SHOW_ALL in line
    assert f"  at train_loop.py:{line_of('loss = forward(batch.to(device))')}, train" in told
    assert "Traceback" not in told and "forward(batch.to(device))" not in told
    status = json.loads((world.runs / "foreign error" / "exit_status.json").read_text())
    assert status["code"] == 1
    assert "unexpected: KeyboardInterrupt" in world.told("Ctrl-C twice")


def line_of(code: str) -> int:
    lines = (ROOT / "train_loop.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if code in line)


def test_no_host_was_asked_for_anything(world: World) -> None:
    """All data and models are local; the ranks talk by gloo, which is no Python."""
    assert connections(world.place) == []


def test_temporary_folders_are_left_empty(world: World) -> None:
    assert not list((world.place / "temp").rglob("*.*"))


# --- the search itself ---------------------------------------------------------------------------

PLANTED = [(field, kind) for field in FIELDS for kind in KINDS]


@pytest.mark.parametrize(("field", "kind"), PLANTED)
def test_each_canary_is_found_in_each_spelling(search: Canaries, field: str, kind: str) -> None:
    forms = search.known[f"{field}.{kind}"]
    assert len(forms) == 27
    for spelling, form in forms.items():
        found = search.found_in(b"\x00step 3: loss " + form + b"\xff, more\n", "log")
        assert {leak.canary for leak in found} == {f"{field}.{kind}"}, spelling


def test_encoders_of_others_are_found(search: Canaries) -> None:
    """Not the search's own spelling, but what libraries make of a whole report."""
    import base64
    import html
    from urllib.parse import quote_plus, urlencode

    made: dict[str, Any] = {
        "repr": repr(TEXT),
        "ascii": ascii(TEXT),
        "json": json.dumps({"text": [TEXT]}),
        "html": html.escape(TEXT).encode("ascii", "xmlcharrefreplace"),
        "url": urlencode({"q": TEXT}),
        "url+": quote_plus(TEXT),
        "upper": TEXT.upper(),
        "lower": TEXT.lower(),
        "title": TEXT.title(),
        "traceback": "".join(traceback.format_exception(ValueError(TEXT))),
        "utf-16": TEXT.encode("utf-16"),
        "hex": TEXT.encode().hex(),
        **{f"base64 {i}": base64.b64encode(b"x" * i + TEXT.encode()) for i in range(3)},
    }
    for name, data in made.items():
        found = search.found_in(data if isinstance(data, bytes) else data.encode())
        assert {leak.canary for leak in found} >= {f"prompt.{k}" for k in KINDS[:4]}, name


def sinks(text: str, ids: list[int], root: Path) -> Iterator[str]:
    """A leak of each kind that a run could have, one after the other."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", text)
    table = pyarrow.table({"x": [text] * 50})
    files: dict[str, Callable[[Path], object]] = {
        "stdout": lambda file: file.write_text(f"100%|####| loss 3.2 {text}\n"),
        "metrics.jsonl": lambda file: file.write_text(json.dumps({"kind": text})),
        "report.html": lambda file: file.write_text(f"<td title='{text}'>"),
        "README.md": lambda file: file.write_text(f"| {text} |"),
        "config.toml": lambda file: file.write_text(f'prefix = "{text}"'),
        "log.gz": lambda file: file.write_bytes(gzip.compress(text.encode())),
        "a.zip": lambda file: file.write_bytes(packed.getvalue()),
        "nested.gz": lambda file: file.write_bytes(gzip.compress(packed.getvalue())),
        "cache.parquet": lambda file: pyarrow.parquet.write_table(table, file, compression="zstd"),
        "state.safetensors": lambda file: save_file({"x": np.array(ids, np.int64)}, file),
        "ids.safetensors": lambda file: save_file({"x": np.array([ids] * 2, np.int32)}, file),
        "meta.safetensors": lambda file: save_file({"x": np.zeros(1)}, file, {"note": text}),
        "ids.json": lambda file: file.write_text(json.dumps({"ids": ids})),
        "ids.txt": lambda file: file.write_text(str(ids)),
        text.replace("/", "-"): lambda file: file.write_bytes(b""),
        "core": lambda file: file.write_bytes(os.urandom(1000) + text.encode() + os.urandom(99)),
    }
    for name, write in files.items():
        write(root / name)
        yield name
        (root / name).unlink()
    with SummaryWriter(str(root / "tensorboard")) as writer:
        writer.add_text("note", text)
    yield "tensorboard"


def test_a_leak_planted_in_each_sink_is_found(search: Canaries, tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny.base))
    wanted = {f"prompt.{kind}" for kind in KINDS}
    for name in sinks(TEXT, tokenizer(TEXT)["input_ids"], tmp_path):
        found = {leak.canary for leak in search.found_in_tree(tmp_path)}
        assert found == wanted, name
    assert len({search.known[w]["raw"] for w in wanted}) == len(KINDS)


def test_what_holds_no_canary_gives_no_hit(search: Canaries, tiny: Tiny) -> None:
    assert not search.found_in_tree(tiny.base)
    assert not search.found_in_tree(tiny.data)


# --- processes and signs -------------------------------------------------------------------------

CRASH = """
import sys
from report2impression.program.errors import exits_cleanly
@exits_cleanly
def main():
    {body}
main()
"""
BODIES = {
    "plain": "raise ValueError(sys.argv[1])",
    "cause": "raise KeyError(sys.argv[1]) from ValueError(sys.argv[1])",
    "group": "raise ExceptionGroup(sys.argv[1], [ValueError(sys.argv[1])])",
    "note": "e = ValueError('x'); e.add_note(sys.argv[1]); raise e",
    "conversion": "int(sys.argv[1])",
    "lookup": "{}[sys.argv[1]]",
    "decoding": "sys.argv[1].encode('ascii')",
    "thread": "import threading; t = threading.Thread(target=int, args=sys.argv[1:]);"
    " t.start(); t.join(); sys.exit(1)",
    "destructor": "type('T', (), {'__del__': lambda s: int(sys.argv[1])})(); sys.exit(1)",
    "interrupt": "raise KeyboardInterrupt(sys.argv[1])",
}


def crash(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CRASH.format(body=body), TEXT],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_crashing_interpreter_quotes_nothing(search: Canaries, body: str) -> None:
    done = crash(body)
    assert done.returncode in (1, -signal.SIGINT) and "unexpected: " in done.stderr
    assert not search.found_in(done.stdout.encode() + done.stderr.encode())
    assert "sys.argv" not in done.stderr  # nor the line of code


def test_all_is_shown_on_request(search: Canaries) -> None:
    assert search.found_in(crash(BODIES["plain"], **{SHOW_ALL: "1"}).stderr.encode())


def test_telemetry_of_every_library_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a user's environment says otherwise, and where a library was imported before."""
    for name in report2impression.TELEMETRY_OFF:
        monkeypatch.setenv(name, "on")
    importlib.reload(report2impression)
    assert {
        name: os.environ[name] for name in report2impression.TELEMETRY_OFF
    } == report2impression.TELEMETRY_OFF
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    process.quieten_libraries()
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    threads = set(threading.enumerate())
    huggingface_hub.utils.send_telemetry("topic")
    assert set(threading.enumerate()) == threads  # or else a queue with a thread of its own
    assert "telemetry/off" in transformers.utils.hub.http_user_agent()


def test_no_core_is_dumped() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    hooks = sys.excepthook, sys.unraisablehook
    try:
        with private_process():
            assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
            assert os.umask(0o077) == 0o077
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
        sys.excepthook, sys.unraisablehook = hooks


HOSTILE = {
    "a\x1b[2Jb": "a\\x1b[2Jb",
    "a\x1b]0;title\x07b": "a\\x1b]0;title\\x07b",
    "a\nb\r\nc": "a b c",
    "a\u202eb\u2066c": "a\\u202eb\\u2066c",
    "a\x9b31mb\x00": "a\\x9b31mb\\x00",
    "a\u200bb\ufeff": "a\\u200bb\\ufeff",
    "plain Ünïcödé 日本 \U0001f600": "plain Ünïcödé 日本 \U0001f600",
}


@pytest.mark.parametrize(("given", "told"), HOSTILE.items(), ids=ascii)
def test_signs_that_a_terminal_would_obey_are_spelled_out(given: str, told: str) -> None:
    assert for_terminal(given) == told


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1+1", "-cmd", "@SUM(1)", "  =1", "\t=1", "\r1", "\n=1", "\tx", "\uff1d1", "\uff20x"],
    ids=ascii,
)
def test_a_formula_is_no_formula_in_a_spreadsheet(cell: str) -> None:
    assert for_spreadsheet(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-5", "+3.5", "-1e-3", "12", "a=b", "x-1", "", "study-4", "'=1"])
def test_numbers_and_words_stay(cell: str) -> None:
    assert for_spreadsheet(cell) == cell


def test_the_logs_of_removed_reports_hold_no_formula(tmp_path: Path) -> None:
    pairs = [Pair("=1+1", "a", "b"), Pair("-7", "c", "d"), Pair("kept", "e", "f")]
    split = Split("train", pairs, 3, [])
    write_clean(
        tmp_path / "clean", [split], {"train": ["same_text", "same_text", ""]}, mark_of("reports")
    )
    lines = (tmp_path / "clean" / "removed.csv").read_text().splitlines()
    assert lines[1:] == ["train,0,'=1+1,same_text", "train,1,-7,same_text"]
    log = Log(tmp_path / "dropped.csv")
    log.drop(1, Report(1, "@id", "patient", "=group", "too short"), "too short")
    log.close()
    assert (tmp_path / "dropped.csv").read_text().splitlines()[1] == "1,'@id,'=group,too short"
