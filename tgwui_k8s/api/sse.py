"""Answers to generation requests, written straight to ASGI: one JSON body, or server-sent events.

Both watch the client: when it goes away, the generation is aborted at once.

    data: {chunk}          one per choice that has news; all news of a moment in one write
    : keep-alive           while nothing flows
    data: {"error": …}     an error after the first byte; the stream ends with it
    data: [DONE]           the end of a complete stream
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.errors import error_body, remember_error
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.errors import RequestError
from tgwui_k8s.limited_protocol import CUT

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_JSON = (b"content-type", b"application/json")
_UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

logger = logging.getLogger(__name__)

_UNTAKEN_SECONDS = 10.0
"""So long after its deadline a client may take what is left of its answer."""

_encoder = msgspec.json.Encoder()


class AnswerWriter(Protocol):
    """Turns chunks into an endpoint's JSON."""

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """Server-sent events for what has come."""
        ...

    def last_events(self, generation: Generation) -> bytes:
        """What stands between the last chunk and `[DONE]`."""
        ...

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """The answer that is no stream; `choices` in order of their index."""
        ...


class WholeWriter:
    """Half of an `AnswerWriter`, for routes without streams."""

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """No streams, no events."""
        return b""

    def last_events(self, generation: Generation) -> bytes:
        """No streams, no events."""
        return b""


class StreamEnding(Protocol):
    """How an API ends its streams."""

    def done(self) -> bytes:
        """What stands after the last event of a complete stream."""
        ...

    def failed(self, error: BaseException) -> bytes:
        """What ends a stream that an error has cut short."""
        ...


@dataclass(frozen=True, slots=True)
class Framing:
    """What a stream is made of."""

    content_type: bytes
    keep_alive: bytes
    """What a silent stream says; nothing where every byte must mean something."""


EVENTS = Framing(b"text/event-stream; charset=utf-8", KEEP_ALIVE)
JSON_LINES = Framing(b"application/jsonlines", b"")


class OpenAIEnding:
    """An error envelope as an event, or `[DONE]`."""

    def done(self) -> bytes:
        """The stream is complete."""
        return DONE

    def failed(self, error: BaseException) -> bytes:
        """The stream is not."""
        return frame(error_body(error))


class Envelope:
    """All of a stream's chunk but the choice, encoded once."""

    def __init__(self, chunk: msgspec.Struct) -> None:
        """`chunk` has no choices."""
        head, _, tail = _encoder.encode(chunk).partition(b'"choices":[]')
        self._head = b"data: " + head + b'"choices":['
        self._tail = b"]" + tail + b"\n\n"

    def frame(self, choice: msgspec.Struct) -> bytes:
        """One event with this choice."""
        return self._head + _encoder.encode(choice) + self._tail


def frame(chunk: Any) -> bytes:
    """One event."""
    return b"data: " + _encoder.encode(chunk) + b"\n\n"


def named_frame(name: str, chunk: Any) -> bytes:
    """One event that has its name on a line of its own, too."""
    return b"event: " + name.encode() + b"\n" + frame(chunk)


class GenerationResponse(Response):
    """Runs a generation and answers with it.

    An error before the first byte is raised, for the application's error handlers.
    """

    def __init__(
        self,
        generation: Generation,
        writer: AnswerWriter,
        *,
        keep_alive_seconds: float | None,
        ending: StreamEnding | None = None,
        framing: Framing = EVENTS,
    ) -> None:
        """`keep_alive_seconds`: how long a stream may be silent; None for one JSON body.

        `ending` is OpenAI's unless it is given.
        """
        super().__init__()
        self._framing = framing
        self._ending = ending or OpenAIEnding()
        self._generation = generation
        self._writer = writer
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop as soon as the client is gone, or has long been due to have it all."""
        if self._keep_alive_seconds is None:
            answer = self._send_whole(send)
        else:
            answer = self._send_events(scope, send, self._keep_alive_seconds)
        with _cut_off_after(self._generation.remaining_seconds + _UNTAKEN_SECONDS, scope):
            await unless_gone(receive, answer)

    async def _send_whole(self, send: Send) -> None:
        choices: dict[int, ChoiceChunk] = {}
        async with self._generation as generation:
            async for chunks in generation:
                for chunk in chunks:
                    if chunk.index in choices:
                        choices[chunk.index].append(chunk)
                    else:
                        choices[chunk.index] = chunk
            body = self._writer.whole(generation, [choices[index] for index in sorted(choices)])
        await send_json(send, body)

    async def _send_events(self, scope: Scope, send: Send, keep_alive_seconds: float) -> None:
        stream = _EventStream(send, self._framing)
        ticker = _Ticker(self._generation, keep_alive_seconds)
        try:
            async with self._generation as generation:
                async for chunks in generation:
                    ticker.note_write()
                    await stream.write(
                        self._writer.events(generation, chunks)
                        if chunks
                        else self._framing.keep_alive
                    )
                last = self._writer.last_events(generation) + self._ending.done()
        except Exception as error:
            # Once the answer has begun, an error can only be said inside it.
            if not stream.has_started:
                raise
            if not isinstance(error, RequestError):
                logger.exception("a stream failed")
            remember_error(scope, error)
            last = self._ending.failed(error)
        finally:
            ticker.stop()
        await stream.write(last, is_last=True)


class _EventStream:
    """The wire: sends the headers with the first event."""

    __slots__ = ("_headers", "_send", "has_started")

    def __init__(self, send: Send, framing: Framing) -> None:
        self._send = send
        self._headers = [(b"content-type", framing.content_type), *_UNBUFFERED]
        self.has_started = False

    async def write(self, events: bytes, *, is_last: bool = False) -> None:
        if not self.has_started:
            self.has_started = True
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})


class _Ticker:
    """Wakes the reader of a silent generation, so that it can write a keep-alive."""

    def __init__(self, generation: Generation, seconds: float) -> None:
        self._generation = generation
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._tick)

    def note_write(self) -> None:
        self._last_write = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        # One timer that looks when it was needed last, instead of a new one per chunk.
        silent_seconds = self._loop.time() - self._last_write
        if silent_seconds >= self._seconds:
            self._generation.wake()
            silent_seconds = 0.0
        self._timer = self._loop.call_later(self._seconds - silent_seconds, self._tick)


async def send_json(send: Send, body: bytes) -> None:
    """A whole answer."""
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def _cut_off_after(seconds: float, scope: Scope) -> Iterator[None]:
    """End the connection where the block takes longer: whoever reads nothing stops the writer."""
    extension = scope.get("extensions", {}).get(CUT)
    if extension is None:
        yield
        return
    timer = asyncio.get_running_loop().call_later(seconds, extension["cut"])
    try:
        yield
    finally:
        timer.cancel()


async def unless_gone(receive: Receive, answer: Coroutine[Any, Any, None]) -> None:
    """Run `answer`; cancel it when the client disconnects. Raises what `answer` raises."""
    answering = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        for task in (answering, watching):
            task.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
        # A task that failed would hold its error, and the error this frame and all above it.
        del answering


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
