"""How many small changes of the code do the tests notice?

    python -m bench.reliability.mutation     all mutants of all targets
    python -m bench.reliability.mutation --target FILE --first 0 --last 50 --output RESULTS.jsonl
    python -m bench.reliability.mutation --report RESULTS.jsonl    score and survivors of such parts

mutmut makes the mutants (one changed operator, number, name, argument or string each). One process
imports everything and runs the target's fast tests once; then a fork per mutant gives the changed
functions their new code and runs the same tests, quickest first, until one fails. A mutant that
makes them hang counts as noticed.
"""

import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from difflib import unified_diff
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench.common import print_json
from bench.reliability.disk_faults import ended, start
from report2impression.program.config import parse

TESTS = {
    "report2impression/batching/plan.py": ["tests/test_plan.py"],
    "report2impression/runs/durable.py": ["tests/test_checkpoint.py"],
    "report2impression/runs/checkpoint.py": ["tests/test_training_state.py"],
}
LIMIT = 60.0  # seconds of one mutant's tests


@dataclass(frozen=True)
class MutationConfig:
    """Which mutants."""

    target: str = ""
    """One file; empty: all."""
    first: int = 0
    """Number of the first mutant of each target."""
    last: int = 10**6
    """Number after the last one."""
    output: str = ""
    """Results are appended to this file, a line of JSON each."""
    report: str = ""
    """Only tell what such a file holds."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant."""

    target: str
    number: int
    change: str
    is_noticed: bool


def mutants(target: str) -> list[tuple[str, str]]:
    """(code, what is changed) of each change that lies in a function."""
    from mutmut.mutation.file_mutation import create_mutations

    code = Path(target).read_text(encoding="utf-8")
    module, mutations, *_ = create_mutations(target, code)
    found = []
    for mutation in mutations:
        if mutation.contained_by_top_level_function:
            node: Any = module.deep_replace(mutation.original_node, mutation.mutated_node)
            diff = unified_diff(code.splitlines(), node.code.splitlines(), n=0, lineterm="")
            told = [line.replace("  ", "") for line in diff if line[:2] not in ("--", "++", "@@")]
            found.append((node.code, " ".join(told)))
    return found


def functions(space: dict[str, Any]) -> Iterator[tuple[str, types.FunctionType]]:
    """All of a module's own, those of its classes too, by name."""
    for name, value in space.items():
        if isinstance(value, types.FunctionType) and value.__module__ == space["__name__"]:
            yield name, value
        elif isinstance(value, type) and value.__module__ == space["__name__"]:
            for inner, method in vars(value).items():
                if isinstance(method, types.FunctionType):
                    yield f"{name}.{inner}", method


def install(target: str, code: str) -> None:
    """Give the target's functions the code that they have in this text: every reference to them
    counts, wherever it was imported."""
    module = import_module(target.removesuffix(".py").replace("/", "."))
    space: dict[str, Any] = {"__name__": module.__name__, "__file__": target}
    sys.modules[module.__name__] = types.ModuleType(module.__name__)  # dataclasses look it up
    exec(compile(code, target, "exec"), space)
    sys.modules[module.__name__] = module
    changed = dict(functions(space))
    for name, function in functions(vars(module)):
        is_written, is_made = (
            function.__code__.co_filename.endswith(end) for end in (target, "<string>")
        )
        if name in changed and is_written:
            function.__code__ = changed[name].__code__
        if name in changed and (is_written or is_made):  # by @dataclass: the fields' defaults
            function.__defaults__ = changed[name].__defaults__
            function.__kwdefaults__ = changed[name].__kwdefaults__


class InForks:
    """A pytest plugin: after the tests have passed once, every mutant in a fork of its own."""

    def __init__(self, target: str, config: MutationConfig, tell: Callable[[Result], None]) -> None:
        self.target, self.config, self.tell = target, config, tell
        self.seconds: dict[str, float] = {}
        self.n_failed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self.n_failed += report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            self.run(item)
        if self.n_failed:
            sys.exit(f"the tests of {self.target} fail without a change")
        items = sorted(session.items, key=lambda item: self.seconds[item.nodeid])
        chosen = slice(self.config.first, self.config.last)
        for number, (code, change) in list(enumerate(mutants(self.target)))[chosen]:
            noticed = in_time(partial(self.survives, code, items)) != 0
            self.tell(Result(self.target, number, change, noticed))
        return True

    def run(self, item: pytest.Item) -> None:
        stays: Any = item.parent  # what the tests of a module share; a target has one module
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=stays)

    def survives(self, code: str, items: list[pytest.Item]) -> None:
        """In a fork; exits with 1 at the first test that fails."""
        install(self.target, code)
        for item in items:
            self.run(item)
            if self.n_failed:
                os._exit(1)


def in_time(action: Callable[[], object]) -> int:
    """Exit code of the action in a process group of its own; all of it ends after LIMIT."""

    def grouped() -> None:
        os.setpgid(0, 0)
        action()

    child, until = start(grouped), time.monotonic() + LIMIT
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    return ended(child)


def report(results: list[Result]) -> None:
    """Score of each target, and the survivors."""
    scores = {}
    for target in sorted({result.target for result in results}):
        of_it = [result for result in results if result.target == target]
        survivors = [result for result in of_it if not result.is_noticed]
        for survivor in survivors:
            print(f"survived: {target} #{survivor.number}: {survivor.change}")
        share = 1 - len(survivors) / len(of_it)
        scores[target] = {"mutants": len(of_it), "survived": len(survivors), "score": share}
        print(f"{target}: {len(of_it)} mutants, {len(survivors)} survived, score {share:.1%}")
    print_json(scores)


def main() -> None:
    config = parse(MutationConfig, description=(__doc__ or "").partition("\n")[0])
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        if config.output:
            with open(config.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")

    if config.report:
        lines = Path(config.report).read_text(encoding="utf-8").splitlines()
        report([Result(**json.loads(line)) for line in lines])
        return
    for target in [config.target] if config.target else TESTS:
        plugin = InForks(target, config, tell)
        pytest.main([*TESTS[target], "-q", "-p", "no:cacheprovider"], plugins=[plugin])
    report(results)


if __name__ == "__main__":
    main()
