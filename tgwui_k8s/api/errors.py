"""Every exception as the HTTP answer it deserves.

Everything that can go wrong becomes a `RequestError` first (`as_request_error`), so that there is
one way to render it (`tgwui_k8s.error_envelope`), for JSON answers and for errors inside a stream
alike. Messages name no folder; stacks go to the log only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from tgwui_k8s.error_envelope import (
    ANTHROPIC_PATHS,
    anthropic_envelope,
    anthropic_status_of,
    envelope,
    error_headers,
    status_of,
)
from tgwui_k8s.errors import (
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    PayloadTooLargeError,
    RequestError,
    StartupError,
    TgwuiError,
    UsageError,
)

_ERROR = "tgwui_k8s.error"
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


def error_body(error: BaseException) -> dict[str, dict[str, object]]:
    """OpenAI's envelope for any exception, as a JSON object."""
    return envelope(as_request_error(error))


def anthropic_error_body(error: BaseException) -> dict[str, object]:
    """Anthropic's envelope for any exception, as a JSON object."""
    return anthropic_envelope(as_request_error(error))


def error_response(
    error: BaseException, path: str = "", extra_headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The whole answer for an error, as the API at `path` says it."""
    request_error = as_request_error(error)
    headers = {**error_headers(request_error), **(extra_headers or {})}
    if path.startswith(ANTHROPIC_PATHS):
        status = anthropic_status_of(request_error)
        return JSONResponse(anthropic_envelope(request_error), status, headers)
    return JSONResponse(envelope(request_error), status_of(request_error), headers)


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler for every error that is somebody's, not a bug."""
    if not isinstance(error, HTTPException):
        remember_error(request.scope, error)
        return error_response(error, request.url.path)
    allowed = _allowed_methods(error)
    if allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers=allowed)
    told = http_error(error, request)
    remember_error(request.scope, told)
    return error_response(told, request.url.path, allowed)


def remember_error(scope: Scope, error: BaseException) -> None:
    """Leave an error that goes to a client in its request's scope, for `api.middleware`."""
    scope[_ERROR] = as_request_error(error)


def remembered_error(scope: Scope) -> RequestError | None:
    """The error that went to the client of this request; forgotten then.

    It holds the frames that it went through, and those hold the scope.
    """
    error: RequestError | None = scope.pop(_ERROR, None)
    return error


HANDLED: tuple[type[Exception], ...] = (
    TgwuiError,
    RequestValidationError,
    HTTPException,
)
"""What `create_app` routes to `handle_error`; the rest is a bug and `api.middleware` logs it."""


def without_folders(text: str) -> str:
    """Absolute paths cut down to their last part: clients need not know where files lie."""
    return _FOLDERS.sub("", text)


def _allowed_methods(error: HTTPException) -> dict[str, str]:
    """The `Allow` header of a 405; whatever takes GET takes HEAD here."""
    methods = (error.headers or {}).get("Allow", "").split(", ")
    if "GET" in methods and "HEAD" not in methods:
        methods.append("HEAD")
    return {"allow": ", ".join(methods)} if methods[0] else {}
