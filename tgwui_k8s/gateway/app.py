"""The gateway as an ASGI application: names requests, dispatches them, answers errors, logs.

No framework: there are two dozen paths, and what happens per request is what the gateway costs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from tgwui_k8s.error_envelope import (
    ANTHROPIC_PATHS,
    anthropic_envelope,
    anthropic_status_of,
    envelope,
    error_headers,
    status_of,
)
from tgwui_k8s.errors import (
    DrainingError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitedError,
    RequestError,
)
from tgwui_k8s.gateway.attempt import SLOW_CLIENT
from tgwui_k8s.gateway.call import Asked, Call, read_asked
from tgwui_k8s.gateway.downstream import JSON_HEADER, ClientAnswer
from tgwui_k8s.gateway.event_stream import frame
from tgwui_k8s.gateway.http_connection import Headers
from tgwui_k8s.gateway.keys import Keys, check_model
from tgwui_k8s.gateway.limits import Limits, limits_of
from tgwui_k8s.gateway.metrics import OTHER_MODEL, GatewayMetrics
from tgwui_k8s.gateway.quotas.meter import Meter
from tgwui_k8s.gateway.quotas.meters import Meters
from tgwui_k8s.gateway.relay import PassedOnError, Relay
from tgwui_k8s.gateway.routes import GENERATION_PATHS, OwnRoutes, Visit
from tgwui_k8s.gateway.tracing import CallSpan, Tracing
from tgwui_k8s.observability.log import event, request_id_var, trace_id_var
from tgwui_k8s.observability.records import CLIENT_CLOSED_REQUEST
from tgwui_k8s.observability.request_ids import request_id_of, trace_of

DRAINED = "drained"
"""Why calls are cancelled that a drain could not wait for."""

_QUIET_ROUTES = ("/health", "/metrics", "/ping")
_KSERVE_PREFIX = "/openai"
_SLACK_BYTES = 1024 * 1024
logger = logging.getLogger("tgwui_k8s.access")


class GatewayApp:
    """Used from one event loop."""

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        relay: Relay,
        own_routes: OwnRoutes,
        keys: Keys,
        meters: Meters,
        metrics: GatewayMetrics,
        tracing: Tracing,
        *,
        limits: Limits,
        longest_seconds: float,
        max_body_bytes: int,
    ) -> None:
        """`longest_seconds`: what a header may ask for at most."""
        self._relay = relay
        self._own_routes = own_routes
        self._keys = keys
        self._meters = meters
        self._metrics = metrics
        self._tracing = tracing
        self._limits = limits
        self._longest_seconds = longest_seconds
        self._max_body_bytes = max_body_bytes
        self._calls: dict[asyncio.Task[Any], Call] = {}
        self.is_draining = False

    @property
    def num_calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    def end_calls(self) -> None:
        """Give every call that is under way an error."""
        for task, call in self._calls.items():
            call.cancel_reason = DRAINED
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Never raises for what a client or an endpoint did."""
        if scope["type"] != "http":
            return
        request = _Request(scope, receive)
        answer = ClientAnswer(scope, send, partial(self._own_headers, request))
        try:
            await self._dispatch(request, answer)
        except RequestError as error:
            await _send_error(answer, error, request)
        except asyncio.CancelledError:
            await self._end_cancelled(request, answer)
        except Exception:
            logger.exception("a request failed")
            await _send_error(answer, InternalError("The gateway had an error."), request)
        finally:
            self._note_end(request, answer)

    async def _dispatch(self, request: _Request, answer: ClientAnswer) -> None:
        if request.path in GENERATION_PATHS:
            if request.method != "POST":
                raise MethodNotAllowedError(f"{request.method} is not accepted at this URL.")
            await self._relay_call(request, answer)
            return
        route = self._own_routes.find(request.path)
        if route is None:
            raise NotFoundError(f"Invalid URL ({request.method} {request.path[:200]})")
        request.route = route.name
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowedError(f"{request.method} is not accepted at this URL.")
        key = self._keys.check_route(request.path, request.headers)
        visit = Visit(request.path, request.headers, key)
        status, headers, body = route.answer(visit)
        await answer.whole(status, headers, b"" if request.method == "HEAD" else body)

    async def _relay_call(self, request: _Request, answer: ClientAnswer) -> None:
        request.route = request.path
        request.span = self._tracing.begin(request.path, request.trace_id, request.trace_parent)
        key = self._keys.check_route(request.path, request.headers)
        if self.is_draining:
            raise DrainingError("The gateway is shutting down.", retry_after_seconds=1)
        body = await request.body(self._max_body_bytes)
        asked = read_asked(body) if body else Asked()
        check_model(key, asked.model)
        call = Call(
            method="POST",
            path=request.path,
            query=request.query,
            headers=request.headers,
            body=body,
            asked=asked,
            limits=limits_of(request.headers, asked.timeout_s, self._limits, self._longest_seconds),
            arrival=request.arrival,
            request_id=request.request_id.decode(),
            trace_parent=request.span.trace_parent,
            key_name=key.name,
        )
        request.call = call
        request.meter = meter = self._meters.meter_of(key, call)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - we run in it
        self._calls[task] = call
        self._metrics.in_flight.inc()
        watcher = asyncio.ensure_future(_cancel_when_gone(request.receive, answer, task))
        try:
            if meter is not None:
                await meter.reserve()
            await self._relay.answer(call, answer)
        except RateLimitedError as error:
            self._metrics.count_rate_limited(key.name, error.limit)
            raise
        finally:
            if meter is not None:
                self._meters.settle_soon(meter, answer.status)
            watcher.cancel()
            del self._calls[task]
            self._metrics.in_flight.dec()

    async def _end_cancelled(self, request: _Request, answer: ClientAnswer) -> None:
        call = request.call
        if call is not None and call.cancel_reason == DRAINED and not answer.is_over:
            error = DrainingError("The gateway is shutting down and could not finish this request.")
            await _send_error(answer, error, request)
            return
        request.is_gone = not answer.is_over
        if call is not None and call.cancel_reason == SLOW_CLIENT:
            await answer.cut()

    def _own_headers(self, request: _Request) -> Headers:
        """What the gateway adds to an answer when it begins."""
        headers = [(b"x-request-id", request.request_id), (b"traceparent", request.trace_parent)]
        call = request.call
        if call is not None and call.endpoint_names:
            spent = time.monotonic() - request.arrival
            overhead = spent - call.wait_seconds - call.endpoint_seconds
            headers += [
                (b"x-gateway-endpoint", call.endpoint_names[-1].encode("ascii", "replace")),
                (b"x-gateway-overhead-ms", b"%.3f" % (max(0.0, overhead) * 1000)),
            ]
        if request.meter is not None:
            headers += request.meter.headers()
        if self.is_draining:  # The next request is to go to another replica.
            headers.append((b"connection", b"close"))
        return headers

    def _note_end(self, request: _Request, answer: ClientAnswer) -> None:
        now = time.monotonic()
        status = CLIENT_CLOSED_REQUEST if request.is_gone else answer.status
        status = status or CLIENT_CLOSED_REQUEST
        self._metrics.count_http_request(request.route, status)
        fields: dict[str, Any] = {
            "route": request.route,
            "method": request.method,
            "status": status,
            "duration_s": round(now - request.arrival, 6),
        }
        if request.call is not None:
            fields.update(self._note_call(request.call, answer, status, now))
        if request.span is not None:
            request.span.end(request.call, status)
        quiet = request.route.startswith(_QUIET_ROUTES)
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=event(**fields))

    def _note_call(
        self, call: Call, answer: ClientAnswer, status: int, now: float
    ) -> dict[str, Any]:
        """Metrics of a call; its fields of the log line."""
        model = call.served_model
        first_byte = answer.begin_time - call.arrival if answer.has_begun else None
        self._metrics.observe_call(model or OTHER_MODEL, status, now - call.arrival, first_byte)
        self._metrics.count_tokens(
            model or OTHER_MODEL, call.num_prompt_tokens, call.num_completion_tokens
        )
        fields: dict[str, Any] = {
            "model": model,
            "endpoint": call.endpoint_names[-1] if call.endpoint_names else None,
            "prompt_tokens": call.num_prompt_tokens,
            "completion_tokens": call.num_completion_tokens,
            "retries": call.num_retries,
            "continuations": call.num_continuations,
            "wait_s": round(call.wait_seconds, 6),
        }
        if first_byte is not None:
            overhead = max(0.0, first_byte - call.wait_seconds - call.endpoint_seconds)
            self._metrics.observe_overhead(overhead)
            fields |= {"ttfb_s": round(first_byte, 6), "overhead_s": round(overhead, 6)}
        if call.cancel_reason:
            fields["reason"] = call.cancel_reason
        if call.key_name:
            fields["key"] = call.key_name
        return fields


class _Request:
    """What ASGI hands over, in a form that is pleasant to use."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.receive = receive
        self.arrival = time.monotonic()
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = path.removeprefix(_KSERVE_PREFIX) if path.startswith("/openai/v1/") else path
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_of(self.headers.get(b"x-request-id"))
        self.trace_id, self.trace_parent = trace_of(self.headers.get(b"traceparent"))
        self.route = "other"
        self.call: Call | None = None
        self.meter: Meter | None = None
        self.span: CallSpan | None = None
        self.is_gone = False
        request_id_var.set(self.request_id.decode())
        trace_id_var.set(self.trace_id.decode())

    async def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises `RequestError`: too large, or never whole."""
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        message = await self.receive()
        parts: list[bytes] = []
        num_bytes = 0
        while message["type"] != "http.disconnect":
            parts.append(message.get("body", b""))
            num_bytes += len(parts[-1])
            if num_bytes > max_bytes:
                parts.clear()
            is_whole = not message.get("more_body")
            # A little too much is read to its end, so that the client gets to see the answer.
            if num_bytes > max_bytes + (0 if is_whole else _SLACK_BYTES):
                raise _too_large(max_bytes)
            if is_whole:
                return b"".join(parts)
            message = await self.receive()
        self.is_gone = True
        raise InvalidRequestError("The connection was closed before the body was complete.")


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The request body is too large. At most {max_bytes} bytes are accepted."
    )


async def _cancel_when_gone(
    receive: Receive, answer: ClientAnswer, task: asyncio.Task[Any]
) -> None:
    """Cancel the call when its client goes away: its endpoint stops within a step."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not answer.is_over:
        task.cancel()


async def _send_error(answer: ClientAnswer, error: RequestError, request: _Request) -> None:
    """The error as an answer, or as the last event of one that has begun; where there are no
    events, a broken connection says it."""
    if answer.is_over:
        return
    is_anthropic = request.path.startswith(ANTHROPIC_PATHS)
    if isinstance(error, PassedOnError):
        body = error.body
    else:
        body = msgspec.json.encode(anthropic_envelope(error) if is_anthropic else envelope(error))
    if answer.is_of_events:
        await _send_last_event(answer, body, is_anthropic=is_anthropic)
    elif answer.has_begun:
        await answer.cut()
    elif isinstance(error, PassedOnError):
        await answer.whole(error.status, error.headers, body)
    else:
        status = anthropic_status_of(error) if is_anthropic else status_of(error)
        headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
        await answer.whole(status, [JSON_HEADER, *headers], body)


async def _send_last_event(answer: ClientAnswer, body: bytes, *, is_anthropic: bool) -> None:
    """Without `[DONE]`: the client must not take what it has for the whole."""
    name = b"event: error\n" if is_anthropic else b""
    await answer.end(name + frame(body))
