"""The service: reports in by HTTP, structured impressions out.

    POST /v1/impressions   {"reports": [{"id", "text"}]} or {"text"}; Accept: application/json,
                           application/fhir+json (one Bundle) or text/plain
    POST /v1/base          the same by the base alone, where it is there to be compared
    POST /summarization    {"inputs": text or [texts]} -> [{"summary_text"}]: the hub's task form
                           (also POST /, which huggingface_hub.InferenceClient(URL) asks)
    GET  /  /v1/model  /healthz  /readyz  /openapi.json

Errors are {"error": one sentence}, never report text: 400 not what is asked for, 413 too large,
415 not JSON, 422 a report that is none, 429 the queue is full.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from report2impression.program.unseen import has_ink
from report2impression.reading.sections import find_sections
from report2impression.serving.guard import Guard, Limits, Refusal
from report2impression.serving.page import page, policy
from report2impression.serving.waiting import Closing, Failed, Full, Record, Waiting, Work

MOST_REPORTS = 64  # in one request
DEFAULT_LIMITS = Limits()
JSON, FHIR, TEXT = "application/json", "application/fhir+json", "text/plain"

ToFhir = Callable[[Sequence[Record]], dict[str, Any]]


class Service:
    """Handlers over a queue of reports."""

    def __init__(
        self,
        waiting: Waiting,
        base: Waiting | None,
        to_fhir: ToFhir,
        facts: Mapping[str, Any],
        *,
        longest: int,
    ) -> None:
        self.waiting, self.base, self.to_fhir, self.longest = waiting, base, to_fhir, longest
        self.facts = {**facts, "compares": base is not None}
        self._page, self._openapi = page(self.facts), openapi()
        self.is_ready = False

    async def show(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html")

    async def model(self, request: Request) -> Response:
        return JSONResponse(self.facts)

    async def healthy(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        return PlainTextResponse("ok\n" if self.is_ready else "no\n", 200 if self.is_ready else 503)

    async def describe(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def impressions(self, request: Request) -> Response:
        return await self._impressions(request, self.waiting)

    async def of_base(self, request: Request) -> Response:
        if self.base is None:
            raise Refusal(404, "the base is not loaded: start the service with --compare")
        return await self._impressions(request, self.base)

    async def _impressions(self, request: Request, waiting: Waiting) -> Response:
        kind = _accepted(request.headers.get("accept", ""))
        asked = await _json(request)
        rows = asked.get("reports", [asked]) if isinstance(asked, dict) else asked
        ids, texts = self._reports(rows)
        records = await _ask(waiting, texts)
        records = [record | {"id": name} for name, record in zip(ids, records, strict=True)]
        if kind == TEXT:
            return PlainTextResponse("\n\n".join(r["impression"] for r in records) + "\n")
        if kind == FHIR:
            return JSONResponse(self.to_fhir(records), media_type=FHIR)
        sections = [[asdict(section) for section in find_sections(text)] for text in texts]
        return JSONResponse({"impressions": records, "sections": sections})

    async def summarization(self, request: Request) -> Response:
        asked = await _json(request)
        inputs = asked.get("inputs") if isinstance(asked, dict) else None
        many = inputs if isinstance(inputs, list) else [inputs]
        _, texts = self._reports([{"text": text} for text in many])
        records = await _ask(self.waiting, texts)
        return JSONResponse([{"summary_text": record["impression"]} for record in records])

    def _reports(self, rows: object) -> tuple[list[str], list[str]]:
        """(ids, texts) of the reports asked for. Raises Refusal, which names the place only."""
        if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_REPORTS:
            raise Refusal(400, f"reports must be a list of 1 to {MOST_REPORTS}")
        ids, texts = [], []
        for number, row in enumerate(rows):
            text = row.get("text", row.get("findings")) if isinstance(row, dict) else None
            name = row.get("id", str(number)) if isinstance(row, dict) else None
            if not isinstance(text, str) or not isinstance(name, str) or len(name) > 200:
                raise Refusal(400, f'report {number}: it must be {{"id": "...", "text": "..."}}')
            if not has_ink(text):
                raise Refusal(422, f"report {number} is empty")
            if len(text) > self.longest:
                raise Refusal(413, f"report {number} is longer than {self.longest:,} characters")
            ids.append(name)
            texts.append(text)
        return ids, texts


async def _ask(waiting: Waiting, texts: Sequence[str]) -> Sequence[Record]:
    try:
        return await waiting.ask(texts)
    except Full:
        raise Refusal(429, "too many reports wait: try again", **{"retry-after": "1"}) from None
    except Closing:
        raise Refusal(503, "the service is ending") from None
    except Failed as failed:
        raise Refusal(500, f"the decoder failed ({failed}): one of these reports?") from None


def application(
    work: Work,
    to_fhir: ToFhir,
    facts: Mapping[str, Any],
    *,
    base: Work | None = None,
    hosts: Sequence[str],
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    longest: int = 50_000,
    batch: int = 64,
    queue: int = 256,
    window_s: float = 0.015,
) -> Guard:
    """The whole service as an ASGI application. `work` decodes reports, in a thread; it should have
    run once, for its lazy imports; `base` is the same with the base alone. What was accepted is
    answered before it ends."""
    queues = [Waiting(w, batch=batch, most=queue, window_s=window_s) for w in (work, base) if w]
    service = Service(queues[0], queues[1] if base else None, to_fhir, facts, longest=longest)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        workers = [asyncio.create_task(waiting.run()) for waiting in queues]
        service.is_ready = True
        yield
        for waiting in queues:
            waiting.close()
        await asyncio.gather(*workers)

    routes = [
        Route("/", service.show, methods=["GET"]),
        Route("/", service.summarization, methods=["POST"]),
        Route("/v1/base", service.of_base, methods=["POST"]),
        Route("/summarization", service.summarization, methods=["POST"]),
        Route("/v1/impressions", service.impressions, methods=["POST"]),
        Route("/v1/model", service.model),
        Route("/healthz", service.healthy),
        Route("/readyz", service.ready),
        Route("/openapi.json", service.describe),
    ]
    inner = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={Refusal: _refused, 404: _missing, 405: _missing},
    )
    return Guard(inner, hosts=hosts, token=token, policy=policy(service._page), limits=limits)


async def _json(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Refusal(415, "send JSON: Content-Type: application/json")
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON in UTF-8") from None


def _accepted(header: str) -> str:
    """The first kind that is asked for and known; JSON if any is."""
    for part in header.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in (JSON, FHIR, TEXT):
            return kind
    if not header or "*/*" in header or "application/*" in header:
        return JSON
    raise Refusal(406, f"answers are {JSON}, {FHIR} or {TEXT}")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.told}, error.status, headers=error.headers)


def _missing(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "there is nothing here: see /openapi.json"}, 404)


def openapi() -> dict[str, Any]:
    """What the service understands, by OpenAPI 3.1."""
    report = {
        "type": "object",
        "required": ["text"],
        "properties": {"id": {"type": "string"}, "text": {"type": "string"}},
    }
    many = {"type": "array", "items": report, "minItems": 1, "maxItems": MOST_REPORTS}
    asks = {"type": "object", "required": ["reports"], "properties": {"reports": many}}
    inputs = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    task = {"type": "object", "required": ["inputs"], "properties": {"inputs": inputs}}

    def post(summary: str, body: dict[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
        answer = {"description": "impressions", "content": {kind: {} for kind in kinds}}
        refused = {str(n): {"description": "refused"} for n in (400, 401, 413, 415, 422, 429, 503)}
        content = {JSON: {"schema": body}}
        return {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": {"200": answer} | refused,
            }
        }

    def get(summary: str) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": {"200": {"description": "ok"}}}}

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "report2impression",
            "version": "1",
            "description": "A research tool, not a medical device.",
        },
        "paths": {
            "/v1/impressions": post("structured impressions", asks, (JSON, FHIR, TEXT)),
            "/v1/base": post("by the base alone, to compare", asks, (JSON, FHIR, TEXT)),
            "/summarization": post("the hub's task form", task, (JSON,)),
            "/v1/model": get("which model answers"),
            "/healthz": get("alive"),
            "/readyz": get("ready to answer"),
        },
    }
