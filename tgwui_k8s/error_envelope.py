"""Errors as HTTP: one table from error class to status, and an envelope around all of them.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

That is OpenAI's; routes that speak Anthropic's API answer in its own, from a table of its own:

    {"type": "error", "error": {"type": str, "message": str, "code": str | null}}

The `code` there is ours: a gateway decides by it.

The engine's API and the gateway answer from here alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from tgwui_k8s.errors import (
    AuthenticationError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitedError,
    RequestError,
    TgwuiError,
    UnavailableError,
)

STATUS_AND_TYPE: dict[type[TgwuiError], tuple[int, str]] = {
    InvalidRequestError: (400, "invalid_request_error"),
    AuthenticationError: (401, "invalid_request_error"),
    PermissionDeniedError: (403, "permission_error"),
    NotFoundError: (404, "invalid_request_error"),
    MethodNotAllowedError: (405, "invalid_request_error"),
    PayloadTooLargeError: (413, "invalid_request_error"),
    RateLimitedError: (429, "rate_limit_error"),
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
    RateLimitedError: (429, "rate_limit_error"),
    InternalError: (500, "api_error"),
    UnavailableError: (503, "overloaded_error"),
    OverloadedError: (529, "overloaded_error"),
    DeadlineExceededError: (504, "timeout_error"),
}
"""The same for Anthropic's API, which has a status of its own for a full queue."""

MAX_MESSAGE_CHARS = 1000


def status_of(error: RequestError) -> int:
    """The HTTP status of an error."""
    return _row(error, STATUS_AND_TYPE)[0]


def anthropic_status_of(error: RequestError) -> int:
    """The same on Anthropic's routes."""
    return _row(error, ANTHROPIC_STATUS_AND_TYPE)[0]


def envelope(error: RequestError) -> dict[str, dict[str, object]]:
    """OpenAI's envelope, as a JSON object."""
    return {
        "error": {
            "message": shorten(error.message, MAX_MESSAGE_CHARS),
            "type": _row(error, STATUS_AND_TYPE)[1],
            "param": error.param,
            "code": error.code,
            **error.details,
        }
    }


def anthropic_envelope(error: RequestError) -> dict[str, object]:
    """Anthropic's envelope, as a JSON object."""
    message = shorten(error.message, MAX_MESSAGE_CHARS)
    _, kind = _row(error, ANTHROPIC_STATUS_AND_TYPE)
    return {"type": "error", "error": {"type": kind, "message": message, "code": error.code}}


def error_headers(error: RequestError) -> dict[str, str]:
    """What clients act upon: when to come back, and whether to try again at all."""
    if isinstance(error, UnavailableError):
        return {"retry-after": str(error.retry_after_seconds)}
    if isinstance(error, RateLimitedError):
        retry = {} if error.is_retryable else {"x-should-retry": "false"}
        return {"retry-after": str(error.retry_after_seconds), **retry}
    is_final = isinstance(error, InternalError) and not error.retryable
    if is_final or isinstance(error, DeadlineExceededError):
        return {"x-should-retry": "false"}
    if isinstance(error, PayloadTooLargeError):
        # What is left of the body is not read, so nothing else can follow on this connection.
        return {"connection": "close"}
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    return {}


def shorten(text: str, max_chars: int) -> str:
    """The text, cut where it is longer than `max_chars`."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _row(error: RequestError, table: Mapping[type[TgwuiError], tuple[int, str]]) -> tuple[int, str]:
    for error_class in type(error).__mro__:
        if error_class in table:
            return table[error_class]
    return table[InternalError]
