"""The client's side of one answer: ASGI, and for streams the server's `BodyWriter`."""

from __future__ import annotations

import asyncio
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

_SIGN_OF_LIFE = b": keep-alive\n\n"


class ClientAnswer:
    """Writes one answer. `own_headers` are made when it begins: they tell what it took."""

    __slots__ = (
        "_cut", "_own_headers", "_send", "begin_time", "is_of_events", "is_over", "status",
        "write_at_once",
    )  # fmt: skip

    def __init__(self, scope: Scope, send: Send, own_headers: Callable[[], Headers]) -> None:
        writer: BodyWriter = scope["extensions"][BODY_WRITER]["writer"]
        self.write_at_once = writer.write
        """`write` without waiting; False where `write` would wait now."""
        self._cut = writer.cut
        self._send = send
        self._own_headers = own_headers
        self.status: int | None = None
        """None until the answer has begun."""
        self.begin_time = 0.0
        self.is_of_events = False
        """It has begun, and errors can be said inside it."""
        self.is_over = False

    @property
    def has_begun(self) -> bool:
        """From then on an error can only be said inside the answer, if at all."""
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

    async def begin_events(self) -> None:
        """Status and headers of a stream of events."""
        self.is_of_events = True
        await self.begin(200, EVENT_HEADERS)

    async def write(self, data: bytes) -> None:
        """Some of the body. Waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """The end of the body."""
        self.is_over = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def cut(self) -> None:
        """Break off, connection and all: the client must not take what it has for the whole."""
        self.is_over = True
        self._cut()
        await asyncio.sleep(0)  # The server hears of it.

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece."""
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)


class SignsOfLife:
    """`with SignsOfLife(answer, seconds): ...` while a stream that has begun waits for something,
    a comment every few seconds says that it lives. Nothing for other answers."""

    def __init__(self, answer: ClientAnswer, seconds: float) -> None:
        self._answer = answer
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._answer.is_of_events:
            self._set_timer()

    def __exit__(self, *failure: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._show)

    def _show(self) -> None:
        self._answer.write_at_once(_SIGN_OF_LIFE)
        self._set_timer()
