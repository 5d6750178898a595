"""Whoever comes while the page starts: a person is told so at once, everything else waits.

The page's port is open before the page is, and stays open while one that died is started again.
A browser that opens the page gets a small one that asks again by itself. What an open page asks in
the meantime (scripts, messages, figures) would be lost by that, and behind a load balancer it may
well be another replica's page: it waits until ours is there, and is sent to the same address anew.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import NamedTuple

import msgspec

from tgwui_k8s.error_envelope import envelope
from tgwui_k8s.errors import UnavailableError

PATIENCE_SECONDS = 30.0
"""How long it waits: less than proxies do."""

MOST_WAITING = 256
"""More than that are told to come back."""

_HEAD_SECONDS = 5.0
_BODY_SECONDS = 2.0
_BACKLOG = 2048
_READ_BYTES = 64 * 1024

# In both languages, because words/*.yaml take the API's event loop milliseconds to read.
_STARTING_PAGE = (Path(__file__).parent / "static" / "starting.html").read_bytes()
_RETRY_AFTER = "retry-after: 2"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


class WaitingRoom:
    """Answers on the page's port while it is open."""

    def __init__(self, listener: socket.socket) -> None:
        """`listener` stays the caller's, and stays open."""
        self.listener = listener
        self._server: asyncio.Server | None = None
        self._is_over = asyncio.Event()
        self._num_waiting = 0

    @property
    def is_open(self) -> bool:
        """Whether whoever comes is received here."""
        return self._server is not None

    async def open(self) -> None:
        """Receive whoever comes, until `close`."""
        if self._server is None:
            self._is_over = asyncio.Event()
            self._server = await asyncio.start_server(
                self._receive, sock=self.listener.dup(), backlog=_BACKLOG
            )

    def close(self) -> None:
        """Receive nobody any more: the page does. Whoever waits is sent to it."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._is_over.set()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
            writer.write(await self._answer(_asked(head)))
            writer.write_eof()
            # A connection that is closed on what has not been read loses the answer, too.
            await asyncio.wait_for(_read_all(reader), _BODY_SECONDS)
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass  # it does not speak HTTP, is slow, or is gone
        finally:
            writer.close()

    async def _answer(self, asked: _Asked) -> bytes:
        if "text/html" in asked.accept:
            return _starting_page()
        if await self._is_soon_over():
            return _same_again(asked.target)
        return _not_yet()

    async def _is_soon_over(self) -> bool:
        """Wait for the page, where there is room; False where it did not come."""
        if self._num_waiting >= MOST_WAITING:
            return False
        self._num_waiting += 1
        try:
            await asyncio.wait_for(self._is_over.wait(), PATIENCE_SECONDS)
        except asyncio.TimeoutError:
            return False
        else:
            return True
        finally:
            self._num_waiting -= 1


class _Asked(NamedTuple):
    """What counts of a request."""

    target: str
    accept: str


def _asked(head: bytes) -> _Asked:
    """Raises `ValueError` for what is no HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    _, target, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    return _Asked(target, headers.get("accept", ""))


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(_READ_BYTES):
        pass


def _starting_page() -> bytes:
    kind = "content-type: text/html; charset=utf-8"
    return _response("503 Service Unavailable", _STARTING_PAGE, kind, _RETRY_AFTER)


def _not_yet() -> bytes:
    error = UnavailableError("The web page of this pod is starting.", code="page_starting")
    body = msgspec.json.encode(envelope(error))
    return _response(
        "503 Service Unavailable", body, "content-type: application/json", _RETRY_AFTER
    )


def _same_again(target: str) -> bytes:
    """The same request at the same address, which is relative: a proxy may have cut a prefix."""
    path, mark, query = target.partition("?")
    name = path.rpartition("/")[2]
    return _response("307 Temporary Redirect", b"", f"location: ./{name}{mark}{query}")


def _response(status: str, body: bytes, *headers: str) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"content-length: {len(body)}",
        f"content-security-policy: {_POLICY}",
        "cache-control: no-store",
        "connection: close",
        *headers,
    )
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body
