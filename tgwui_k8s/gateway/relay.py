"""A call's life between client and endpoints.

    place ─► send ─► head ─┬─► answer in one piece ─► client
      ▲                    └─► events ─► stream ─► client ──┐
      │                                                     │
      └── lost, refused, overloaded, silent: try again, or go on where the stream broke off

Until the client has a byte, everything is tried again. After that only a stream that can continue
is; the client never sees the seam, or it sees an error event and no `[DONE]`. An answer that is no
stream of events has no place for an error: its connection is cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tgwui_k8s.errors import (
    DeadlineExceededError,
    EngineUnavailableError,
    RequestError,
    StreamInterruptedError,
)
from tgwui_k8s.gateway.admission import Admission, Lease
from tgwui_k8s.gateway.attempt import Attempt
from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.continuation.journal import NotContinuableError
from tgwui_k8s.gateway.continuation.token_stream import TokenStream
from tgwui_k8s.gateway.dialects import DIALECTS, dialects_for
from tgwui_k8s.gateway.dialects.base import Dialect
from tgwui_k8s.gateway.downstream import ClientAnswer, SignsOfLife
from tgwui_k8s.gateway.endpoint import DialectName, EndpointState
from tgwui_k8s.gateway.event_pipe import EventPipe
from tgwui_k8s.gateway.failures import (
    BrokenFramingError,
    ConnectFailedError,
    ConnectionLostError,
    EndpointError,
    ExchangeError,
    PhaseTimeoutError,
)
from tgwui_k8s.gateway.headers import to_client, to_endpoint
from tgwui_k8s.gateway.http_client import HttpClient, request_bytes
from tgwui_k8s.gateway.http_connection import Exchange
from tgwui_k8s.gateway.metrics import GatewayMetrics
from tgwui_k8s.gateway.retry import (
    RetryBudget,
    backoff_seconds,
    is_endpoints_fault,
    is_retryable,
)
from tgwui_k8s.gateway.streams import Stream, usage_in
from tgwui_k8s.observability.log import event

MAX_HELD_BYTES = 1024 * 1024
"""Of an answer in one piece: so much is held back until it is complete and can no longer fail."""

_MAX_ERROR_BYTES = 64 * 1024
_MAX_TRANSLATED_BYTES = 16 * 1024 * 1024
_LAST_READ_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How hard the relay tries."""

    max_retries: int = 3
    """Per call, before the first byte. Connections that fail do not count: nothing was sent."""
    max_continuations: int = 3
    """Per call, of attempts that an endpoint had taken up: a request that kills engines must not
    kill them all."""
    client_stall_seconds: float = 60.0
    """A client that takes nothing for so long is cut off."""
    keep_alive_seconds: float = 15.0
    """A stream that waits for an endpoint says so, so that nobody closes it for silence."""
    max_budget: float = 200.0
    """Retries that may be due at once, of all calls: one engine's death takes all of its along."""


@dataclass(slots=True)
class _Progress:
    """How far a call has come over its attempts."""

    stream: Stream | None = None
    tried: set[str] = field(default_factory=set)
    num_tries: int = 0
    was_taken_up: bool = False
    """The last attempt's endpoint had begun to answer it."""
    has_written: bool = False
    """The client has a part of an answer that is no stream of events."""

    @property
    def is_committed(self) -> bool:
        """The client has a part of the answer that cannot be taken back."""
        return self.has_written or (self.stream is not None and self.stream.has_delivered)

    @property
    def can_continue(self) -> bool:
        """Another endpoint can go on where the answer broke off."""
        return isinstance(self.stream, TokenStream) and not self.has_written


class Relay:
    """Used from one event loop."""

    def __init__(
        self,
        client: HttpClient,
        admission: Admission,
        metrics: GatewayMetrics,
        limits: RelayLimits,
        *,
        endpoint_key: Callable[[], bytes | None] = lambda: None,
        random: Random | None = None,
    ) -> None:
        """`endpoint_key`: what endpoints get in place of the client's key."""
        self._client = client
        self._admission = admission
        self._metrics = metrics
        self._limits = limits
        self._endpoint_key = endpoint_key
        self._random = random or Random()  # noqa: S311 - spreads retries
        self._budget = RetryBudget(limits.max_budget)

    async def answer(self, call: Call, answer: ClientAnswer) -> None:
        """Answer the call. Raises `RequestError`; where the answer has begun, it ends with it."""
        self._budget.note_request()
        progress = _Progress()
        routes = dialects_for(call.path)
        while True:
            dialects: frozenset[DialectName] = routes
            if progress.is_committed:
                dialects = frozenset({"tgwui"})
            lease = await self._place(call, answer, progress, dialects)
            state = lease.state
            try:
                await self._attempt(call, lease, answer, progress)
                state.breaker.succeed()
                return
            except ExchangeError as error:
                self._note_failure(call, state, error)
                # Without its frames, which hold the call, which holds it.
                failure = error.with_traceback(None)
            except BaseException:
                state.breaker.give_up()
                raise
            finally:
                lease.release()
            progress.tried.add(state.endpoint.uid)
            if await self._has_only_lost_its_end(answer, progress):
                return
            await self._prepare_next(call, failure, answer, progress, dialects)

    async def _place(
        self,
        call: Call,
        answer: ClientAnswer,
        progress: _Progress,
        dialects: frozenset[DialectName],
    ) -> Lease:
        """Wait for an endpoint. A stream that has begun shows meanwhile that it lives."""
        is_begun = progress.is_committed
        try:
            with SignsOfLife(answer, self._limits.keep_alive_seconds):
                return await self._admission.place(
                    call, progress.tried, dialects, is_begun=is_begun
                )
        except RequestError:
            if not is_begun:
                raise
        raise self._interrupted(call)

    # -- one attempt --------------------------------------------------------------------------

    async def _attempt(
        self, call: Call, lease: Lease, answer: ClientAnswer, progress: _Progress
    ) -> None:
        state = lease.state
        dialect = DIALECTS[state.dialect or "tgwui"]
        progress.was_taken_up = False
        if call.is_stream and not progress.is_committed:
            progress.stream = dialect.new_stream(call)
        target, body = dialect.request(call, progress.stream)
        headers = to_endpoint(
            call.headers,
            request_id=call.request_id,
            trace_parent=call.trace_parent,
            key=self._endpoint_key(),
        )
        request = request_bytes(call.method, target, state.endpoint.origin, headers, body)
        async with Attempt(self._client, call, state, request) as attempt:
            exchange = attempt.exchange
            if exchange.status >= 400:
                raise await _endpoint_error(exchange, dialect)
            progress.was_taken_up = True
            content_type = exchange.header(b"content-type") or b""
            if content_type.startswith(b"text/event-stream") and progress.stream is not None:
                await self._relay_events(attempt, answer, progress.stream)
            elif answer.has_begun:
                raise BrokenFramingError("the endpoint went on with something that is no stream")
            else:
                await self._relay_whole(call, attempt, answer, progress, dialect)

    async def _relay_whole(
        self,
        call: Call,
        attempt: Attempt,
        answer: ClientAnswer,
        progress: _Progress,
        dialect: Dialect,
    ) -> None:
        """An answer that is not of events. Large ones flow through once they are too large to hold,
        and streams, such as SageMaker's lines of JSON, as they come."""
        exchange = attempt.exchange
        headers = to_client(exchange.headers)
        held: list[bytes] = []
        num_bytes = 0
        max_held_bytes = 0 if call.is_stream else MAX_HELD_BYTES
        while data := await attempt.read():
            held.append(data)
            num_bytes += len(data)
            if num_bytes > _MAX_TRANSLATED_BYTES and dialect.translates:
                raise BrokenFramingError("the answer is too long")
            if num_bytes > max_held_bytes and not answer.has_begun and not dialect.translates:
                progress.has_written = True
                await answer.begin(exchange.status, headers)
            if answer.has_begun:
                attempt.await_client(self._limits.client_stall_seconds)
                await answer.write(b"".join(held))
                held.clear()
                attempt.note_event()
        attempt.await_client(self._limits.client_stall_seconds)
        if answer.has_begun:
            await answer.end()
        else:
            body = dialect.answer(call, exchange.status, b"".join(held))
            call.note_usage(usage_in(body))
            await answer.whole(exchange.status, headers, body)

    async def _relay_events(self, attempt: Attempt, answer: ClientAnswer, stream: Stream) -> None:
        pipe = EventPipe(attempt, answer, stream)
        stall_seconds = self._limits.client_stall_seconds
        while await attempt.pour(pipe.feed) and not stream.is_complete:
            attempt.await_client(stall_seconds)
            held = pipe.take_held()
            if held and not answer.has_begun:
                await answer.begin_events()
            if answer.has_begun:
                await answer.write(held)
            pipe.raise_failure()
            if pipe.brought_event:
                attempt.note_event()
            else:
                attempt.await_endpoint()
        if stream.is_complete:
            last: bytes | None = pipe.take_held()
        else:
            last = None if pipe.has_rest else stream.finish()
        if last is None:
            raise ConnectionLostError("the stream ended too early")
        attempt.await_client(stall_seconds)
        if not answer.has_begun:
            await answer.begin_events()
        await answer.end(last)
        await _read_to_the_end(attempt)

    # -- what comes after a failure -----------------------------------------------------------

    async def _has_only_lost_its_end(self, answer: ClientAnswer, progress: _Progress) -> bool:
        """Where nothing but `[DONE]` is missing, it is said here."""
        stream = progress.stream
        if stream is None or not stream.has_delivered or not progress.can_continue:
            return False
        last = stream.finish()
        if last is not None:
            await answer.end(last)
        return last is not None

    async def _prepare_next(
        self,
        call: Call,
        error: ExchangeError,
        answer: ClientAnswer,
        progress: _Progress,
        dialects: frozenset[DialectName],
    ) -> None:
        """Return when the next attempt may begin; raise the `RequestError` that ends the call."""
        if not is_retryable(error):
            raise self._final_error(call, error, is_begun=answer.has_begun)
        may_go_on = self._may_continue if progress.is_committed else self._may_retry
        if not may_go_on(call, error, progress):
            raise self._final_error(call, error, is_begun=answer.has_begun)
        if progress.is_committed and progress.was_taken_up:
            self._note_continuation(call, error)
            return
        call.num_retries += 1
        self._metrics.count_retry(error.reason)
        if not self._admission.has_other(call, progress.tried, dialects):
            # Everybody has been tried: give them time, and then all may be tried again.
            with SignsOfLife(answer, self._limits.keep_alive_seconds):
                await self._back_off(call, error)
            progress.tried.clear()
            is_late = time.monotonic() >= call.deadline
            if call.waited_at_a_stretch > self._admission.queue_seconds or is_late:
                raise self._final_error(call, error, is_begun=answer.has_begun)

    def _may_retry(self, call: Call, error: ExchangeError, progress: _Progress) -> bool:
        if isinstance(error, ConnectFailedError):
            return True
        progress.num_tries += 1
        has_tries = progress.num_tries <= self._limits.max_retries
        return has_tries and self._budget.take(time.monotonic())

    def _may_continue(self, call: Call, error: ExchangeError, progress: _Progress) -> bool:
        if not progress.can_continue or isinstance(error, NotContinuableError):
            return False
        # Where nobody has taken it up, only time is lost.
        return not progress.was_taken_up or call.num_continuations < self._limits.max_continuations

    def _note_continuation(self, call: Call, error: ExchangeError) -> None:
        call.num_continuations += 1
        call.waited_before = call.wait_seconds
        self._metrics.count_continuation(call.served_model, error.reason)
        logger.warning(
            "stream continues elsewhere",
            extra=event(
                endpoint=call.endpoint_names[-1],
                reason=error.reason,
                num_continuations=call.num_continuations,
            ),
        )

    async def _back_off(self, call: Call, error: ExchangeError) -> None:
        seconds = backoff_seconds(call.num_retries, error, self._random)
        seconds = min(seconds, max(0.0, call.deadline - time.monotonic()))
        call.wait_seconds += seconds
        await asyncio.sleep(seconds)

    def _final_error(self, call: Call, error: ExchangeError, *, is_begun: bool) -> RequestError:
        """What the client is told in the end."""
        if isinstance(error, PhaseTimeoutError) and error.phase == "total":
            return DeadlineExceededError("The request did not finish in time.")
        if isinstance(error, EndpointError) and not (is_begun and is_retryable(error)):
            return PassedOnError(error)
        if is_begun:
            return self._interrupted(call)
        if isinstance(error, PhaseTimeoutError):
            return DeadlineExceededError("No engine answered in time.")
        return EngineUnavailableError("The engine was lost before it answered.")

    def _interrupted(self, call: Call) -> StreamInterruptedError:
        self._metrics.count_interruption(call.served_model)
        return StreamInterruptedError(
            "The engine that served this stream was lost, and no other could go on with it."
        )

    def _note_failure(self, call: Call, state: EndpointState, error: ExchangeError) -> None:
        call.failures.append((state.name, error.reason))
        state.num_failures += 1
        state.last_error = str(error)
        if isinstance(error, EndpointError) and error.says_not_ready:
            # Nothing more until its monitor hears otherwise: where it is the only one, tries that
            # follow one another would be used up before its engine runs again.
            state.is_ready = False
        if is_endpoints_fault(error):
            state.breaker.fail(asyncio.get_running_loop().time())
        else:
            state.breaker.give_up()
        self._metrics.count_failure(error.reason)
        logger.info("attempt failed", extra=event(endpoint=state.name, reason=error.reason))


class PassedOnError(RequestError):
    """An endpoint's own error answer, for the client to see as it is."""

    def __init__(self, error: EndpointError) -> None:
        super().__init__(str(error))
        self.status = error.status
        self.headers = error.headers
        self.body = error.body


async def _endpoint_error(exchange: Exchange, dialect: Dialect) -> EndpointError:
    status, body = dialect.error(exchange.status, await exchange.read_all(_MAX_ERROR_BYTES))
    retry_after = exchange.header(b"retry-after") or b""
    # It was asked because it had the model: it has lost it, or is another engine by now.
    has_lost_model = status == 404 and b'"model_not_found"' in body
    is_worth_a_try = status == 500 and exchange.header(b"x-should-retry") != b"false"
    return EndpointError(
        status,
        body,
        headers=to_client(exchange.headers),
        retry_after_seconds=float(retry_after) if retry_after.isdigit() else None,
        is_retryable=has_lost_model or is_worth_a_try,
    )


async def _read_to_the_end(attempt: Attempt) -> None:
    """The last bytes of the framing, so that the connection can be used again."""
    attempt.await_rest(_LAST_READ_SECONDS)
    try:
        while await attempt.read():
            pass
    except ExchangeError:
        return  # The client has everything.
