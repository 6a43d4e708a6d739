"""The service over a real socket: who may ask what, what comes back, and what is never told. The
decoder is a stand-in; tests/slow has a trained one."""

import asyncio
import html
import http.client
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from report2impression.program.errors import ConfigError
from report2impression.serving.guard import Limits
from report2impression.serving.options import ServeConfig
from report2impression.serving.page import page, policy
from report2impression.serving.service import MOST_REPORTS, application
from report2impression.serving.waiting import Record, Waiting
from tests.test_house import ROOT
from tests.waiting import HANG_S, until

CANARY = "zyzzyva nodule"
HOSTILE = "</script><script>alert(1)</script> \u202e \x00 ' \" & <img src=x onerror=alert(1)>"


def written(report: str) -> str:
    return f"impression of {report}"


class Decoder:
    """Answers after the gate is open, and notes the batches."""

    def __init__(self, record: Callable[[str], Record] | None = None) -> None:
        self.record = record or (lambda report: {"impression": written(report), "items": []})
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.n_calls = 0

    def __call__(self, reports: Sequence[str]) -> list[Record]:
        self.n_calls += 1
        self.gate.wait()
        self.batches.append(list(reports))
        if any("broken" in report for report in reports):
            raise ValueError(CANARY)
        return [self.record(report) for report in reports]


class Served:
    """A running service."""

    def __init__(self, port: int, decoder: Decoder, server: Any) -> None:
        self.port, self.decoder, self.server = port, decoder, server

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def impression(self, text: str, **headers: str) -> tuple[int, Any]:
        status, _, body = self.ask("/v1/impressions", {"reports": [{"text": text}]}, **headers)
        return status, json.loads(body)


@contextmanager
def served(record: Callable[[str], Record] | None = None, **options: Any) -> Iterator[Served]:
    """On a free port, in a thread."""
    decoder = Decoder(record)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = application(
            decoder,
            lambda records: {"resourceType": "Bundle", "n": len(records)},
            {"model": "stand-in"},
            hosts=[f"127.0.0.1:{port}"],
            **options,
        )
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="on", log_config=None, server_header=False)
        )
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(port, decoder, server)
        finally:
            decoder.gate.set()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with served() as running:
        yield running


def test_each_kind_of_answer(plain: Served) -> None:
    asked = {"reports": [{"id": "a", "text": "one"}, {"id": "b", "findings": "two"}]}
    status, _, body = plain.ask("/v1/impressions", asked)
    rows = json.loads(body)["impressions"]
    assert status == 200 and [(r["id"], r["impression"]) for r in rows] == [
        ("a", written("one")),
        ("b", written("two")),
    ]
    status, _, body = plain.ask("/v1/impressions", {"text": "one"}, Accept="text/plain")
    assert (status, body.decode()) == (200, written("one") + "\n")
    status, headers, body = plain.ask("/v1/impressions", asked, Accept="application/fhir+json")
    assert headers["content-type"].startswith("application/fhir+json")
    assert json.loads(body) == {"resourceType": "Bundle", "n": 2}
    status, _, body = plain.ask("/summarization", {"inputs": ["one", "two"]})
    assert json.loads(body) == [{"summary_text": written("one")}, {"summary_text": written("two")}]
    assert json.loads(plain.ask("/v1/model")[2]) == {
        "model": "stand-in",
        "compares": False,
    }
    assert plain.ask("/healthz")[0] == plain.ask("/readyz")[0] == 200
    assert "/v1/impressions" in json.loads(plain.ask("/openapi.json")[2])["paths"]


def test_the_base_answers_beside_it_if_it_is_there(plain: Served) -> None:
    asked = {"reports": [{"id": "a", "text": "one"}]}
    assert plain.ask("/v1/base", asked)[0] == 404
    with served(base=Decoder(lambda report: {"impression": "unlearned", "items": []})) as both:
        assert json.loads(both.ask("/v1/model")[2])["compares"]
        for path, said in (("/v1/base", "unlearned"), ("/v1/impressions", written("one"))):
            (row,) = json.loads(both.ask(path, asked)[2])["impressions"]
            assert (row["id"], row["impression"]) == ("a", said)


def test_the_hubs_own_client(plain: Served) -> None:
    from huggingface_hub import InferenceClient

    for path in ("", "/summarization"):
        client = InferenceClient(f"http://127.0.0.1:{plain.port}{path}", timeout=HANG_S)
        assert client.summarization("a report").summary_text == written("a report")


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_the_curl_line_of_the_docs(plain: Served) -> None:
    (line,) = re.findall("^curl .*$", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    argv = shlex.split(line.replace(":8000", f":{plain.port}"))
    done = subprocess.run([*argv, "--silent", "--noproxy", "*"], capture_output=True, check=True)
    (row,) = json.loads(done.stdout)["impressions"]
    assert row["impression"] == written("FINDINGS: small left effusion.")


@pytest.mark.parametrize(
    ("status", "path", "body", "headers"),
    [
        (400, "/v1/impressions", b"{", {}),
        (400, "/v1/impressions", b'{"text": "\xff"}', {}),
        (400, "/v1/impressions", b"[" * 100_000, {}),
        (400, "/v1/impressions", {"reports": []}, {}),
        (400, "/v1/impressions", {"reports": [{"text": "a"}] * (MOST_REPORTS + 1)}, {}),
        (400, "/v1/impressions", {"reports": [{"text": 1}]}, {}),
        (400, "/v1/impressions", {"reports": [{"text": "a", "id": 1}]}, {}),
        (400, "/v1/impressions", "a", {}),
        (400, "/summarization", {"inputs": {"a": 1}}, {}),
        (400, "/summarization", {"other": "a"}, {}),
        (406, "/v1/impressions", {"text": "a"}, {"Accept": "image/png"}),
        (413, "/v1/impressions", {"text": "a" * 60_000}, {}),
        (413, "/v1/impressions", b" " * (2**20 + 1), {}),
        (415, "/v1/impressions", b"text", {"Content_Type": "text/plain"}),
        (422, "/v1/impressions", {"text": " \u200b\n"}, {}),
        (404, "/v1/../../etc/passwd", None, {}),
        (404, "/%2e%2e/%2e%2e/etc/passwd", None, {}),
        (404, "/v1/impressions", None, {}),
        (421, "/v1/model", None, {"Host": "evil.example"}),
        (421, "/", None, {"Host": "127.0.0.1:1"}),
        (500, "/v1/impressions", {"text": f"broken {CANARY}"}, {}),
    ],
)
def test_refusals_are_one_sentence_without_text(
    plain: Served,
    status: int,
    path: str,
    body: Any,
    headers: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    found, sent, told = plain.ask(path, body, **headers)
    assert found == status
    assert list(json.loads(told)) == ["error"] and CANARY.encode() not in told
    assert sent["cache-control"] == "no-store" and sent["x-content-type-options"] == "nosniff"
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("path", ["/", "/v1/model", "/nowhere"])
def test_every_answer_carries_what_keeps_a_browser_safe(plain: Served, path: str) -> None:
    _, headers, _ = plain.ask(path)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer" and "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_header_cannot_be_smuggled_in_by_an_id(plain: Served) -> None:
    asked = {"reports": [{"id": "a\r\nSet-Cookie: x=1", "text": HOSTILE}]}
    status, headers, body = plain.ask("/v1/impressions", asked)
    assert status == 200 and "set-cookie" not in headers
    assert json.loads(body)["impressions"][0]["impression"] == written(HOSTILE)


def test_the_policy_lets_in_what_stands_in_the_page_and_nothing_else() -> None:
    shown = page({"model": HOSTILE, "decoding": "greedy", "compares": False})
    told = policy(shown)
    assert "unsafe" not in told and told.count("'sha256-") == 2 and "*" not in told
    assert "http:" not in shown and "https:" not in shown and "innerHTML" not in shown
    assert f"Model: {html.escape(HOSTILE)}, greedy<" in shown


def test_a_token_is_asked_for() -> None:
    with served(token="0123456789abcdef") as running:
        assert running.impression("a")[0] == 401
        assert running.impression("a", Authorization="Bearer 0123456789abcdeg")[0] == 401
        assert running.impression("a", Authorization="Bearer 0123456789abcdef")[0] == 200
        assert running.ask("/healthz")[0] == 200


def test_a_slow_body_is_given_up() -> None:
    with (
        served(limits=Limits(body_s=0.05)) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=HANG_S) as client,
    ):
        head = f"POST /v1/impressions HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        client.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(1000)


def many(running: Served, texts: Sequence[str]) -> list[tuple[int, Any]]:
    """All of them at once, the answers in their order."""
    found: list[Any] = [None] * len(texts)

    def one(number: int) -> None:
        found[number] = running.impression(texts[number])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_requests_that_arrive_together_are_decoded_together() -> None:
    texts = [f"report {i}" for i in range(40)]
    with served(batch=16) as running:
        found = many(running, texts)
        assert [(s, r["impressions"][0]["impression"]) for s, r in found] == [
            (200, written(text)) for text in texts
        ]
        assert sorted(sum(running.decoder.batches, [])) == sorted(texts)

    async def at_once(decoder: Decoder) -> None:
        waiting = Waiting(decoder, batch=16, most=40, window_s=0.0)
        asked = [asyncio.create_task(waiting.ask([text])) for text in texts]
        await asyncio.sleep(0)  # all of them wait
        waiting.close()
        await waiting.run()
        assert [(await one)[0]["impression"] for one in asked] == list(map(written, texts))

    decoder = Decoder()
    asyncio.run(at_once(decoder))
    assert decoder.batches == [texts[:16], texts[16:32], texts[32:]]


def test_a_full_queue_refuses_and_recovers() -> None:
    with served(queue=3, batch=1, window_s=0.0) as running:
        running.decoder.gate.clear()
        found: list[int] = []

        def one() -> None:
            found.append(running.impression("a")[0])
            running.decoder.gate.set()  # the first refusal lets the others go

        threads = [threading.Thread(target=one) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {200, 429} and found.count(200) >= 3
        assert running.impression("a")[0] == 200


def test_a_client_that_leaves_does_not_stop_others() -> None:
    with served(window_s=0.0) as running:
        running.decoder.gate.clear()
        body = json.dumps({"text": "left"}).encode()
        client = socket.create_connection(("127.0.0.1", running.port), timeout=HANG_S)
        head = f"POST /v1/impressions HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        client.close()
        running.decoder.gate.set()
        assert running.impression("stays")[0] == 200


def test_what_was_accepted_is_answered_before_the_end() -> None:
    with served(window_s=0.0) as running:
        running.decoder.gate.clear()
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(running.impression("a")[0]))
        thread.start()
        until(lambda: running.decoder.n_calls)
        running.server.should_exit = True
        running.decoder.gate.set()
        thread.join()
        assert found == [200]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "ris.example", "::"])
def test_another_host_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="--token_file"):
        ServeConfig(adapter="a", host=host)


def test_a_token_is_a_long_word(tmp_path: Any) -> None:
    file = tmp_path / "token"
    for text in ("short", "two words of some length", "ünïcödé-0123456789", ""):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="--token_file"):
            ServeConfig(adapter="a", token_file=str(file)).token()
    file.write_text("0123456789abcdef\n")
    assert ServeConfig(adapter="a", token_file=str(file)).token() == "0123456789abcdef"
