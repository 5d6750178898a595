"""`/openapi.json`, and `/docs`: a page that renders it without asking any other server.

FastAPI's own page loads Swagger from a CDN, which a pod without internet cannot reach. Both
documents are made once, in a thread, when somebody first asks.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from tgwui_k8s import __version__
from tgwui_k8s.api.body import BODY_KEY, DEFINITIONS, DEFINITIONS_KEY
from tgwui_k8s.api.plain_route import PlainRoute
from tgwui_k8s.error_envelope import ANTHROPIC_PATHS

PAGE = Path(__file__).with_name("docs.html")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

ANTHROPIC_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def _error_responses(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": DEFINITIONS + schema}}}
    return {
        "4XX": {"description": "The request must change first.", "content": content},
        "503": {"description": "Come back after `Retry-After`.", "content": content},
        "504": {"description": "The deadline has passed.", "content": content},
    }


ERROR_RESPONSES = _error_responses("Error")
ANTHROPIC_ERROR_RESPONSES = _error_responses("AnthropicError")
ANTHROPIC_ERROR_RESPONSES["529"] = {
    **ANTHROPIC_ERROR_RESPONSES["503"],
    "description": "The queue is full; come back after `Retry-After`.",
}

SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def create_routes(app: FastAPI) -> list[BaseRoute]:
    """Routes for the documents about `app`."""
    documents: dict[str, bytes] = {}

    async def openapi_json(request: Request) -> Response:
        """This interface as an OpenAPI document."""
        if "openapi" not in documents:
            documents["openapi"] = await run_sync(_encoded_openapi, app)
        return Response(documents["openapi"], media_type="application/json")

    async def docs(request: Request) -> Response:
        """This interface as a page to read."""
        if "page" not in documents:
            documents["page"] = await run_sync(PAGE.read_bytes)
        policy = {"content-security-policy": CONTENT_SECURITY_POLICY}
        return HTMLResponse(documents["page"], headers=policy)

    return [PlainRoute("/openapi.json", openapi_json), PlainRoute("/docs", docs)]


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, completed with bodies, errors, keys and plain routes."""
    document = get_openapi(
        title="tgwui-k8s",
        version=__version__,
        description="OpenAI's API with text-generation-webui's samplers. A field is honoured or "
        "refused with a 400 that names it, never ignored.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Error"] = ERROR_SCHEMA
    schemas["AnthropicError"] = ANTHROPIC_ERROR_SCHEMA
    components["securitySchemes"] = SECURITY_SCHEMES
    document["security"] = [{}, *({name: []} for name in SECURITY_SCHEMES)]
    bodies = []
    for path, operations in document["paths"].items():
        is_anthropic = path.startswith(ANTHROPIC_PATHS)
        errors = ANTHROPIC_ERROR_RESPONSES if is_anthropic else ERROR_RESPONSES
        for operation in operations.values():
            schemas.update(operation.pop(DEFINITIONS_KEY, {}))
            bodies.append(operation.pop(BODY_KEY, None))
            operation["responses"].pop("422", None)
            operation["responses"].update(errors)
    schemas.update(_body_schemas([name for name in bodies if name is not None]))
    # FastAPI describes its own answer to invalid requests, which is not ours.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["paths"].update(_plain_paths(app))
    return document


def _body_schemas(names: Iterable[str]) -> dict[str, Any]:
    """The schemas of bodies, given as `module:name`, and of everything inside them."""
    _, described = models_json_schema(
        [(pkgutil.resolve_name(name), "validation") for name in sorted(set(names))],
        ref_template=DEFINITIONS + "{model}",
    )
    definitions: dict[str, Any] = described["$defs"]
    return definitions


def _plain_paths(app: FastAPI) -> dict[str, Any]:
    """Probes and documents: routes that FastAPI knows nothing about."""
    responses = {"200": {"description": "Yes."}, **ERROR_RESPONSES}
    paths = {}
    for route in app.routes:
        if isinstance(route, PlainRoute):
            parameters = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in route.param_convertors
            ]
            operation = {
                "tags": ["operations"],
                "summary": route.endpoint.__doc__,
                "parameters": parameters,
                "responses": responses,
                "security": [],
            }
            paths[route.path_format] = {"get": operation}
    return paths


def _encoded_openapi(app: FastAPI) -> bytes:
    return msgspec.json.encode(openapi_document(app))
