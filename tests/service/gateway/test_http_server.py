"""The HTTP server's own limits, and connections that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from tests.helpers.gateway import until
from tests.helpers.gateway_scene import scene
from tgwui_k8s.gateway import http_server
from tgwui_k8s.gateway.failures import ConnectFailedError, PhaseTimeoutError
from tgwui_k8s.gateway.http_client import HttpClient, Origin


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nx-a: "])
async def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A client that connects and says nothing, or never finishes, holds no connection for long."""
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
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
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 1.0)
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
