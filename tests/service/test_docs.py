"""The interface describes itself, without asking any other server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.app_client import app_client
from tests.helpers.still_backend import make_state

ROUTES = {
    "/v1/completions": "post",
    "/v1/chat/completions": "post",
    "/v1/models": "get",
    "/v1/models/{model_id}": "get",
    "/tokenize": "post",
    "/detokenize": "post",
    "/generate": "post",
    "/v1/internal/encode": "post",
    "/v1/internal/decode": "post",
    "/v1/internal/token-count": "post",
    "/v1/internal/chat-prompt": "post",
    "/v1/embeddings": "post",
    "/v1/messages": "post",
    "/v1/messages/count_tokens": "post",
    "/v1/responses": "post",
    "/v1/internal/logits": "post",
    "/v1/internal/stop-generation": "post",
    "/v1/internal/health": "get",
    "/v1/internal/model/info": "get",
    "/v1/internal/model/list": "get",
    "/v1/internal/errors": "get",
    "/v1/internal/model/load": "post",
    "/v1/internal/model/unload": "post",
    "/v1/internal/lora/list": "get",
    "/v1/internal/lora/load": "post",
    "/v1/internal/lora/unload": "post",
    "/invocations": "post",
    "/ping": "get",
    "/health": "get",
    "/health/live": "get",
    "/health/ready": "get",
    "/health/startup": "get",
    "/metrics": "get",
    "/v2/health/live": "get",
    "/v2/health/ready": "get",
    "/v2/models/{model}/ready": "get",
    "/openapi.json": "get",
    "/docs": "get",
}


async def _document() -> dict[str, Any]:
    async with app_client(make_state()) as client:
        answer = await client.get("/openapi.json")
    return answer.json()  # type: ignore[no-any-return]


async def test_every_route_of_the_contract_is_described() -> None:
    """And none that the contract does not know."""
    described = {path: next(iter(about)) for path, about in (await _document())["paths"].items()}
    assert described == ROUTES


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in _references(item)]
    return (
        [found for item in value for found in _references(item)] if isinstance(value, list) else []
    )


async def test_every_reference_leads_somewhere() -> None:
    """No dangling schema, and no schemas left inside an operation."""
    document = await _document()
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert '"$defs"' not in str(document)


async def test_bodies_and_errors_are_described() -> None:
    """Clients and fuzzers know what to send and what may come back."""
    document = await _document()
    for path, method in ROUTES.items():
        operation = document["paths"][path][method]
        assert operation["summary"]
        if method == "post":
            assert {"4XX", "503", "504"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
        if method == "post" and path not in (
            "/v1/internal/stop-generation",
            "/v1/internal/model/unload",
        ):
            assert operation["requestBody"]["required"] is True


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_the_documentation_needs_no_key_and_no_other_server(path: str) -> None:
    """A pod has no internet, and a browser sends no key."""
    async with app_client(make_state(api_key=("k",))) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    if path == "/docs":
        assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
