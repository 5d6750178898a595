"""Reads a request's JSON body into its schema, and says so in the OpenAPI document.

Not FastAPI's own way, for two reasons: a large body must not be parsed on the event loop, which
answers the probes, and pydantic's strict mode needs to know that the data is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from tgwui_k8s.api.validation import MALFORMED_JSON, first_complaint
from tgwui_k8s.errors import InvalidRequestError

Schema = TypeVar("Schema", bound=BaseModel)

LARGE_BODY_BYTES = 32 * 1024
"""Bodies from this size on are parsed in a thread; smaller ones take well below a millisecond."""

MAX_ARRAY_ITEMS = 500_000
"""Commas outside strings. pydantic holds the interpreter's lock while it validates, and for this
many items that is 0.1 s: the longest that one body may keep everything else waiting."""

MAX_OBJECT_KEYS = 20_000
"""Colons outside strings. Every unknown key is a complaint of its own to make."""

DEFINITIONS = "#/components/schemas/"

BODY_KEY = "x-body"
"""In a route's `openapi_extra`: the body's class, as `module:name`."""
DEFINITIONS_KEY = "$defs"
"""In a route's `openapi_extra`: schemas it refers to."""


async def read_body(request: Request, schema: type[Schema]) -> Schema:
    """The body as an instance of `schema`.

    Raises `InvalidRequestError` in OpenAI's words: not JSON, no object, a wrong or unknown field.
    """
    _require_json(request)
    raw = await request.body()
    if len(raw) < LARGE_BODY_BYTES:
        return parse_body(raw, schema)
    return await run_sync(parse_body, raw, schema)


def parse_body(raw: bytes, schema: type[Schema]) -> Schema:
    """`raw` as an instance of `schema`. Raises `InvalidRequestError`."""
    _check_size(raw)
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequestError(MALFORMED_JSON) from None
    raise first_complaint(complaints, body)


def make_body(fields: Mapping[str, Any], schema: type[Schema]) -> Schema:
    """An instance of `schema` made of another API's request. Raises `InvalidRequestError`."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
    raise first_complaint(complaints, fields)


def _check_size(raw: bytes) -> None:
    """Refuse a body of more values than any request has, before anything is made of them."""
    if raw.count(b",") <= MAX_ARRAY_ITEMS and raw.count(b":") <= MAX_OBJECT_KEYS:
        return
    # Text has commas and colons, too. Between unescaped quotes is text, the rest is structure.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * MAX_ARRAY_ITEMS:
        raise _too_many_values()
    structure = b"".join(plain.split(b'"')[::2])
    if structure.count(b",") > MAX_ARRAY_ITEMS or structure.count(b":") > MAX_OBJECT_KEYS:
        raise _too_many_values()


def _too_many_values() -> InvalidRequestError:
    return InvalidRequestError(
        f"The request body has too many values: at most {MAX_ARRAY_ITEMS} array items and "
        f"{MAX_OBJECT_KEYS} object members are accepted."
    )


def describe_body(schema: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body with `read_body`.

    It only names the schema: making it takes 20 ms, which the start of the server has no time
    for. `api.docs` does so when somebody asks for the document.
    """
    content = {"application/json": {"schema": {"$ref": DEFINITIONS + schema.__name__}}}
    return {
        "requestBody": {"required": True, "content": content},
        BODY_KEY: f"{schema.__module__}:{schema.__qualname__}",
        DEFINITIONS_KEY: {},
    }


def _require_json(request: Request) -> None:
    """Refuse what a web page may post without asking: forms and plain text (CSRF)."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise InvalidRequestError(
            "The request must have the header 'Content-Type: application/json'."
        )
