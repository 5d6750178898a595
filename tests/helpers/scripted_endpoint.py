"""An endpoint that breaks in every way there is, over real sockets.

It answers probes like an engine, hands generation requests on to a real server (`target`) or says
what it is told to, and lets through so many bytes of the answer before it does its worst.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Deed = Literal["finish", "reset", "close", "stall"]


@dataclass(frozen=True)
class Plan:
    """What happens to one answer."""

    num_bytes: int | None = None
    """So many bytes of it pass, head included; None: all."""
    deed: Deed = "finish"
    """What follows them."""
    raw: bytes | None = None
    """The answer; None: the target's."""
    byte_seconds: float = 0.0
    """Pause after each byte."""
    gate: asyncio.Event | None = None
    """Nothing passes until it is set."""


FINE = Plan()


def answer(
    status: int, body: bytes, *headers: bytes, content_type: bytes = b"application/json"
) -> bytes:
    """A well-formed answer."""
    lines = [
        b"HTTP/1.1 %d X" % status,
        b"content-type: " + content_type,
        b"content-length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class ScriptedEndpoint:
    """Follows `plans` one after the other, then answers as it should."""

    target: str | None = None
    plans: deque[Plan] = field(default_factory=deque)
    model: str = "fake/model"
    owned_by: str = "tgwui-k8s"
    is_ready: bool = True
    is_frozen: bool = False
    """Probes get no answer."""
    requests: list[dict[str, object]] = field(default_factory=list)
    """Bodies of the generation requests."""
    heads: list[bytes] = field(default_factory=list)
    num_open: int = 0
    """Generation requests under way."""
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ScriptedEndpoint]:
        """Listen until the context ends."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await reader.readexactly(length)
        path = head.split(b" ", 2)[1].decode()
        if head.startswith(b"GET") and self.is_frozen:
            await reader.read()
            return False
        if head.startswith(b"GET"):
            writer.write(self._probe(path))
            await writer.drain()
            return True
        self.requests.append(json.loads(body))
        self.heads.append(head)
        self.num_open += 1
        try:
            return await self._answer(path, body, reader, writer)
        finally:
            self.num_open -= 1

    def _probe(self, path: str) -> bytes:
        if path == "/health/ready":
            return answer(200 if self.is_ready else 503, b"{}")
        if path == "/v1/models":
            card = {"id": self.model, "object": "model", "owned_by": self.owned_by}
            return answer(200, json.dumps({"object": "list", "data": [card]}).encode())
        return answer(404, b"{}")

    async def _answer(
        self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        plan = self.plans.popleft() if self.plans else FINE
        if plan.gate is not None:
            await plan.gate.wait()
        source = self._from_target(path, body) if plan.raw is None else _pieces(plan.raw)
        left = plan.num_bytes
        async for data in source:
            part = data if left is None else data[:left]
            if plan.byte_seconds:
                for byte in part:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(plan.byte_seconds)
            else:
                writer.write(part)
            await writer.drain()
            if left is not None:
                left -= len(part)
                if left == 0:
                    break
        return await self._do(plan.deed, reader, writer)

    async def _do(
        self, deed: Deed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if deed == "finish":
            return True
        if deed == "stall":
            await reader.read()  # Until the other side gives up.
        elif deed == "reset":
            # Closing a socket that does not linger sends a reset.
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.005)  # A reset overtakes bytes that are still under way.
        return False

    async def _from_target(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        assert self.target is not None
        parts = urlsplit(self.target)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
            while data := await reader.read(65536):
                yield data
        finally:
            writer.transport.abort()


async def _pieces(raw: bytes) -> AsyncIterator[bytes]:
    yield raw
