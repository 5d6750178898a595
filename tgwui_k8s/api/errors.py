"""Errors as HTTP: one table from error class to status, and an envelope around all of them.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

That is OpenAI's; routes that speak Anthropic's API answer in its own, from a table of its own:

    {"type": "error", "error": {"type": str, "message": str}}

Everything that can go wrong becomes a `RequestError` first (`as_request_error`), so that there is
one way to render it, for JSON answers and for errors inside a stream alike. Messages are bounded
and name no folder; stacks go to the log only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tgwui_k8s.errors import (
    AuthenticationError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RequestError,
    StartupError,
    TgwuiError,
    UnavailableError,
    UsageError,
)

STATUS_AND_TYPE: dict[type[TgwuiError], tuple[int, str]] = {
    InvalidRequestError: (400, "invalid_request_error"),
    AuthenticationError: (401, "invalid_request_error"),
    PermissionDeniedError: (403, "permission_error"),
    NotFoundError: (404, "invalid_request_error"),
    MethodNotAllowedError: (405, "invalid_request_error"),
    PayloadTooLargeError: (413, "invalid_request_error"),
    InternalError: (500, "server_error"),
    UnavailableError: (503, "server_error"),
    DeadlineExceededError: (504, "server_error"),
}
"""The status and OpenAI `type` of every error class; a subclass takes its nearest ancestor's."""

ANTHROPIC_PATHS = "/v1/messages"
"""Paths that begin like this have Anthropic's envelope and statuses."""

ANTHROPIC_STATUS_AND_TYPE: dict[type[TgwuiError], tuple[int, str]] = {
    InvalidRequestError: (400, "invalid_request_error"),
    AuthenticationError: (401, "authentication_error"),
    PermissionDeniedError: (403, "permission_error"),
    NotFoundError: (404, "not_found_error"),
    MethodNotAllowedError: (405, "invalid_request_error"),
    PayloadTooLargeError: (413, "request_too_large"),
    InternalError: (500, "api_error"),
    UnavailableError: (503, "overloaded_error"),
    OverloadedError: (529, "overloaded_error"),
    DeadlineExceededError: (504, "timeout_error"),
}
"""The same for Anthropic's API, which has a status of its own for a full queue."""

MAX_MESSAGE_CHARS = 1000

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])")


def as_request_error(error: BaseException) -> RequestError:
    """Say any exception in the words of this package; what is nobody else's fault is ours."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        return _about_parameter(error.errors()[0])
    if isinstance(error, ModelNotFoundError):
        return NotFoundError(without_folders(str(error)), param="model", code="model_not_found")
    if isinstance(error, (StartupError, UsageError)):
        return InvalidRequestError(without_folders(str(error)))
    if isinstance(error, ClientDisconnect):
        return InvalidRequestError("The connection was closed before the whole body had arrived.")
    return InternalError("The server had an error while processing your request.")


def _about_parameter(complaint: Mapping[str, Any]) -> InvalidRequestError:
    """A path or query parameter that FastAPI refused; bodies are `api.body`'s."""
    param = ".".join(str(part) for part in complaint["loc"][1:])[:200]
    return InvalidRequestError(
        f"Invalid '{param}': {complaint['msg']}.", param=param, code="invalid_value"
    )


def http_error(error: HTTPException, request: Request) -> RequestError:
    """The framework's own errors: no such route, wrong method; or what it has wrapped of ours."""
    if isinstance(error.__cause__, RequestError):
        return error.__cause__
    if error.status_code == 404:
        return NotFoundError(f"Invalid URL ({request.method} {request.url.path[:200]})")
    if error.status_code == 405:
        return MethodNotAllowedError(f"{request.method} is not accepted at this URL.")
    if error.status_code == 413:
        return PayloadTooLargeError("The request body is too large.")
    return InvalidRequestError(str(error.detail))


def status_of(error: RequestError) -> int:
    """The HTTP status of an error."""
    return _row(error)[0]


def error_body(error: BaseException) -> dict[str, dict[str, object]]:
    """OpenAI's envelope for an error, as a JSON object."""
    request_error = as_request_error(error)
    return {
        "error": {
            "message": shorten(request_error.message, MAX_MESSAGE_CHARS),
            "type": _row(request_error)[1],
            "param": request_error.param,
            "code": request_error.code,
            **request_error.details,
        }
    }


def anthropic_error_body(error: BaseException) -> dict[str, object]:
    """Anthropic's envelope for an error, as a JSON object."""
    request_error = as_request_error(error)
    message = shorten(request_error.message, MAX_MESSAGE_CHARS)
    _, kind = _row(request_error, ANTHROPIC_STATUS_AND_TYPE)
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_headers(error: RequestError) -> dict[str, str]:
    """What clients act upon: when to come back, and whether to try again at all."""
    if isinstance(error, UnavailableError):
        return {"retry-after": str(error.retry_after_seconds)}
    is_final = isinstance(error, InternalError) and not error.retryable
    if is_final or isinstance(error, DeadlineExceededError):
        return {"x-should-retry": "false"}
    if isinstance(error, PayloadTooLargeError):
        # What is left of the body is not read, so nothing else can follow on this connection.
        return {"connection": "close"}
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    return {}


def error_response(
    error: BaseException, path: str = "", extra_headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The whole answer for an error, as the API at `path` says it."""
    request_error = as_request_error(error)
    headers = {**error_headers(request_error), **(extra_headers or {})}
    if path.startswith(ANTHROPIC_PATHS):
        status, _ = _row(request_error, ANTHROPIC_STATUS_AND_TYPE)
        return JSONResponse(anthropic_error_body(request_error), status, headers)
    return JSONResponse(error_body(request_error), status_of(request_error), headers)


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler for every error that is somebody's, not a bug."""
    if not isinstance(error, HTTPException):
        return error_response(error, request.url.path)
    allowed = _allowed_methods(error)
    if allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers=allowed)
    return error_response(http_error(error, request), request.url.path, allowed)


HANDLED: tuple[type[Exception], ...] = (
    TgwuiError,
    RequestValidationError,
    HTTPException,
)
"""What `create_app` routes to `handle_error`; the rest is a bug and `api.middleware` logs it."""


def shorten(text: str, max_chars: int) -> str:
    """The text, cut where it is longer than `max_chars`."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def without_folders(text: str) -> str:
    """Absolute paths cut down to their last part: clients need not know where files lie."""
    return _FOLDERS.sub("", text)


def _allowed_methods(error: HTTPException) -> dict[str, str]:
    """The `Allow` header of a 405; whatever takes GET takes HEAD here."""
    methods = (error.headers or {}).get("Allow", "").split(", ")
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    return {"allow": ", ".join(methods)} if methods[0] else {}


def _row(
    error: RequestError, table: Mapping[type[TgwuiError], tuple[int, str]] = STATUS_AND_TYPE
) -> tuple[int, str]:
    for error_class in type(error).__mro__:
        if error_class in table:
            return table[error_class]
    return table[InternalError]
