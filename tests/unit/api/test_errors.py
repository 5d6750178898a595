"""Every error has one status and one shape."""

from __future__ import annotations

import inspect

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from httpx import ASGITransport, AsyncClient
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tgwui_k8s import errors
from tgwui_k8s.api.errors import (
    as_request_error,
    error_body,
    error_response,
    handle_error,
    http_error,
    without_folders,
)
from tgwui_k8s.error_envelope import (
    MAX_MESSAGE_CHARS,
    STATUS_AND_TYPE,
    anthropic_envelope,
    status_of,
)

REQUEST_ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.RequestError) and cls is not errors.RequestError
]


@pytest.mark.parametrize("error_class", REQUEST_ERRORS)
def test_every_request_error_has_a_row_in_the_table(error_class: type[errors.RequestError]) -> None:
    """No request error falls back to 500 by omission: an ancestor of its own is in the table."""
    rows = [ancestor for ancestor in error_class.__mro__ if ancestor in STATUS_AND_TYPE]
    assert rows, f"{error_class.__name__} has no status"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequestError("x"), 400, None),
        (errors.ContextLengthError("x"), 400, "context_length_exceeded"),
        (errors.UnsupportedParameterError("x"), 400, "unsupported_parameter"),
        (errors.AuthenticationError("x"), 401, "invalid_api_key"),
        (errors.PermissionDeniedError("x"), 403, "permission_denied"),
        (errors.NotFoundError("x", code="model_not_found"), 404, "model_not_found"),
        (errors.MethodNotAllowedError("x"), 405, "method_not_supported"),
        (errors.PayloadTooLargeError("x"), 413, "payload_too_large"),
        (errors.OverloadedError("x"), 503, "overloaded"),
        (errors.DrainingError("x"), 503, "draining"),
        (errors.ModelNotReadyError("x"), 503, "model_not_ready"),
        (errors.EngineUnavailableError("x"), 503, "engine_unavailable"),
        (errors.DeadlineExceededError("x"), 504, "deadline_exceeded"),
        (errors.InternalError("x"), 500, "internal_error"),
        (ZeroDivisionError("x"), 500, "internal_error"),
        (errors.IntegrityError("x"), 500, "internal_error"),
    ],
)
def test_errors_have_the_status_and_code_of_the_contract(
    error: Exception, status: int, code: str | None
) -> None:
    """The table of api.md, row by row."""
    assert status_of(as_request_error(error)) == status
    assert error_body(error)["error"]["code"] == code


def test_the_body_is_openais_envelope_with_details_beside() -> None:
    """All four members are always there, and an error's details stand next to them."""
    error = errors.ContextLengthError("too long", param="prompt", details={"n_ctx": 8})
    assert error_body(error) == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "context_length_exceeded",
            "n_ctx": 8,
        }
    }


def test_anthropics_envelope_has_the_code_beside_its_own_members() -> None:
    """A gateway tells by it which errors are worth another engine; clients leave it unread."""
    assert anthropic_envelope(errors.DrainingError("bye")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "bye", "code": "draining"},
    }


def test_messages_are_bounded() -> None:
    """A megabyte of message is cut."""
    message = error_body(errors.InvalidRequestError("x" * 1_000_000))["error"]["message"]
    assert len(str(message)) == MAX_MESSAGE_CHARS


def test_what_a_bug_says_stays_inside() -> None:
    """The text of an unexpected exception is for the log, not for clients."""
    assert "secret" not in str(error_body(RuntimeError("secret /etc/passwd")))


def test_a_bad_model_is_the_request_s_fault_and_shows_no_folders() -> None:
    """Loading over HTTP: the client learns which file is broken, not where it lies."""
    error = errors.BrokenModelError("/mnt/efs/models/llama/config.json is not JSON: line 1")
    body = error_body(error)["error"]
    assert body["message"] == "config.json is not JSON: line 1"
    assert status_of(as_request_error(error)) == 400


def test_a_model_that_is_not_there_is_a_404() -> None:
    """An unknown model over HTTP reads like an unknown model in a request."""
    body = error_body(errors.ModelNotFoundError("no model 'x'"))["error"]
    assert (body["param"], body["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /a/b/c.json.", "cannot read c.json."),
        ("'/a/b c/d' is broken", "'b c/d' is broken"),
        ("either/or stays, 1/2 too", "either/or stays, 1/2 too"),
        ("https://example.com/a/b stays", "https://example.com/a/b stays"),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, expected: str) -> None:
    """Only absolute paths are cut, and only up to their last part (a space ends a path)."""
    assert without_folders(text) == expected


def test_unavailable_says_when_to_come_back() -> None:
    """503 carries Retry-After in whole seconds."""
    response = error_response(errors.OverloadedError("full", retry_after_seconds=7))
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InternalError("x", retryable=False), "false"),
        (errors.InternalError("x"), None),
        (errors.OverloadedError("x"), None),
    ],
)
def test_clients_are_told_not_to_retry_what_would_fail_again(
    error: Exception, expected: str | None
) -> None:
    """The openai SDK obeys x-should-retry."""
    assert error_response(error).headers.get("x-should-retry") == expected


def _request(method: str, path: str) -> Request:
    return Request({"type": "http", "method": method, "path": path, "headers": []})


def test_an_unknown_route_is_named() -> None:
    """OpenAI's words for a path that does not exist."""
    error = http_error(HTTPException(404), _request("POST", "/v1/x"))
    assert (str(error), status_of(error)) == ("Invalid URL (POST /v1/x)", 404)


def test_a_long_path_is_not_repeated_in_full() -> None:
    """What clients send is cut before it is sent back."""
    error = http_error(HTTPException(404), _request("GET", "/" + "x" * 5000))
    assert len(str(error)) < 300


def test_a_wrong_method_is_a_405() -> None:
    """OpenAI's code for a method a route does not take."""
    error = http_error(HTTPException(405), _request("PUT", "/v1/models"))
    assert (status_of(error), error.code) == (405, "method_not_supported")


def test_an_error_wrapped_by_the_framework_keeps_its_status() -> None:
    """FastAPI turns what `receive` raises into a 400; the cause knows better."""
    wrapped = HTTPException(400, "There was an error parsing the body")
    wrapped.__cause__ = errors.PayloadTooLargeError("too large")
    assert status_of(http_error(wrapped, _request("POST", "/"))) == 413


async def test_a_wrong_query_parameter_is_a_400() -> None:
    """Parameters that FastAPI checks are refused in the same words as bodies."""
    app = FastAPI()
    app.add_exception_handler(RequestValidationError, handle_error)

    @app.get("/x")
    async def route(limit: int) -> int:
        return limit

    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
        answer = await client.get("/x?limit=many")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "limit", "invalid_value")
