"""One HTTP/1.1 request on a connection of its own; the body is handed on as it arrives.

Plain protocol and parser instead of a client library: a load generator must cost far less per
chunk than the server it measures.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools


class TruncatedError(ConnectionError):
    """The connection closed before the answer was complete."""


@dataclass(frozen=True)
class Origin:
    """Where a server is."""

    host: str
    port: int
    is_tls: bool = False
    path_prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Origin:
        """From `http://host:port/prefix`. Raises `ValueError`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no http URL")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname, port, is_tls, parts.path.rstrip("/"))

    def is_loopback(self) -> bool:
        """True when every address of the host is this machine's own."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The request as it goes over the wire."""
        lines = [
            f"{method} {self.path_prefix}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Exchange(asyncio.Protocol):
    """A request sent, an answer received.

    `on_body` gets every piece of the body; `status` is known when the first one comes.
    """

    def __init__(self, request: bytes, on_body: Callable[[bytes], None]) -> None:
        self.status = 0
        self.on_body = on_body
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, origin: Origin) -> None:
        """Returns when the answer is complete.

        Raises `OSError` (`TruncatedError` among them) or `httptools.HttpParserError`.
        """
        context = ssl.create_default_context() if origin.is_tls else None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: self, origin.host, origin.port, ssl=context
        )
        try:
            await self._complete
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self._end(error or TruncatedError("closed before the end of the answer"))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._complete.done():
            return
        if error is None:
            self._complete.set_result(None)
        else:
            self._complete.set_exception(error)


async def ask(origin: Origin, request: bytes) -> tuple[int, bytes]:
    """Status and body of one request. Raises like `Exchange.run`."""
    body = bytearray()
    exchange = Exchange(request, body.extend)
    await exchange.run(origin)
    return exchange.status, bytes(body)
