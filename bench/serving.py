"""The service under load: many clients at once, beside one after the other.

    python -m bench.serving --adapter RUN/adapter --data.path DIR

The service is a process of its own on a free port of this machine. Every answer is compared with
what the extractor writes for the same report. The last line is JSON.
"""

import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.machine import cpu_name
from bench.start import ROOT
from report2impression.extracting.extractor import Extractor
from report2impression.program.config import parse
from report2impression.program.errors import ConfigError, exits_cleanly
from report2impression.program.terminal import print_table
from report2impression.reading.options import SourceConfig
from report2impression.reading.sources import read_pairs


@dataclass(frozen=True)
class ServingConfig:
    """Load on the service."""

    adapter: str
    """What a run trained (RUN/adapter)."""
    clients: int = 64
    """Clients at once."""
    requests: int = 2000
    """Requests of one report each, of all clients together."""
    alone: int = 100
    """Requests one after the other, for comparison."""
    data: SourceConfig = field(default_factory=SourceConfig)


@contextmanager
def service(adapter: str) -> Iterator[int]:
    """Its port."""
    command = [sys.executable, "-m", "report2impression", "serve", f"--adapter={adapter}", "--cpu"]
    with subprocess.Popen(
        [*command, "--port=0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            told = re.search(r":(\d+) \(", process.stdout.readline())
            if told is None:
                raise ConfigError("the service did not start: see its message above")
            yield int(told[1])
        finally:
            process.terminate()


def ask(port: int, report: str) -> tuple[float, str]:
    """(seconds, impression); waits for a service that is still getting ready or full."""
    begun = time.perf_counter()
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            body, headers = json.dumps({"text": report}), {"Content-Type": "application/json"}
            connection.request("POST", "/v1/impressions", body, headers)
            answer = connection.getresponse()
            data = json.loads(answer.read())
            connection.close()
        except ConnectionError:
            time.sleep(0.1)
            continue
        if answer.status == 200:
            return time.perf_counter() - begun, data["impressions"][0]["impression"]
        if answer.status not in (429, 503):
            raise ConfigError(f"the service answered {answer.status}: {data['error']}")
        time.sleep(0.05)


def measure(
    port: int, reports: Sequence[str], clients: int
) -> tuple[list[float], list[str], float]:
    """(seconds of each request, its impression, seconds of all)."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda report: ask(port, report), reports))
    return [s for s, _ in found], [text for _, text in found], time.perf_counter() - begun


@exits_cleanly
def main() -> None:
    config = parse(ServingConfig, description=(__doc__ or "").partition("\n")[0])
    pool = [pair.prompt for pair in read_pairs(config.data, "test").pairs]
    reports = [pool[i % len(pool)] for i in range(config.requests)]
    expected = {r: i.text for r, i in zip(pool, Extractor(config.adapter)(pool), strict=True)}
    rows, rates = [], {}
    with service(config.adapter) as port:
        ask(port, reports[0])
        for name, asked, clients in (
            ("one after the other", reports[: config.alone], 1),
            (f"{config.clients} clients", reports, config.clients),
        ):
            seconds, texts, whole = measure(port, asked, clients)
            wrong = sum(expected[r] != text for r, text in zip(asked, texts, strict=True))
            cuts = statistics.quantiles(seconds, n=100)
            rates[name] = len(asked) / whole
            rows.append((name, len(asked), rates[name], 1e3 * cuts[49], 1e3 * cuts[98], wrong))
    columns = ("", "requests", "reports/s", "p50, ms", "p99, ms", "not the extractor's")
    print_table("The service under load", columns, rows, digits=1)
    print(json.dumps({"cpu": cpu_name(), "rows": rows, "reports_per_s": rates}))


if __name__ == "__main__":
    main()
