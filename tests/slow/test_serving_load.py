"""The service as a process of its own that is told to end while many clients ask."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from report2impression import Extractor
from report2impression.corpora.synthetic import generate
from tests.slow.conftest import Adapter
from tests.tiny import ROOT

pytestmark = pytest.mark.slow
CLIENTS, BEFORE = 64, 100  # answers before it is told to end

# The service, which also counts what it took into its queue and what became of that.
SERVE = """
import asyncio, sys
from report2impression.serving import serve, waiting
own, ends = waiting.Waiting.ask, {"answered": 0, "lost": 0}

async def ask(self, reports):
    try:
        found = await own(self, reports)
    except (waiting.Full, waiting.Closing):
        raise
    except BaseException:
        ends["lost"] += 1
        raise
    ends["answered"] += 1
    return found

waiting.Waiting.ask = ask
serve.main(sys.argv[1:])
print(ends["answered"], ends["lost"])
"""


@contextmanager
def service(adapter: Adapter) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(process, port)"""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, *adapter.flags, "--port=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield process, int(process.stdout.readline().rpartition(":")[2].split()[0])
        finally:
            process.kill()


class Clients:
    """Each asks again and again until the service takes no more."""

    def __init__(self, port: int, reports: Sequence[str]) -> None:
        self.port, self.reports = port, reports
        self.answers: list[tuple[str, str]] = []  # (report, impression)
        self.others: Counter[str] = Counter()
        self.enough = threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(i,)) for i in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _go(self, number: int) -> None:
        while True:
            report = self.reports[number % len(self.reports)]
            number += CLIENTS
            try:
                status, data = self._ask(report)
            except (OSError, http.client.HTTPException) as error:  # before any answer began
                self.others[type(error).__name__] += 1
                return
            if status != 200:
                self.others[str(status)] += 1
                return
            self.answers.append((report, data["impressions"][0]["impression"]))
            if len(self.answers) >= BEFORE:
                self.enough.set()

    def _ask(self, report: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/impressions", json.dumps({"text": report}), headers)
        answer = connection.getresponse()
        data = answer.read()  # IncompleteRead where it breaks off
        connection.close()
        return answer.status, json.loads(data)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_told_to_end_under_load_it_answers_what_it_has_taken(
    adapter: Adapter, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [pair.prompt for pair in generate(200, 9)]
    with service(adapter) as (process, port):
        clients = Clients(port, reports)
        assert clients.enough.wait(600)
        process.send_signal(signal.SIGTERM)
        clients.join()
        assert process.stdout
        told = process.stdout.read().split()
        assert process.wait(60) == 0
    answered, lost = map(int, told)
    assert lost == 0 and answered == len(clients.answers) >= BEFORE
    assert set(clients.others) <= {
        "503",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "RemoteDisconnected",
    }
    ours = Extractor(adapter.folder, device="cpu", max_new_tokens=adapter.max_new_tokens)
    expected = {r: i.text for r, i in zip(reports, ours(reports), strict=True)}
    assert all(expected[report] == text for report, text in clients.answers)
    with capsys.disabled():
        print(f"\n{answered} taken and answered; then {dict(clients.others)}; exit 0")
