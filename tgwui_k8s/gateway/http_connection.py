"""One HTTP/1.1 connection to an endpoint: an asyncio protocol around httptools' parser.

Written here, not taken from a client library, for three things that a relay lives on: it costs
half of what the fastest kept client costs, it knows exactly how far an exchange had come when it
broke, and it slows the sender down instead of buffering without end (docs/decisions/0023).

    connection = ...create_connection(HttpConnection, host, port)
    exchange = connection.start(b"POST /v1/completions HTTP/1.1\\r\\n…")
    await exchange.head()              status and headers; errors so far were before the first byte
    while data := await exchange.read():
        ...
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

from tgwui_k8s.gateway.failures import BrokenFramingError, ConnectionLostError, ExchangeError

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order they came."""

MAX_BUFFERED_BYTES = 256 * 1024
"""The kernel's turn: beyond this, reading from the endpoint stops until somebody takes data."""

MAX_HEAD_BYTES = 64 * 1024
MAX_NUM_HEADERS = 200

_GIVEN_UP = "the exchange was given up"
_NO_BODY = frozenset({204, 304})
_SWITCHING_PROTOCOLS = 101


class Exchange:
    """One request and what comes back. Read by one task."""

    __slots__ = (
        "_buffered", "_chunks", "_connection", "_error", "_has_failed", "_is_complete", "_loop",
        "_reader", "_sink", "has_answer", "headers", "is_reused", "status",
    )  # fmt: skip

    def __init__(self, connection: HttpConnection, *, is_reused: bool) -> None:
        self.status = 0
        """0 until the head has come."""
        self.headers: Headers = []
        self.is_reused = is_reused
        """The connection has served other exchanges before: it may have been closed meanwhile."""
        self.has_answer = False
        """At least a byte of the answer has come."""
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._has_failed = False
        self._error: ExchangeError | None = None
        self._is_complete = False
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name."""
        return next((value for key, value in self.headers if key == name), None)

    async def head(self) -> None:
        """Wait for status and headers. Raises `ExchangeError`."""
        while not self.status:
            if self._has_failed:
                raise self._take_error()
            await self._wait()

    async def read(self) -> bytes:
        """Some bytes of the body as soon as there are any; nothing at its end.

        Raises `ExchangeError`, but only after all that had come before it.
        """
        while not self._chunks:
            if self._has_failed:
                raise self._take_error()
            if self._is_complete:
                return b""
            await self._wait()
        return self._take()

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand the body to `sink` as it comes, until it says False: then True; False at the end.

        `sink` is called in the turn in which data arrives, without one of this task's; it must not
        raise. Raises `ExchangeError`, but only after all that had come before it.
        """
        if self._chunks and not sink(self._take()):
            return True
        self._sink = sink
        try:
            while self._sink is sink:
                if self._has_failed:
                    raise self._take_error()
                if self._is_complete:
                    return False
                await self._wait()
        finally:
            self._sink = None
        return True

    async def read_all(self, max_bytes: int) -> bytes:
        """The whole body. Raises `ExchangeError`, also for a longer one."""
        parts, num_bytes = [], 0
        while data := await self.read():
            parts.append(data)
            num_bytes += len(data)
            if num_bytes > max_bytes:
                error = BrokenFramingError(f"the answer is longer than {max_bytes} bytes")
                self.abort(error)
                raise error
        return b"".join(parts)

    def abort(self, error: ExchangeError | None = None) -> None:
        """Give the answer up: the connection is cut, so that the endpoint notices at once."""
        if not self._is_complete and not self._has_failed:
            self.fail(error or ConnectionLostError(_GIVEN_UP))
            self._wake()
        self._connection.release(self)

    def _take_error(self) -> ExchangeError:
        """Not kept once raised: it holds the frames it passes, and they hold this exchange."""
        error, self._error = self._error, None
        return error or ConnectionLostError(_GIVEN_UP)

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._buffered > MAX_BUFFERED_BYTES:
            self._connection.resume_reading()
        self._buffered = 0
        return data

    async def _wait(self) -> None:
        self._reader = self._loop.create_future()
        await self._reader

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # -- what the connection tells ------------------------------------------------------------

    def begin(self, status: int, headers: Headers) -> None:
        """The head is there."""
        self.status = status
        self.headers = headers

    def feed(self, data: bytes) -> bool:
        """Some of the body; False when the sender should pause."""
        self._chunks.append(data)
        self._buffered += len(data)
        return self._buffered <= MAX_BUFFERED_BYTES

    def complete(self) -> None:
        """That was the whole body."""
        self._is_complete = True

    def fail(self, error: ExchangeError) -> None:
        """Nothing more will come."""
        if not self._is_complete and not self._has_failed:
            self._has_failed = True
            self._error = error

    def deliver(self) -> None:
        """Nothing more comes in this turn: whoever waits gets what there is."""
        if self._sink is not None and self._chunks:
            if self._sink(self._take()):
                if not self._is_complete and not self._has_failed:
                    return
            else:
                self._sink = None
        self._wake()


class HttpConnection(asyncio.Protocol):
    """Serves one exchange after the other; `on_free` hears when the next may begin, or never."""

    def __init__(self, on_free: Callable[[HttpConnection], None]) -> None:
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._num_exchanges = 0
        self._parser: Any = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._body_ends_with_connection = False
        self._keeps_alive = True
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """True while another exchange can be tried on it."""
        transport = self._transport
        return self._exchange is None and transport is not None and not transport.is_closing()

    def start(self, request: bytes) -> Exchange:
        """Send a request, whole; its exchange is to be read."""
        assert self._exchange is None, "one exchange at a time"  # noqa: S101
        assert self._transport is not None, "connected"  # noqa: S101
        exchange = Exchange(self, is_reused=self._num_exchanges > 0)
        self._exchange = exchange
        self._num_exchanges += 1
        self._parser = httptools.HttpResponseParser(self)
        self._headers = []
        self._head_bytes = 0
        self._body_ends_with_connection = False
        self._transport.write(request)
        return exchange

    def release(self, exchange: Exchange) -> None:
        """Whoever read `exchange` wants no more of it: an unfinished one ends the connection."""
        if self._exchange is exchange:
            self._exchange = None
            self.close()

    def resume_reading(self) -> None:
        """Take data again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Cut the connection, whatever was still to be written."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer; those that nobody has asked for end the connection."""
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        self._head_bytes += len(data)
        exchange.has_answer = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(BrokenFramingError(f"the answer is not HTTP: {error}"))
        else:
            if self._exchange is not None and not exchange.status:
                self._check_head()
        exchange.deliver()

    def eof_received(self) -> None:
        """The endpoint sends no more; `connection_lost` follows."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone: where the body has no other end, this was its end."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if error is None and self._body_ends_with_connection:
                exchange.complete()
            else:
                exchange.fail(ConnectionLostError("the connection was lost"))
            exchange.deliver()
        self._parser = None  # It knows us, and we know it.
        self._on_free(self)

    # -- httptools ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for must not be taken for the next one's."""
        if self._exchange is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The whole head."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == _SWITCHING_PROTOCOLS:
                self._break(BrokenFramingError("the endpoint switched protocols unasked"))
            return
        names = {name for name, _ in self._headers}
        has_end = bool({b"content-length", b"transfer-encoding"} & names) or status in _NO_BODY
        self._body_ends_with_connection = not has_end
        self._keeps_alive = has_end and self._parser.should_keep_alive()
        if self._exchange is not None:
            self._exchange.begin(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        if self._exchange is not None and not self._exchange.feed(data):
            assert self._transport is not None  # noqa: S101
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The whole answer, or one of the interim ones that come before it."""
        exchange = self._exchange
        if exchange is None or not exchange.status:
            self._headers = []
            return
        self._exchange = None
        exchange.complete()
        if self._keeps_alive and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._on_free(self)
        else:
            self.close()

    # -- details ------------------------------------------------------------------------------

    def _check_head(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_NUM_HEADERS:
            self._break(BrokenFramingError("the head of the answer is too large"))

    def _break(self, error: ExchangeError) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail(error)
        self.close()
