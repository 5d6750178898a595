"""The HTTP server's own limits, and connections that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.helpers.gateway import until
from tests.helpers.gateway_scene import BODY, GOOD, PATH, Scene, scene
from tests.helpers.scripted_endpoint import Plan, answer
from tgwui_k8s import limited_protocol
from tgwui_k8s.gateway.failures import ConnectFailedError, PhaseTimeoutError
from tgwui_k8s.gateway.http_client import HttpClient, Origin


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nx-a: "])
async def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A client that connects and says nothing, or never finishes, holds no connection for long."""
    monkeypatch.setattr(limited_protocol, "HEAD_SECONDS", 0.2)
    async with scene(1) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with pytest.raises((ConnectionError, AssertionError)):
            assert await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_kept_connections_outlive_the_time_for_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock runs from a head's first byte, not while a connection is idle."""
    monkeypatch.setattr(limited_protocol, "HEAD_SECONDS", 1.0)
    async with scene(1) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for idle_seconds in (1.2, 0):
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(idle_seconds)
        writer.close()


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_large_head_is_refused_on_kept_connections_too(is_first: bool) -> None:
    """In one piece or in many, as the first request or a later one; a large body is no head."""
    async with scene(1) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if not is_first:
            body = b'{"prompt": "%s", "model": "nope"}' % (b"x" * 200_000)
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 404")
        writer.write(b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 9_000 + b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 431")
        writer.close()


async def test_a_machine_that_does_not_answer_costs_the_time_to_connect() -> None:
    """A listener whose backlog is full drops what else comes, as a dead node does: the client gives
    up in time, and nothing stays open."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        client = HttpClient()
        origin = Origin("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(PhaseTimeoutError) as caught:
            await client.start(origin, b"", connect_seconds=0.2)
        assert caught.value.reason == "timeout_connect"
        assert client.num_connections == 0


async def test_a_connection_that_is_lost_at_once_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made and reset before its task has had a turn, as by an engine that is killed: tried again
    elsewhere, and not waited for."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def connect_and_lose(*args: Any, **options: Any) -> Any:
        transport, protocol = await connect(*args, **options)
        transport.abort()
        await asyncio.sleep(0.01)
        return transport, protocol

    monkeypatch.setattr(loop, "create_connection", connect_and_lose)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    client, port = HttpClient(), server.sockets[0].getsockname()[1]
    with pytest.raises(ConnectFailedError):
        await client.start(Origin("127.0.0.1", port), b"GET / HTTP/1.1\r\n\r\n", connect_seconds=9)
    assert client.num_connections == 0
    server.close()


async def test_a_connection_made_for_nobody_is_closed() -> None:
    """Cancelled while it connects, at whatever moment: who connects stops, and whatever came of it
    is gone."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient()
    for num_turns in range(12):
        task = asyncio.ensure_future(
            client.start(Origin("127.0.0.1", port), b"GET / HTTP/1.1\r\n\r\n", connect_seconds=9)
        )
        for _ in range(num_turns):
            await asyncio.sleep(0)
        was_over = task.done()
        task.cancel()
        await asyncio.wait((task,))
        assert was_over or task.cancelled()
        if was_over:
            task.result().abort()
    await until(lambda: client.num_connections == 0)
    server.close()


@pytest.mark.parametrize("sent", [b"", b"{"])
async def test_a_body_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Not even its first byte, or never its last: the client is told, and holds nothing."""
    monkeypatch.setattr(limited_protocol, "BODY_SECONDS", 0.2)
    async with scene(1) as stage:
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n" + sent
        )
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408")
        metrics = (await stage.http.get(stage.gateway.url + "/metrics")).text
        assert 'http_requests_total{code="499",route="/v1/completions"} 1.0' in metrics
        writer.close()


async def test_a_request_behind_another_has_time_for_its_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is read of a pipelined request while the one before it is answered; that is not its
    client's fault."""
    monkeypatch.setattr(limited_protocol, "BODY_SECONDS", 0.2)
    gate = asyncio.Event()
    async with scene(1) as stage:
        stage.endpoints[0].plans = deque([Plan(raw=GOOD, gate=gate), Plan(raw=GOOD)])
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(BODY).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body + head)
        await asyncio.sleep(0.4)
        writer.write(body)
        gate.set()
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b'"good"}')
        writer.close()


async def test_a_head_that_comes_with_a_body_before_it_is_counted_alone() -> None:
    """What one read brings may be the end of a large request and the beginning of the next."""
    async with scene(1) as stage:
        stage.endpoints[0].plans = deque([Plan(raw=GOOD)] * 2)
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({**BODY, "prompt": "x" * 200_000}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(head)
        await asyncio.sleep(0.05)
        writer.write(body + head[:20])
        await asyncio.sleep(0.05)
        writer.write(head[20:] + body)
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b'"good"}')
        writer.close()


async def test_a_head_behind_a_request_has_time_until_that_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The beginning of a second request must not end the answer to the first."""
    monkeypatch.setattr(limited_protocol, "HEAD_SECONDS", 0.2)
    gate = asyncio.Event()
    async with scene(1) as stage:
        stage.endpoints[0].plans = deque([Plan(raw=GOOD, gate=gate)])
        port = int(stage.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(BODY).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        writer.write(head + body + head[:20])
        await asyncio.sleep(0.5)
        gate.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b'"good"}')
        writer.close()


@asynccontextmanager
async def client_that_has_asked(stage: Scene, connection: str) -> AsyncIterator[socket.socket]:
    """A client whose answer, of a megabyte, does not fit into the kernel's buffers, and which has
    taken nothing of it; its call is over."""
    gate, raw = asyncio.Event(), answer(200, b"x" * 1_000_000)
    stage.endpoints[0].plans = deque([Plan(raw=raw, gate=gate)])
    body = json.dumps(BODY).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(stage.gateway.url.rpartition(":")[2])))
        client.setblocking(False)
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: stage.endpoints[0].requests)
        (protocol,) = stage.gateway.server.server_state.connections
        server = protocol.transport.get_extra_info("socket")  # type: ignore[union-attr]
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        gate.set()
        await until(lambda: stage.gateway.parts.app.num_calls == 0)
        yield client


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_client_that_never_takes_its_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    """The answer is written and its call over; what the client lets lie does not lie for ever."""
    monkeypatch.setattr(limited_protocol, "UNSENT_SECONDS", 0.2)
    async with scene(1) as stage:
        connections = stage.gateway.server.server_state.connections
        async with client_that_has_asked(stage, connection):
            assert connections
            await until(lambda: not connections)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_slow_client_gets_all_of_its_answer(
    monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    """As long as it takes some."""
    monkeypatch.setattr(limited_protocol, "UNSENT_SECONDS", 0.5)
    async with scene(1) as stage, client_that_has_asked(stage, connection) as client:
        loop, received = asyncio.get_running_loop(), b""
        while not received.endswith(b"\r\n\r\n" + b"x" * 1_000_000):
            data = await loop.sock_recv(client, 32768)
            assert data
            received += data
            await asyncio.sleep(0.05)
