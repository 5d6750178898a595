"""Events on their way from bytes to the client's connection."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from tests.helpers.gateway_calls import call_of
from tests.helpers.gateway_scene import chunk
from tgwui_k8s.gateway.body_writer import BODY_WRITER, BodyWriter
from tgwui_k8s.gateway.continuation.token_stream import TokenStream
from tgwui_k8s.gateway.downstream import ClientAnswer
from tgwui_k8s.gateway.event_pipe import EventPipe
from tgwui_k8s.gateway.failures import BrokenFramingError
from tgwui_k8s.gateway.streams import PlainStream, Stream

DONE = b"data: [DONE]\n\n"


class Attempt:
    """Counts what it is told."""

    num_events = 0
    num_bytes = 0

    def note_event(self) -> None:
        """A read with an event."""
        self.num_events += 1

    def note_bytes(self) -> None:
        """A read without one."""
        self.num_bytes += 1


class Connection:
    """The client's, transport and flow control in one."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write_paused = False
        self.is_closed = False

    def write(self, data: bytes) -> None:
        """To the client."""
        self.written.append(data)

    def is_closing(self) -> bool:
        """Whether the client has gone."""
        return self.is_closed


async def begun(connection: Connection) -> ClientAnswer:
    """An answer whose head has been sent."""

    async def send(message: MutableMapping[str, Any]) -> None:
        pass

    writer = BodyWriter(connection, connection)  # type: ignore[arg-type]
    answer = ClientAnswer({"extensions": {BODY_WRITER: {"writer": writer}}}, send, list)
    await answer.begin(200, [])
    return answer


def token_stream() -> TokenStream:
    """Of the engine's."""
    stream = TokenStream(call_of(b'{"prompt":"x","stream":true}'))
    stream.body()
    return stream


def plain_stream() -> PlainStream:
    """Of another engine's."""
    return PlainStream(call_of(b'{"prompt":"x","stream":true}'), has_done=True)


def pipe_of(answer: ClientAnswer, stream: Stream) -> EventPipe:
    """With nobody listening to what it notes."""
    return EventPipe(Attempt(), answer, stream)  # type: ignore[arg-type]


def unchunked(written: list[bytes]) -> bytes:
    """The body of what was written in HTTP's chunks."""
    body = b""
    for one in written:
        size, _, data = one.partition(b"\r\n")
        assert data[int(size, 16) :] == b"\r\n"
        body += data[:-2]
    return body


async def test_cuts_do_not_matter() -> None:
    """Events in two reads, cut at each of their bytes: the client sees the same."""
    texts = [chunk("ab", 0), chunk("cd", 2), chunk("ef", 4, finish="stop"), "[DONE]"]
    events = b": hello\n\n" + b"".join(f"data: {text}\n\n".encode() for text in texts)
    seen = set()
    for cut in range(len(events) + 1):
        connection, stream = Connection(), token_stream()
        pipe = pipe_of(await begun(connection), stream)
        is_flowing = [pipe.feed(piece) for piece in (events[:cut], events[cut:]) if piece]
        assert stream.is_complete
        assert not is_flowing[-1]
        seen.add(unchunked(connection.written) + pipe.take_held())
    (only,) = seen
    assert only.startswith(b": hello\n\n")
    assert only.endswith(DONE)
    assert only.count(b"data: ") == 4


async def test_a_read_is_a_write() -> None:
    """However many events it holds."""
    connection = Connection()
    pipe = pipe_of(await begun(connection), plain_stream())
    assert pipe.feed(b"data: 1\n\ndata: 2\n\n: c\n\nda")
    assert connection.written == [b"17\r\ndata: 1\n\ndata: 2\n\n: c\n\n\r\n"]
    assert pipe.has_rest


async def test_nothing_is_written_before_the_head() -> None:
    """The first events are held, for whoever can wait to send the head first."""
    connection = Connection()
    answer = await begun(connection)
    answer.status = None
    pipe = pipe_of(answer, plain_stream())
    assert pipe.feed(b"da")
    assert not pipe.feed(b"ta: 1\n\n")
    assert pipe.take_held() == b"data: 1\n\n"
    assert pipe.take_held() == b""
    assert connection.written == []


async def test_a_client_that_does_not_keep_up_is_waited_for() -> None:
    """What has been taken is written; then somebody must wait."""
    connection = Connection()
    connection.write_paused = True
    pipe = pipe_of(await begun(connection), plain_stream())
    assert not pipe.feed(b"data: 1\n\n")
    assert unchunked(connection.written) == b"data: 1\n\n"
    assert pipe.take_held() == b""


async def test_nothing_is_written_to_a_client_that_has_gone() -> None:
    """Whoever ends the call will come; until then events go nowhere."""
    connection = Connection()
    connection.is_closed = True
    assert pipe_of(await begun(connection), plain_stream()).feed(b"data: 1\n\n")
    assert connection.written == []


async def test_what_came_before_a_failure_is_held_and_then_the_failure_raised() -> None:
    """Once: the pipe keeps neither."""
    connection, stream = Connection(), token_stream()
    pipe = pipe_of(await begun(connection), stream)
    assert not pipe.feed(f"data: {chunk('ab', 0)}\n\ndata: nonsense\n\n".encode())
    assert b'"ab"' in pipe.take_held()
    with pytest.raises(BrokenFramingError):
        pipe.raise_failure()
    pipe.raise_failure()
    assert connection.written == []


async def test_an_error_of_ours_is_raised_too() -> None:
    """`feed` is called where nobody could catch it."""

    class Broken(PlainStream):
        def take(self, block: bytes) -> bytes:
            raise ZeroDivisionError

    pipe = pipe_of(await begun(Connection()), Broken(call_of(b"{}"), has_done=True))
    assert not pipe.feed(b"data: 1\n\n")
    with pytest.raises(ZeroDivisionError):
        pipe.raise_failure()


async def test_only_events_begin_the_time_between_them_anew() -> None:
    """Comments and parts of events show that the endpoint lives, not that it works."""
    attempt = Attempt()
    pipe = EventPipe(attempt, await begun(Connection()), plain_stream())  # type: ignore[arg-type]
    for data in (b": comment\n\n", b"data: ", b"1\n\n"):
        pipe.feed(data)
    assert (attempt.num_bytes, attempt.num_events) == (2, 1)
    assert pipe.brought_event
