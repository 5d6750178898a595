"""The engine's HTTP server and clients that are too large, too slow or silent."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import uvicorn

from tests.helpers.api_server import make_backend, make_state
from tests.helpers.fake_backend import FakeBackend
from tgwui_k8s import limited_protocol
from tgwui_k8s.api import sse
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.http_server import make_server
from tgwui_k8s.listener import bind

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


@dataclass(frozen=True)
class Engine:
    """A server on an event loop that the test shares."""

    state: ServerState
    server: uvicorn.Server
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def engine(backend: FakeBackend | None = None) -> AsyncIterator[Engine]:
    """The whole server over a fake backend; at the end it must let go at once."""
    state = make_state(backend or make_backend())
    server = make_server(state, farewell_seconds=1)
    with bind("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        yield Engine(state, server, listener.getsockname()[1])
        server.should_exit = True
        await serving


async def until_idle(state: ServerState) -> None:
    """What a drain waits for."""
    while state.num_active_requests:  # noqa: ASYNC110 - as a drain does
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nx-a: "])
async def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Before anybody has shown a key, silence holds no connection for long."""
    monkeypatch.setattr(limited_protocol, "HEAD_SECONDS", 0.2)
    async with engine() as served:
        reader, writer = await served.connect()
        writer.write(sent)
        with pytest.raises((ConnectionError, AssertionError)):
            assert await asyncio.wait_for(reader.read(), 20)
        writer.close()


async def test_a_large_head_is_refused() -> None:
    """Before it is copied piece by piece."""
    async with engine() as served:
        reader, writer = await served.connect()
        writer.write(b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 9_000 + b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.1 431")
        writer.close()


async def test_a_body_that_does_not_come_holds_up_no_drain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No deadline runs while a request is read: the client is told, and the request is over."""
    monkeypatch.setattr(limited_protocol, "BODY_SECONDS", 0.2)
    async with engine() as served:
        reader, writer = await served.connect()
        writer.write(HEAD % 1000 + b'{"prompt":')
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"HTTP/1.1 408")
        await asyncio.wait_for(until_idle(served.state), 20)
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_stream_that_is_not_read_ends_soon_after_its_deadline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last words cannot be said: whoever takes nothing is cut off, and holds up no drain."""
    monkeypatch.setattr(sse, "_UNTAKEN_SECONDS", 0.2)
    backend = make_backend(hold_step=0)
    body = b'{"prompt": "a", "n": 16, "max_tokens": 190, "stream": true, "timeout_s": 1}'
    async with engine(backend) as served:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.sendall(HEAD % len(body) + body)
            while not backend.running:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
            (protocol,) = served.server.server_state.connections
            transport = protocol.transport  # type: ignore[union-attr]
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            backend.released.set()
            await asyncio.wait_for(until_idle(served.state), 20)
            assert not served.server.server_state.connections
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
