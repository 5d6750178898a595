"""The client's side of one answer: ASGI, and for streams the server's `BodyWriter`."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import Scope, Send

from tgwui_k8s.gateway.body_writer import BODY_WRITER, BodyWriter
from tgwui_k8s.gateway.http_connection import Headers

EVENT_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON_HEADER = (b"content-type", b"application/json")


class ClientAnswer:
    """Writes one answer. `own_headers` are made when it begins: they tell what it took."""

    __slots__ = ("_own_headers", "_send", "begin_time", "is_over", "status", "write_at_once")

    def __init__(self, scope: Scope, send: Send, own_headers: Callable[[], Headers]) -> None:
        writer: BodyWriter = scope["extensions"][BODY_WRITER]["writer"]
        self.write_at_once = writer.write
        """`write` without waiting; False where `write` would wait now."""
        self._send = send
        self._own_headers = own_headers
        self.status: int | None = None
        """None until the answer has begun."""
        self.begin_time = 0.0
        self.is_over = False

    @property
    def has_begun(self) -> bool:
        """From then on an error can only be said inside the answer."""
        return self.status is not None

    async def begin(self, status: int, headers: Headers) -> None:
        """Status and headers."""
        self.status = status
        self.begin_time = time.monotonic()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self._own_headers()],
            }
        )

    async def write(self, data: bytes) -> None:
        """Some of the body. Waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """The end of the body."""
        self.is_over = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece."""
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)
