"""What the answers of both generation endpoints have in common, and how OpenAPI describes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from anyio.to_thread import run_sync
from pydantic import BaseModel
from starlette.requests import Request

from tgwui_k8s.api.body import DEFINITIONS, LARGE_BODY_BYTES, describe_body
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.errors import InvalidRequestError

Result = TypeVar("Result")

_GRAMMAR_FIELDS = frozenset(
    {
        "grammar_string",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "output_config",
        "response_format",
        "text",
        "thinking",
        "thinking_token_budget",
        "tools",
    }
)
"""Of any API's requests: with one of these there may be a grammar to compile."""


def new_response_id(prefix: str) -> str:
    """An id no other response has."""
    return f"{prefix}{uuid4().hex}"


def answer_head(response_id: str, model: ServedModel) -> dict[str, Any]:
    """The members that are the same in an answer and in every chunk of it."""
    return {
        "id": response_id,
        "created": int(time.time()),
        "model": model.names[0],
        "system_fingerprint": model.info.fingerprint,
    }


def extensions(plan: Plan, chunk: ChoiceChunk) -> dict[str, Any]:
    """With `return_token_ids`: the members of a choice that let it be resumed elsewhere."""
    members: dict[str, Any] = {
        "token_ids": chunk.token_ids,
        "text_offset": chunk.text_offset,
        "text_length": len(chunk.text),
    }
    prompt_index, place = divmod(chunk.index, plan.num_choices)
    if chunk.is_first and place == 0:
        members["prompt_token_ids"] = list(plan.requests[prompt_index].prompt_token_ids)
    return members


def check_stream_options(request: GenerationFields) -> None:
    """Raise `InvalidRequestError` for stream options without a stream."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
            code="invalid_value",
        )


def wants_usage(request: GenerationFields) -> bool:
    """True when the stream shall end with the usage."""
    return request.stream_options is not None and request.stream_options.include_usage is True


async def off_the_loop_if_large(
    request: Request, work: Callable[..., Result], asked: Any, *args: Any
) -> Result:
    """Do `work` for a request that has been read: in a thread where it may take long.

    `asked`: what is worked on; of a request as its schema, the fields that were given count.
    """
    fields = asked.model_fields_set if isinstance(asked, BaseModel) else ()
    if len(await request.body()) < LARGE_BODY_BYTES and _GRAMMAR_FIELDS.isdisjoint(fields):
        return work(asked, *args)
    return await run_sync(work, asked, *args)


def describe_answer(schema: type[BaseModel], answer: type[msgspec.Struct]) -> dict[str, Any]:
    """`openapi_extra` of a route that answers with one JSON object: its body and its answer."""
    described = describe_body(schema)
    (answer_schema,), components = msgspec.json.schema_components(
        (answer,), ref_template=DEFINITIONS + "{name}"
    )
    described["$defs"].update(components)
    content = {"application/json": {"schema": answer_schema}}
    described["responses"] = {"200": {"description": "The answer.", "content": content}}
    return described


def describe_generation(
    schema: type[BaseModel], answer: type[msgspec.Struct], chunk: Any, *, has_done: bool = True
) -> dict[str, Any]:
    """`openapi_extra` of a generation route: its body, its answer, and its stream.

    `chunk` is a struct, or a union of them; `has_done`: the stream ends with `[DONE]`.
    """
    described = describe_body(schema)
    (answer_schema, chunk_schema), components = msgspec.json.schema_components(
        (answer, chunk), ref_template=DEFINITIONS + "{name}"
    )
    chunk_text = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [chunk_schema, {"$ref": DEFINITIONS + "Error"}]},
    }
    # The schema of one event, as OpenAPI 3.2 describes event streams.
    event = {
        "type": "object",
        "description": "A chunk, an error that ends the stream, or its regular end.",
        "required": ["data"],
        "properties": {"data": {"anyOf": [chunk_text, {"const": "[DONE]"}]}}
        if has_done
        else {"data": chunk_text, "event": {"type": "string"}},
    }
    described["$defs"].update(components)
    described["responses"] = {
        "200": {
            "description": "The answer, or with `stream` its chunks as server-sent events.",
            "content": {
                "application/json": {"schema": answer_schema},
                "text/event-stream": {"schema": event},
            },
        }
    }
    return described
