"""One exchange with one endpoint, under the limits of its phases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.endpoint import EndpointState
from tgwui_k8s.gateway.failures import ConnectionLostError, Phase, PhaseTimeoutError
from tgwui_k8s.gateway.http_client import HttpClient
from tgwui_k8s.gateway.http_connection import Exchange
from tgwui_k8s.gateway.limits import Watchdog

SLOW_CLIENT = "slow_client"
"""Why a call's task is cancelled when its client lets the answer lie."""


class Attempt:
    """`async with Attempt(...) as attempt`: the head has come; the exchange is cut at the end."""

    def __init__(
        self, client: HttpClient, call: Call, state: EndpointState, request: bytes
    ) -> None:
        self._exchange: Exchange | None = None
        self._client = client
        self._call = call
        self._state = state
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._watchdog = Watchdog(self._expire)
        self._end: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Attempt:
        """Raises `ExchangeError`."""
        began = time.monotonic()
        try:
            await self._send(fresh=False)
            self._end = self._loop.call_later(
                self._call.deadline - began, self._expire, "total", self._call.limits.total
            )
            try:
                await self._head()
            except ConnectionLostError:
                if self.exchange.has_answer or not self.exchange.is_reused:
                    raise
                # A kept connection that the other side had closed meanwhile: nobody's failure.
                self._drop_exchange()
                await self._send(fresh=True)
                await self._head()
        except BaseException:
            self._close()
            self._watchdog.end()
            raise
        finally:
            self._call.endpoint_seconds += time.monotonic() - began
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._watchdog.end()

    @property
    def exchange(self) -> Exchange:
        """The exchange that is under way."""
        assert self._exchange is not None, "entered"  # noqa: S101
        return self._exchange

    async def read(self) -> bytes:
        """Some bytes of the body; nothing at its end. Raises `ExchangeError`."""
        data = await self.exchange.read()
        self.note_bytes()
        return data

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """See `Exchange.pour`."""
        return await self.exchange.pour(sink)

    def note_bytes(self) -> None:
        """The endpoint lives."""
        self._state.heard_time = self._loop.time()

    def note_event(self) -> None:
        """The engine works: the time between events begins anew."""
        self._state.heard_time = self._loop.time()
        self._watchdog.enter("between_chunks", self._call.limits.between_chunks)

    def await_rest(self, seconds: float) -> None:
        """All that matters has come."""
        self._watchdog.enter("between_chunks", seconds)

    def await_client(self, seconds: float) -> None:
        """The client is waited for, and not the endpoint, until `await_endpoint`."""
        self._watchdog.interrupt("client", seconds)

    def await_endpoint(self) -> None:
        """The endpoint is waited for again, with the time that it had left."""
        self._watchdog.resume()

    async def _send(self, *, fresh: bool) -> None:
        self._exchange = await self._client.start(
            self._state.endpoint.origin,
            self._request,
            connect_seconds=self._call.limits.connect,
            fresh=fresh,
        )
        self._state.exchanges.add(self._exchange)

    async def _head(self) -> None:
        limits = self._call.limits
        # Without a stream the first byte comes with the last token.
        seconds = limits.first_byte if self._call.is_stream else limits.total
        self._watchdog.enter("first_byte", seconds)
        await self.exchange.head()
        self.note_bytes()

    def _expire(self, phase: Phase, seconds: float) -> None:
        if phase == "client" and self._task is not None:
            self._call.cancel_reason = SLOW_CLIENT
            self._task.cancel()
        else:
            self.exchange.abort(PhaseTimeoutError(phase, seconds))

    def _close(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._drop_exchange()

    def _drop_exchange(self) -> None:
        self._watchdog.stop()
        if self._exchange is not None:
            self._state.exchanges.discard(self._exchange)
            self._exchange.abort()
