"""Every answer that is not 2xx is OpenAI's envelope, whoever refuses."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.helpers.app_client import app_client
from tests.helpers.still_backend import make_state
from tgwui_k8s.api.app import create_app
from tgwui_k8s.errors import UsageError


def _error(answer: httpx.Response) -> dict[str, object]:
    """The error object; fails where the envelope is not exactly OpenAI's."""
    body = answer.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    assert isinstance(body["error"]["message"], str)
    assert "x-request-id" in answer.headers
    return body["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/x"),
        ("GET", "/"),
        ("GET", "/v1/models/"),
        ("GET", "/health/live/"),
        ("POST", "/v1/completions/"),
        ("DELETE", "/nothing"),
    ],
)
async def test_an_unknown_route_is_a_404(method: str, path: str) -> None:
    """With OpenAI's words; a slash at the end is another route, never a redirect."""
    async with app_client(make_state()) as client:
        answer = await client.request(method, path)
    error = _error(answer)
    assert answer.status_code == 404
    if path != "/v1/models/":
        assert error["message"] == f"Invalid URL ({method} {path})"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", {"POST"}),
        ("PUT", "/v1/chat/completions", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/still", {"GET", "HEAD"}),
        ("POST", "/health/ready", {"GET", "HEAD"}),
        ("PATCH", "/v1/internal/encode", {"POST"}),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_which_is_right(
    method: str, path: str, allowed: set[str]
) -> None:
    """Allow lists the methods of the route."""
    async with app_client(make_state()) as client:
        answer = await client.request(method, path)
    assert answer.status_code == 405
    assert _error(answer)["code"] == "method_not_supported"
    assert set(answer.headers["allow"].split(", ")) == allowed


async def test_options_says_what_is_allowed() -> None:
    """Asking is no error."""
    async with app_client(make_state()) as client:
        answer = await client.options("/v1/completions")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "POST", b"")


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
async def test_without_a_key_there_is_a_401(prefix: str) -> None:
    """Both prefixes are protected alike, unknown routes too."""
    async with app_client(make_state(api_key=("k",))) as client:
        for path in ("/models", "/completions", "/internal/encode", "/nothing"):
            answer = await client.post(prefix + path, json={})
            assert answer.status_code == 401
            assert _error(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_refused_requests_are_counted_by_the_route_they_were_for() -> None:
    """A wave of wrong keys shows where it broke."""
    state = make_state(api_key=("k",))
    async with app_client(state) as client:
        for path in ("/v1/completions", "/openai/v1/completions", "/nothing"):
            await client.post(path, json={})
    text = state.metrics.exposition()[0].decode()
    assert 'http_requests_total{code="401",route="/v1/completions"} 2.0' in text
    assert 'http_requests_total{code="401",route="other"} 1.0' in text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/internal/model/load",
        "/openai/v1/internal/model/load",
        "/llm/v1/internal/model/load",
        "/llm/openai/v1/internal/model/unload",
    ],
)
async def test_no_prefix_leads_around_the_admin_key(path: str) -> None:
    """The route that is checked is the route that is called."""
    state = make_state(api_key=("k",), admin_key=("root",), root_path="/llm")
    async with app_client(state, authorization="Bearer k") as client:
        answer = await client.post(path, json={})
    assert (answer.status_code, _error(answer)["code"]) == (403, "permission_denied")


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'"x"', b"", b"null", b"\xff", b"[" * 5000, b'{"a":}']
)
async def test_a_body_that_is_no_json_object_is_a_400(content: bytes) -> None:
    """Whatever the bytes."""
    async with app_client(make_state(), content_type="application/json") as client:
        answer = await client.post("/v1/completions", content=content)
    assert answer.status_code == 400
    assert _error(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_what_a_web_page_may_post_without_asking_is_refused(content_type: str) -> None:
    """A page in somebody's browser must not reach the server next to it (CSRF)."""
    async with app_client(make_state(), content_type=content_type) as client:
        answer = await client.post("/v1/completions", content=b'{"prompt": "x"}')
    assert answer.status_code == 400
    assert "Content-Type" in str(_error(answer)["message"])


async def test_a_large_body_is_a_413() -> None:
    """The cap is a setting."""
    async with app_client(make_state(max_body_bytes=100)) as client:
        answer = await client.post("/v1/completions", json={"prompt": "x" * 100})
    assert answer.status_code == 413
    _error(answer)


async def test_while_loading_generation_says_when_to_come_back() -> None:
    """503 with Retry-After, before the body is looked at."""
    async with app_client(make_state(is_loaded=False)) as client:
        for path in ("/v1/completions", "/v1/chat/completions", "/generate"):
            answer = await client.post(path, json={})
            assert answer.status_code == 503
            assert _error(answer)["code"] == "model_not_ready"
            assert int(answer.headers["retry-after"]) > 0


async def test_the_wrong_model_is_a_404() -> None:
    """On every route that takes a model's name."""
    bodies = {
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [5]},
        "/generate": {"prompt": "x"},
        "/v1/internal/chat-prompt": {"messages": [{"role": "user", "content": "x"}]},
    }
    async with app_client(make_state()) as client:
        for path, body in bodies.items():
            answer = await client.post(path, json={**body, "model": "other"})
            error = _error(answer)
            assert (path, answer.status_code) == (path, 404)
            assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_a_key_file_without_keys_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """An application that should be locked is never made open."""
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(UsageError):
        create_app(make_state(api_key_file=str(tmp_path / "keys")))
