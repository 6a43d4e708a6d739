"""What every request and answer goes through: who may ask, how much, how long, and what a browser
may do with the answer. Plain ASGI around the application; nothing of a body is ever logged."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz", "/readyz")  # without a token: they tell nothing


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    body_bytes: int = 2**20
    """Largest body."""
    body_s: float = 10.0
    """Seconds in which it must have arrived."""
    answer_s: float = 120.0
    """Seconds after which an answer is given up."""


class Refusal(Exception):
    """An answer that ends a request."""

    def __init__(self, status: int, told: str, **headers: str) -> None:
        super().__init__(told)
        self.status, self.told, self.headers = status, told, headers


class Guard:
    """Around an application: Host and token, size and time, headers of safety."""

    def __init__(
        self, app: App, *, hosts: Sequence[str], token: str | None, policy: str, limits: Limits
    ) -> None:
        self.app, self.hosts, self.token, self.limits = app, set(hosts), token, limits
        self.headers = [
            (b"cache-control", b"no-store"),
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here
        begun = False

        async def safely(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", []), *self.headers]}
            await send(message)

        try:
            self._admit(scope)
            body = await self._body(scope, receive)
            async with asyncio.timeout(self.limits.answer_s):
                await self.app(scope, _replay(body, receive), safely)
        except Refusal as refusal:
            if not begun:
                await _answer(safely, refusal)
        except TimeoutError:
            if not begun:
                await _answer(safely, Refusal(503, "the answer took too long: try again later"))

    def _admit(self, scope: Scope) -> None:
        """Raises Refusal. The Host header is looked at so that no page elsewhere can reach this
        service by a name of its own (DNS rebinding)."""
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(given) != 1 or given[0].lower() not in self.hosts:
            raise Refusal(421, "this service does not answer under that name (Host header)")
        if self.token is None or scope["path"] in OPEN_PATHS:
            return
        sent = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        if not hmac.compare_digest(sent, b"Bearer " + self.token.encode()):
            raise Refusal(
                401,
                "a token is needed: Authorization: Bearer ...",
                **{"www-authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it. Raises Refusal: too large, too slow, or gone."""
        told = [value for name, value in scope["headers"] if name == b"content-length"]
        if told and int(told[0]) > self.limits.body_bytes:
            raise Refusal(413, f"a body may have {self.limits.body_bytes:,} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refusal(400, "the client has left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limits.body_bytes:
                        raise Refusal(413, f"a body may have {self.limits.body_bytes:,} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "the body took too long to arrive") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the server says (that the client has left)."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return again


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.told}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= refusal.headers
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
