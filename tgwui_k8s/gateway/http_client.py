"""HTTP/1.1 to endpoints: keeps connections, opens new ones, sends requests whole.

client = HttpClient()
async with client.send(origin, request_head(...) + body) as exchange: ...
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.failures import ConnectFailedError, PhaseTimeoutError
from tgwui_k8s.gateway.http_connection import Exchange, HttpConnection

MAX_IDLE_PER_ORIGIN = 256
IDLE_SECONDS = 30.0
"""Less than servers keep idle connections, so that ours are rarely closed by the other side."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect."""

    host: str
    port: int
    is_tls: bool = False

    @property
    def authority(self) -> str:
        """As in the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"


def parse_origin(url: str) -> Origin:
    """`http://host:port` without a path. Raises `UsageError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"'{url[:200]}' is not of the form http://HOST:PORT")
    is_tls = parts.scheme == "https"
    return Origin(parts.hostname, port or (443 if is_tls else 80), is_tls)


def request_bytes(
    method: str,
    target: str,
    origin: Origin,
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
) -> bytes:
    """A request as it goes over the wire. `headers` are without Host and framing."""
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {origin.authority}\r\n".encode()]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    if body is not None:
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"".join((*lines, b"\r\n", body or b""))


class HttpClient:
    """A pool of connections per origin. Used from one event loop."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: for origins that want it; default: the system's certificates."""
        self._tls = tls
        self._idle: dict[Origin, list[HttpConnection]] = defaultdict(list)
        self._origin_of: dict[HttpConnection, Origin] = {}

    async def start(
        self, origin: Origin, request: bytes, *, connect_seconds: float, fresh: bool = False
    ) -> Exchange:
        """Send `request`, on a kept connection where there is one and `fresh` does not forbid it.

        Raises `ConnectFailedError` or `PhaseTimeoutError`.
        """
        connection = None if fresh else self._take_idle(origin)
        if connection is None:
            connection = await self._connect(origin, connect_seconds)
        return connection.start(request)

    def forget(self, origin: Origin) -> None:
        """Close idle connections to an endpoint that is gone."""
        for connection in self._idle.pop(origin, ()):
            connection.close()

    def close(self) -> None:
        """Close every connection, idle or not."""
        for connection in list(self._origin_of):
            connection.close()
        self._idle.clear()

    @property
    def num_connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._origin_of)

    def _take_idle(self, origin: Origin) -> HttpConnection | None:
        # The newest first: the others get old enough to be closed.
        idle = self._idle.get(origin)
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while idle:
            connection = idle.pop()
            if connection.is_usable and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: Origin, seconds: float) -> HttpConnection:
        loop = asyncio.get_running_loop()
        connection = HttpConnection(self._on_free)
        connecting = loop.create_task(
            loop.create_connection(
                lambda: connection,
                origin.host,
                origin.port,
                ssl=self._tls_context() if origin.is_tls else None,
            )
        )
        # Not `wait_for`: before Python 3.12 it forgets that it was cancelled where the connection
        # is made at that very moment, and who was to stop goes on.
        try:
            await asyncio.wait((connecting,), timeout=seconds)
        except asyncio.CancelledError:
            _give_up(connecting, connection)
            raise
        if not connecting.done():
            _give_up(connecting, connection)
            raise PhaseTimeoutError("connect", seconds)
        error = connecting.exception()  # Not `result`, which ties error, frame and task together.
        if isinstance(error, OSError):
            raise ConnectFailedError(f"cannot connect to {origin}: {error}")
        if error is not None:
            raise error
        if not connection.is_usable:  # Before this task had its turn.
            raise ConnectFailedError(f"{origin} has closed the connection at once")
        self._origin_of[connection] = origin
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _on_free(self, connection: HttpConnection) -> None:
        origin = self._origin_of.get(connection)
        if origin is None:
            return
        if not connection.is_usable:
            del self._origin_of[connection]
            if connection in self._idle.get(origin, ()):
                self._idle[origin].remove(connection)
            return
        idle = self._idle[origin]
        if len(idle) >= MAX_IDLE_PER_ORIGIN:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        idle.append(connection)


def _give_up(connecting: asyncio.Task[Any], connection: HttpConnection) -> None:
    """Nobody waits for this connection any more, be it made by now or not."""
    connecting.cancel()
    connecting.add_done_callback(_look_at)
    connection.close()


def _look_at(connecting: asyncio.Task[Any]) -> None:
    """What it failed with, if it did, is not to be logged as forgotten."""
    if not connecting.cancelled():
        connecting.exception()
