"""What happens to every request before and after its route, as plain ASGI.

    CORS                      where an origin is configured (Starlette's)
    └── RequestMiddleware     path prefix, request id, trace, errors, access log, counters
        └── Authentication
            └── BodyLimit
                └── routes

Nothing here runs per chunk of a stream but one function call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgwui_k8s.api.errors import error_response, remember_error, remembered_error
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.error_envelope import status_of
from tgwui_k8s.errors import PayloadTooLargeError, TgwuiError
from tgwui_k8s.observability.log import event, request_id_var, trace_id_var
from tgwui_k8s.observability.records import CLIENT_CLOSED_REQUEST
from tgwui_k8s.observability.request_ids import request_id_of, trace_of

GENERATION_PATHS = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
        "/generate",
        "/invocations",
    }
)
"""Routes that generate: what autoscalers count and what a drain waits for."""

QUIET_ROUTES = ("/health", "/metrics", "/ping", "/v2/health/", "/v2/models/")
"""Routes that are asked every few seconds: their access lines are for `--log-level debug`."""

UNKNOWN_ROUTE = "other"
"""The label of every path that is not ours: clients must not be able to invent labels."""

_KSERVE_PREFIX = "/openai"
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})

logger = logging.getLogger("tgwui_k8s.access")


class RequestMiddleware:
    """Names a request, answers for whatever goes wrong in it, logs and counts it."""

    def __init__(
        self, app: ASGIApp, state: ServerState, routes: Collection[str] = frozenset()
    ) -> None:
        """`routes`: paths of ours, to name a request by that never reached its route."""
        self._app = app
        self._state = state
        self._routes = routes
        self._root_path = state.settings.server.root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Never raises for an answer that had not begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._without_prefixes(scope)
        answer = _Answer(send, scope)
        is_generation = scope["path"] in GENERATION_PATHS and scope["method"] == "POST"
        if is_generation:
            self._state.num_active_requests += 1
            self._state.metrics.count_generation_request()
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            pass  # It left while it was sending: nobody is there to answer.
        except Exception as error:
            if not isinstance(error, TgwuiError):
                logger.exception("a request failed")
            remember_error(scope, error)
            if answer.status is not None:
                # Too late for an answer: the server must cut the connection, so that the client
                # does not take what it has for the whole.
                raise
            await error_response(error, scope["path"])(scope, receive, answer.send)
        finally:
            if is_generation:
                self._state.num_active_requests -= 1
            self._finish(scope, answer)

    def _without_prefixes(self, scope: Scope) -> Scope:
        """The scope as the routes know it: proxies' and KServe's prefixes are gone, HEAD is GET."""
        path = scope["path"]
        if self._root_path and path.startswith(self._root_path + "/"):
            path = path[len(self._root_path) :]
        if path.startswith("/openai/v1/"):
            path = path[len(_KSERVE_PREFIX) :]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return {**scope, "path": path, "method": method, "root_path": ""}

    def _finish(self, scope: Scope, answer: _Answer) -> None:
        route = getattr(scope.get("route"), "path", None) or self._name(scope["path"])
        status = answer.status or CLIENT_CLOSED_REQUEST
        self._state.metrics.count_http_request(route, status)
        is_quiet = route.startswith(QUIET_ROUTES)
        error = remembered_error(scope)
        if error is not None and not is_quiet:
            told = status if status >= 400 else status_of(error)
            self._state.recent_errors.note(route, told, error, answer.request_id)
        level = logging.DEBUG if is_quiet else logging.INFO
        if logger.isEnabledFor(level):
            seconds = round(time.perf_counter() - answer.started, 6)
            fields = event(route=route, method=scope["method"], status=status, duration_s=seconds)
            logger.log(level, "request", extra=fields)

    def _name(self, path: str) -> str:
        return path if path in self._routes else UNKNOWN_ROUTE


class _Answer:
    """What goes back to the client: adds its identifying headers and remembers the status."""

    __slots__ = ("_headers", "_send", "request_id", "started", "status")

    def __init__(self, send: Send, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.status: int | None = None
        self._send = send
        request_id, traceparent = _identify(scope)
        self.request_id = request_id.decode()
        self._headers = ((b"x-request-id", request_id), (b"traceparent", traceparent))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)


class BodyLimit:
    """Refuses bodies over the cap: by their declared length, or as soon as they get there."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `PayloadTooLargeError`, here or from within `receive`."""
        if scope["type"] != "http" or scope["method"] not in _BODY_METHODS:
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> PayloadTooLargeError:
        return PayloadTooLargeError(
            f"The request body is too large. At most {self._max_bytes} bytes are accepted."
        )


def _identify(scope: Scope) -> tuple[bytes, bytes]:
    """The request's id and trace context, the client's where they are sane, new ones otherwise.

    Both go into the log context of this request's task.
    """
    request_id = request_id_of(_header(scope, b"x-request-id"))
    trace_id, traceparent = trace_of(_header(scope, b"traceparent"))
    request_id_var.set(request_id.decode())
    trace_id_var.set(trace_id.decode())
    return request_id, traceparent


def _header(scope: Scope, name: bytes) -> bytes | None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for key, value in headers if key == name), None)
