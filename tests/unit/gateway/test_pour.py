"""A body that is poured: handed on in the turn in which it comes, whatever pieces it comes in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tgwui_k8s.gateway.failures import BrokenFramingError, ConnectionLostError
from tgwui_k8s.gateway.http_connection import MAX_BUFFERED_BYTES, Exchange, HttpConnection

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = [b"one", b"two", b"three"]
ANSWER = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in BODY) + b"0\r\n\r\n"


class Transport:
    """The endpoint's side, as far as a connection uses it."""

    is_reading = True
    is_closed = False

    def write(self, data: bytes) -> None:
        """A request; nobody reads it."""

    def is_closing(self) -> bool:
        """Whether it was cut."""
        return self.is_closed

    def abort(self) -> None:
        """Cut it."""
        self.is_closed = True

    def pause_reading(self) -> None:
        """Take nothing more."""
        self.is_reading = False

    def resume_reading(self) -> None:
        """Take more."""
        self.is_reading = True


class Sink:
    """Takes what it gets, and says False at every `patience`th piece."""

    def __init__(self, patience: int) -> None:
        self.pieces: list[bytes] = []
        self._patience = patience

    def feed(self, data: bytes) -> bool:
        """See `Exchange.pour`."""
        self.pieces.append(data)
        return len(self.pieces) % self._patience != 0


def connected() -> tuple[HttpConnection, Exchange, Transport]:
    """An exchange under way."""
    transport, connection = Transport(), HttpConnection(lambda connection: None)
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, connection.start(b""), transport


async def drink(exchange: Exchange, sink: Callable[[bytes], bool]) -> None:
    """Pour to the end."""
    await exchange.head()
    while await exchange.pour(sink):
        pass


@pytest.mark.parametrize("patience", [1, 2, 100])
async def test_cuts_do_not_matter(patience: int) -> None:
    """The answer in two pieces, cut at each of its bytes, also where the sink wants a pause: all
    of the body in its order, and then the end."""
    for cut in range(len(ANSWER) + 1):
        connection, exchange, _ = connected()
        sink = Sink(patience)
        task = asyncio.ensure_future(drink(exchange, sink.feed))
        for piece in (ANSWER[:cut], ANSWER[cut:]):
            connection.data_received(piece)
            await asyncio.sleep(0)
        await asyncio.wait_for(task, 5)
        assert b"".join(sink.pieces) == b"".join(BODY)


async def test_what_comes_in_one_turn_is_handed_on_once_and_at_once() -> None:
    """Three chunks in one read are one piece, and no task had to have its turn."""
    connection, exchange, _ = connected()
    sink = Sink(100)
    task = asyncio.ensure_future(drink(exchange, sink.feed))
    connection.data_received(HEAD)
    await asyncio.sleep(0.01)
    connection.data_received(ANSWER[len(HEAD) :])
    assert sink.pieces == [b"".join(BODY)]
    await asyncio.wait_for(task, 5)


async def test_what_comes_in_a_pause_is_kept_and_then_slows_the_sender_down() -> None:
    """Nobody pours between two calls: data waits, and with it the endpoint."""
    connection, exchange, transport = connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx")
    sink = Sink(1)
    assert await exchange.pour(sink.feed)
    connection.data_received(b"y" * MAX_BUFFERED_BYTES)
    assert transport.is_reading
    connection.data_received(b"z")
    assert not transport.is_reading
    assert await exchange.pour(sink.feed)
    assert transport.is_reading
    assert sink.pieces == [b"x", b"y" * MAX_BUFFERED_BYTES + b"z"]


@pytest.mark.parametrize("is_garbage", [False, True])
async def test_failures_come_after_what_came_before_them(is_garbage: bool) -> None:
    """The connection is lost, or says something that is not HTTP in the same turn as a chunk."""
    connection, exchange, _ = connected()
    sink = Sink(100)
    task = asyncio.ensure_future(drink(exchange, sink.feed))
    connection.data_received(HEAD)
    await asyncio.sleep(0.01)
    if is_garbage:
        connection.data_received(b"3\r\none\r\nnonsense\r\n")
    else:
        connection.data_received(b"3\r\none\r\n")
        connection.connection_lost(None)
    assert sink.pieces == [b"one"]
    with pytest.raises(BrokenFramingError if is_garbage else ConnectionLostError):
        await asyncio.wait_for(task, 5)


async def test_nobody_is_called_after_a_cancellation() -> None:
    """Who has stopped pouring gets nothing more."""
    connection, exchange, _ = connected()
    sink = Sink(100)
    task = asyncio.ensure_future(drink(exchange, sink.feed))
    connection.data_received(HEAD)
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait((task,))
    connection.data_received(b"3\r\none\r\n")
    assert sink.pieces == []
    assert await exchange.read() == b"one"
