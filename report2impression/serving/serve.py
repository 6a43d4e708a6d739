"""A page and a service on this machine, to try a model or to use it from a program.

    report2impression serve --adapter RUN/adapter           # then open http://127.0.0.1:8000

Only this machine is answered. Another --host needs a --token_file, whose content every request
sends (Authorization: Bearer ...), and something in front that speaks TLS. Needs the extra "serve".
"""

from report2impression.program.errors import exits_cleanly
from report2impression.program.process import load_quickly, loaded
from report2impression.serving.options import serving_settings

if __name__ == "__main__":
    serving_settings()  # --help and mistakes are answered before torch is loaded
    load_quickly()

import signal
import socket
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import uvicorn

from report2impression.extracting.extractor import Extractor
from report2impression.extracting.fhir import diagnostic_report
from report2impression.extracting.options import ExtractorConfig
from report2impression.program.errors import ConfigError
from report2impression.program.process import keep_freed_memory
from report2impression.serving.options import ServeConfig
from report2impression.serving.service import application
from report2impression.serving.waiting import Record

END_S = 30  # seconds for what was accepted, after which the service ends all the same


def serve(config: ServeConfig) -> None:
    """Until SIGINT or SIGTERM; then what was accepted is answered. ConfigError: no such model, or
    the port is taken."""
    own = {field.name: getattr(config, field.name) for field in fields(ExtractorConfig)}
    device = "cpu" if config.cpu or not torch.cuda.is_available() else "cuda"
    if device == "cpu":
        keep_freed_memory()
    with _listening(config) as listening:
        port = listening.getsockname()[1]
        load = partial(Extractor, config.adapter, base=config.model, device=device, **own)
        work = partial(_records, load())
        base = partial(_records, load(untrained=True)) if config.compare else None
        told = work(["the lungs are clear"])[0]["provenance"]  # and loads what is loaded lazily
        loaded()
        facts = {name: told[name] for name in ("model", "adapter_sha256", "decoding", "rules")}
        app = application(
            work,
            _bundle,
            facts,
            base=base,
            hosts=config.hosts(port),
            token=config.token(),
            queue=config.queue,
            window_s=config.window_ms / 1000,
        )
        name = f"[{config.host}]" if ":" in config.host else config.host
        print(f"serving {told['model']} at http://{name}:{port} (Ctrl-C ends it)", flush=True)
        settings = uvicorn.Config(
            app,
            lifespan="on",
            log_level="error",
            access_log=False,  # a path or a query may hold what nobody should keep
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=END_S,
            timeout_keep_alive=5,
            limit_concurrency=4 * config.queue,
        )
        for ends in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ends, signal.SIG_IGN)  # it handles them, then raises them once more
        uvicorn.Server(settings).run([listening])


def _records(extractor: Extractor, reports: Sequence[str]) -> list[Record]:
    return [impression.as_json() for impression in extractor(list(reports))]


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((config.host, config.port))
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; give another "
            "--port (0 = any free one)"
        ) from None
    return opened


def _bundle(records: Sequence[Record]) -> dict[str, Any]:
    """FHIR R4B: a collection of DiagnosticReports."""
    entries = [{"resource": diagnostic_report(record, "R4B")} for record in records]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    serve(serving_settings(argv))


if __name__ == "__main__":
    main()
