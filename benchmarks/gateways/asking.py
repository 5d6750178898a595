"""Who asks: requests at a steady rate, as fast as they are answered, and streams."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httptools
import msgspec

from benchmarks.gateways.engine import MODEL

_PATH = "/v1/chat/completions"
_MARK = b'"content":"'


def request(port: int, *, num_chunks: int = 0, chunk_ms: float = 0) -> bytes:
    """A short request, or one for a stream."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How do models get on EFS?"}],
        "max_tokens": num_chunks or 10,
    }
    if num_chunks:
        body |= {"stream": True, "user": str(chunk_ms)}
    data = msgspec.json.encode(body)
    head = (
        f"POST {_PATH} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer none\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Connection(asyncio.Protocol):
    """Keeps alive; one request at a time. Notes how long each chunk was on its way."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        """Seconds from the writing of each chunk to its arrival here."""
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """There it is."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Too early, if somebody waits."""
        self._fail(ConnectionError("the connection was lost"))

    def data_received(self, data: bytes) -> None:
        """Some of an answer."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        """Nothing but 200 counts."""
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(ConnectionError(f"status {status}"))

    def on_body(self, data: bytes) -> None:
        """Chunks carry the time of their writing."""
        now, at = time.perf_counter_ns(), data.find(_MARK)
        while at >= 0:
            stamp = data[at + len(_MARK) : at + len(_MARK) + 24].split(b" ", 1)[0]
            if stamp.isdigit():
                self.delays.append((now - int(stamp)) / 1e9)
            at = data.find(_MARK, at + 1)

    def on_message_complete(self) -> None:
        """The whole answer."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def ask(self, data: bytes) -> None:
        """Send a request and wait for all of its answer. Raises `ConnectionError`."""
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        await self._done

    def close(self) -> None:
        """Cut it; who still waits for an answer waits no more."""
        if self._done is not None:
            self._done.cancel()
        self._done = None
        self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


async def connect(port: int) -> Connection:
    """A connection that is ready."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    return connection


async def at_a_rate(port: int, per_second: float, seconds: float) -> list[float]:
    """Latencies of short requests that begin at a steady rate, however long others take."""
    idle = [await connect(port) for _ in range(32)]
    latencies: list[float] = []
    data = request(port)

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await connect(port)
        await connection.ask(data)
        latencies.append(time.perf_counter() - due)
        idle.append(connection)

    tasks = []
    start = time.perf_counter()
    for number in range(int(per_second * seconds)):
        due = start + number / per_second
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.ensure_future(one(time.perf_counter())))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return latencies


async def flat_out(port: int, num_connections: int, seconds: float) -> int:
    """Short requests that were answered, each connection asking again at once."""
    data, end, answered = request(port), time.perf_counter() + seconds, 0

    async def keep_asking() -> None:
        nonlocal answered
        connection = await connect(port)
        while time.perf_counter() < end:
            await connection.ask(data)
            answered += 1
        connection.close()

    await asyncio.gather(*(keep_asking() for _ in range(num_connections)))
    return answered


async def streams(port: int, count: int, per_second: float, seconds: float) -> list[float]:
    """Delays of all chunks of streams that begin spread over one chunk's time."""
    data = request(port, num_chunks=int(per_second * seconds), chunk_ms=1000 / per_second)
    connections = [await connect(port) for _ in range(count)]

    async def one(number: int, connection: Connection) -> None:
        await asyncio.sleep(number / count / per_second)
        await connection.ask(data)

    await asyncio.gather(*(one(*pair) for pair in enumerate(connections)))
    for connection in connections:
        connection.close()
    return [delay for connection in connections for delay in connection.delays]


async def hold(port: int, count: int) -> list[Connection]:
    """Open streams with a chunk every five seconds; those that have had their first chunk."""
    data = request(port, num_chunks=100, chunk_ms=5000)
    connections = []
    for _ in range(count):
        connection = await connect(port)
        asyncio.ensure_future(connection.ask(data)).add_done_callback(_forget)
        connections.append(connection)
        if len(connections) % 50 == 0:
            await asyncio.sleep(0.05)
    for _ in range(300):
        if all(connection.delays for connection in connections):
            break
        await asyncio.sleep(0.1)
    return [connection for connection in connections if connection.delays]


def _forget(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
