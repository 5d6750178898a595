"""Frames on a Unix stream socket: how the API process and the engine process talk.

A frame is a length of four bytes, big-endian, and that many bytes of msgpack, decoded against the
union of message types of its direction. The engine's end blocks (`EngineChannel`), the API's lives
on the event loop (`ApiChannel`). When either process dies, the other sees the end of the stream at
once; nothing is dropped before that, a slow reader slows the writer down.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import msgspec

from tgwui_k8s.engine.messages import FromEngine, Shutdown, ToEngine
from tgwui_k8s.errors import TgwuiError

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Far above the largest honest message: prompt logprobs of a long prompt."""

_Message = TypeVar("_Message")

_HEADER_BYTES = 4
_READ_BYTES = 256 * 1024

logger = logging.getLogger(__name__)


class ChannelClosedError(TgwuiError):
    """The other process is gone, or has closed its end."""


class ChannelError(TgwuiError):
    """What arrived is no message: the processes do not speak the same version, or a bug."""


class FrameSplitter:
    """Cuts a stream of bytes into the payloads of its frames. Knows nothing of sockets."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Payloads completed by `data`. Raises `ChannelError` for a frame that is too large."""
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) >= start + _HEADER_BYTES:
            first = start + _HEADER_BYTES
            size = int.from_bytes(buffer[start:first], "big")
            if size > self._max_frame_bytes:
                raise ChannelError(f"a frame of {size} bytes exceeds {self._max_frame_bytes}")
            if len(buffer) < first + size:
                break
            start = first + size
            payloads.append(bytes(buffer[first:start]))
        if start:
            del buffer[:start]
        return payloads


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """The message as a frame. Raises `ChannelError` for one that is too large."""
    buffer = bytearray(_HEADER_BYTES)
    _encoder.encode_into(message, buffer, _HEADER_BYTES)
    size = len(buffer) - _HEADER_BYTES
    if size > MAX_FRAME_BYTES:
        raise ChannelError(f"a message of {size} bytes exceeds {MAX_FRAME_BYTES}")
    buffer[:_HEADER_BYTES] = size.to_bytes(_HEADER_BYTES, "big")
    return bytes(buffer)


class EngineChannel:
    """The engine's end. A thread of its own reads, so that a step never waits for the socket.

    Any thread may send; one thread takes what has arrived. The end of the stream, and what is no
    message, arrive as `Shutdown`: without an API process there is nothing left to do.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Takes over `connection`, a blocking one, and starts reading."""
        self._connection = connection
        self._lock = threading.Lock()
        self._inbox: SimpleQueue[ToEngine] = SimpleQueue()
        threading.Thread(target=self._read, name="channel", daemon=True).start()

    def send(self, message: FromEngine) -> None:
        """Send a message; waits while the other side does not read.

        Raises `ChannelClosedError`.
        """
        frame = encode_frame(message)
        try:
            with self._lock:
                self._connection.sendall(frame)
        except OSError as error:
            raise ChannelClosedError("the API process is gone") from error

    def receive(self) -> ToEngine:
        """The next message; waits for it."""
        return self._inbox.get()

    def drain(self, *, wait: bool) -> Iterator[ToEngine]:
        """Everything that has arrived; with `wait`, at least one message."""
        if wait:
            yield self._inbox.get()
        with suppress(Empty):
            while True:
                yield self._inbox.get_nowait()

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        splitter = FrameSplitter()
        # One buffer for good: one for each message, cut to its length, would leave holes in memory.
        buffer = memoryview(bytearray(_READ_BYTES))
        try:
            while num_bytes := self._connection.recv_into(buffer):
                for payload in splitter.feed(buffer[:num_bytes]):
                    self._inbox.put(_decode(_to_engine, payload))
        except ChannelError as error:
            logger.error("the engine cannot go on: %s", error)
        except OSError:
            pass
        finally:
            self._inbox.put(Shutdown())


class ApiChannel(asyncio.Protocol):
    """The API process's end, on its event loop.

    `on_message` is called for every message in order, `on_close` once and last: with the error
    where the stream broke or was no longer understood, with None where it ended.
    """

    def __init__(
        self,
        on_message: Callable[[FromEngine], None],
        on_close: Callable[[Exception | None], None],
    ) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._splitter = FrameSplitter()
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(
        cls,
        connection: socket.socket,
        on_message: Callable[[FromEngine], None],
        on_close: Callable[[Exception | None], None],
    ) -> ApiChannel:
        """Read from `connection` on the running loop; takes it over."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(
            lambda: cls(on_message, on_close), sock=connection
        )
        return channel

    def send(self, message: ToEngine) -> None:
        """Queue a message for sending; one for a process that is gone is dropped."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def close(self) -> None:
        """Close this end after what is queued has been sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        # uvloop's transports have asyncio's methods, but not its base classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        try:
            for payload in self._splitter.feed(data):
                self._on_message(_decode(_from_engine, payload))
        except ChannelError as error:
            self._error = error
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self._on_close(self._error or error)


def _decode(decoder: msgspec.msgpack.Decoder[_Message], payload: bytes) -> _Message:
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ChannelError(f"a frame of {len(payload)} bytes is no message: {error}") from error


_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
