"""What the page's port says while the page itself does not answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import uvloop

from tgwui_k8s.listener import address_of, bind
from tgwui_k8s.ui import waiting_room
from tgwui_k8s.ui.waiting_room import WaitingRoom

BROWSER = {"accept": "text/html,application/xhtml+xml"}


@asynccontextmanager
async def open_room() -> AsyncIterator[tuple[WaitingRoom, httpx.AsyncClient]]:
    """A room on a port of its own, and who comes there."""
    with bind("127.0.0.1", 0) as listener:
        room = WaitingRoom(listener)
        await room.open()
        url = address_of(listener)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            yield room, client
        room.close()


async def answer_once(listener: socket.socket) -> asyncio.Server:
    """The page, as far as the port is concerned."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = int(request.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
        body = await reader.readexactly(length)
        told = request.split(b"\r\n")[0] + b" " + body
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(told) + told)
        writer.close()

    return await asyncio.start_server(answer, sock=listener.dup())


async def test_a_person_is_told_at_once() -> None:
    """A page that asks again by itself, in both languages; an honest status for monitors."""
    async with open_room() as (_, visitor):
        answer = await visitor.get("/webui/?x=1", headers=BROWSER)

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert 'http-equiv="refresh"' in answer.text
        assert "The page is starting" in answer.text
        assert "页面正在启动" in answer.text
        assert answer.headers["cache-control"] == "no-store"


async def test_what_an_open_page_asks_waits_and_is_asked_again() -> None:
    """Below whatever prefix, with its query, method and body; however large that is."""
    body = b"x" * 3_000_000
    async with open_room() as (room, visitor):
        asked = asyncio.create_task(
            visitor.post("/page/api/v1/chat/completions?a=b/c", content=body)
        )
        await asyncio.sleep(0.1)
        assert not asked.done()
        page = await answer_once(room.listener)
        room.close()
        answer = await asked

        assert (answer.status_code, answer.headers["location"]) == (307, "./completions?a=b/c")
        assert answer.next_request is not None
        again = await visitor.send(answer.next_request)
        assert again.content == b"POST /page/api/v1/chat/completions?a=b/c HTTP/1.1 " + body
        page.close()


@pytest.mark.parametrize("limit", ["PATIENCE_SECONDS", "MOST_WAITING"])
async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Nor do more than there is room for."""
    monkeypatch.setattr(waiting_room, limit, 0)
    async with open_room() as (_, visitor):
        answer = await visitor.get("/page/static/main.js")

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["error"]["code"] == "page_starting"


def test_it_opens_again() -> None:
    """After the page has answered, and died; on the server's own event loop."""

    async def visit() -> list[int]:
        async with open_room() as (room, visitor):
            room.close()
            page = await answer_once(room.listener)
            while_it_lives = await visitor.get("/", headers=BROWSER)
            page.close()
            await room.open()
            afterwards = await visitor.get("/", headers=BROWSER)
            return [while_it_lives.status_code, afterwards.status_code]

    assert uvloop.run(visit()) == [200, 503]


@pytest.mark.parametrize("said", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n", b"x" * 100_000])
async def test_what_is_no_http_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Garbage, half a request, a head without an end."""
    monkeypatch.setattr(waiting_room, "_HEAD_SECONDS", 0.2)
    async with open_room() as (room, _):
        host, port = room.listener.getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(said)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
