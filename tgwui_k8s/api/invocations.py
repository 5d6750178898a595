"""`POST /invocations`, SageMaker's only generation route.

The body decides whose words it is in: `messages` make it OpenAI's chat, `prompt` a completion,
both answered as on their own routes; `inputs` is LMI's schema, answered as JSON or JSON lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import describe_generation, off_the_loop_if_large
from tgwui_k8s.api.body import BODY_KEY, DEFINITIONS, describe_body, make_body, read_body
from tgwui_k8s.api.chat import answer_chat
from tgwui_k8s.api.completions import answer_completion, plan_completion
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.invocation_writer import InvocationWriter
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.invocations import (
    DEFAULT_MAX_NEW_TOKENS,
    InvocationAnswer,
    InvocationLine,
    InvocationParameters,
    InvocationRequest,
)
from tgwui_k8s.api.schemas.responses import ChatCompletion, ChatCompletionChunk, Completion
from tgwui_k8s.api.sse import JSON_LINES, GenerationResponse
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.api.translated_errors import FieldNames, naming_fields
from tgwui_k8s.errors import InvalidRequestError

ROUTE = "/invocations"

_SAMPLERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Giving one of these asks for sampling."""
FIELD_NAMES: FieldNames = {
    r"prompt": "inputs",
    r"model": "model",
    r"max_tokens": "parameters.max_new_tokens",
    r"ignore_eos": "parameters.ignore_eos_token",
    r"": "parameters.",
}
"""From the completion's fields to LMI's."""
_RENAMED = {"max_new_tokens": "max_tokens", "ignore_eos_token": "ignore_eos"}


class _Shape(msgspec.Struct):
    """What tells the bodies apart."""

    messages: msgspec.Raw | msgspec.UnsetType = UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = UNSET


def create_router(state: ServerState) -> APIRouter:
    """The route for whatever SageMaker's clients send."""
    router = APIRouter(tags=["SageMaker"])

    @router.post(
        ROUTE,
        summary="Go on from inputs, a prompt or messages",
        openapi_extra=_description(),
    )
    async def invoke(request: Request) -> Response:
        """LMI's schema; bodies of `/v1/completions` and `/v1/chat/completions` work, too."""
        arrival = time.monotonic()
        state.require_model()
        shape = _shape_of(await request.body())
        if shape.inputs is UNSET and shape.messages is not UNSET:
            chat = await read_body(request, ChatRequest)
            return await off_the_loop_if_large(request, answer_chat, chat, state, arrival)
        if shape.inputs is UNSET and shape.prompt is not UNSET:
            completion = await read_body(request, CompletionRequest)
            return await off_the_loop_if_large(
                request, answer_completion, completion, state, arrival
            )
        asked = await read_body(request, InvocationRequest)
        return await off_the_loop_if_large(request, answer_invocation, asked, state, arrival)

    return router


def answer_invocation(
    request: InvocationRequest, state: ServerState, arrival: float
) -> GenerationResponse:
    """The answer, ready to run; CPU work. Raises `RequestError` for what cannot be served."""
    refuse_unsupported(request)
    if request.stream and not isinstance(request.inputs, str):
        raise InvalidRequestError("Several inputs cannot be streamed: send one.", param="stream")
    plan = plan_invocation(request, state, arrival)
    writer = InvocationWriter(request, plan)
    return GenerationResponse(
        Generation(plan, state),
        writer,
        keep_alive_seconds=state.settings.server.sse_keep_alive_seconds if request.stream else None,
        ending=writer,
        framing=JSON_LINES,
    )


def plan_invocation(request: InvocationRequest, state: ServerState, arrival: float) -> Plan:
    """A completion per input. Raises `RequestError` for what cannot be served."""
    parameters = request.parameters or InvocationParameters()
    fields = completion_fields(parameters)
    fields["prompt"] = request.prompts
    fields["model"] = request.model
    if request.stream or parameters.details:
        can_tell = state.require_model(request.model).info.capabilities.logprobs
        fields["logprobs"] = 0 if can_tell else None
    with naming_fields(FIELD_NAMES):
        completion = make_body(fields, CompletionRequest)
        return replace(plan_completion(completion, state, arrival), route=ROUTE)


def completion_fields(parameters: InvocationParameters) -> dict[str, Any]:
    """The same wishes in the words of completions. Raises `InvalidRequestError`."""
    given = {
        name: value
        for name in parameters.model_fields_set
        if (value := getattr(parameters, name)) is not None
    }
    if "stop" in given and "stop_sequences" in given:
        raise InvalidRequestError(
            "'stop' and 'stop_sequences' are the same: send one of them.", param="parameters.stop"
        )
    fields: dict[str, Any] = {"max_tokens": DEFAULT_MAX_NEW_TOKENS}
    for name, value in given.items():
        if name in CompletionRequest.model_fields or name in _RENAMED:
            fields[_RENAMED.get(name, name)] = value
    if "stop_sequences" in given:
        fields["stop"] = given["stop_sequences"]
    fields.setdefault("do_sample", any(name in given for name in _SAMPLERS))
    return fields


def _description() -> dict[str, Any]:
    """`openapi_extra`: three bodies, each with its answer and its stream."""
    described = describe_generation(CompletionRequest, Completion, Completion)
    chat = describe_generation(ChatRequest, ChatCompletion, ChatCompletionChunk)
    own = describe_body(InvocationRequest)
    (answer, line), components = msgspec.json.schema_components(
        (InvocationAnswer | list[InvocationAnswer], InvocationLine),
        ref_template=DEFINITIONS + "{name}",
    )
    described["$defs"].update(chat["$defs"] | components)
    described[BODY_KEY] = own[BODY_KEY]
    described["requestBody"]["content"] = _any_of(
        item["requestBody"]["content"] for item in (own, described, chat)
    )
    lmi = {"application/json": {"schema": answer}, "application/jsonlines": {"schema": line}}
    answers = [lmi, *(item["responses"]["200"]["content"] for item in (described, chat))]
    described["responses"]["200"] = {
        "description": "The answer in the words of the request, or with `stream` its chunks.",
        "content": _any_of(answers),
    }
    return described


def _any_of(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """By content type: any of the schemas that it has."""
    schemas: dict[str, list[Any]] = {}
    for content in contents:
        for content_type, described in content.items():
            schemas.setdefault(content_type, []).append(described["schema"])
    return {content_type: {"schema": {"anyOf": found}} for content_type, found in schemas.items()}


def _shape_of(raw: bytes) -> _Shape:
    try:
        return msgspec.json.decode(raw, type=_Shape)
    except (msgspec.DecodeError, RecursionError):
        return _Shape()  # whoever reads the body says what is wrong with it
