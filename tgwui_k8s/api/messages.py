"""Anthropic's API: `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import describe_generation, off_the_loop_if_large
from tgwui_k8s.api.body import describe_body, read_body
from tgwui_k8s.api.chat import plan_chat
from tgwui_k8s.api.chat_prompt import chat_prompt, template_of
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.message_writer import MessageWriter
from tgwui_k8s.api.messages_prompt import FIELD_NAMES, chat_request
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.schemas.message_answer import AnswerMessage, StreamEvent, TokenCount
from tgwui_k8s.api.schemas.messages import CountTokensRequest, MessagesRequest
from tgwui_k8s.api.sse import GenerationResponse
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.api.translated_errors import naming_fields

ROUTE = "/v1/messages"


def create_router(state: ServerState) -> APIRouter:
    """The routes that Anthropic's clients know."""
    router = APIRouter(tags=["generation"])

    @router.post(
        ROUTE,
        summary="Answer a conversation, in Anthropic's words",
        openapi_extra=describe_generation(
            MessagesRequest, AnswerMessage, StreamEvent, has_done=False
        ),
    )
    async def create_message(request: Request) -> Response:
        """Anthropic's messages."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, MessagesRequest)
        return await off_the_loop_if_large(request, answer_message, asked, state, arrival)

    @router.post(
        f"{ROUTE}/count_tokens",
        summary="The tokens of a conversation, in Anthropic's words",
        openapi_extra=describe_body(CountTokensRequest),
    )
    async def count_tokens(request: Request) -> dict[str, Any]:
        """How long the prompt of a message would be."""
        asked = await read_body(request, CountTokensRequest)
        return await off_the_loop_if_large(request, counted, asked, state)

    return router


def answer_message(
    request: MessagesRequest, state: ServerState, arrival: float
) -> GenerationResponse:
    """The answer, ready to run; CPU work. Raises `RequestError` for what cannot be served."""
    chat = chat_request(request)
    with naming_fields(FIELD_NAMES):
        plan = plan_chat(chat, state, arrival, route=ROUTE, id_prefix="msg_")
    writer = MessageWriter(plan)
    return GenerationResponse(
        Generation(plan, state),
        writer,
        keep_alive_seconds=state.settings.server.sse_keep_alive_seconds if request.stream else None,
        ending=writer,
    )


def counted(request: CountTokensRequest, state: ServerState) -> dict[str, Any]:
    """The answer of `count_tokens`; CPU work."""
    asked = chat_request(request)
    model = state.require_model(asked.model)
    with naming_fields(FIELD_NAMES):
        text = chat_prompt(asked, template_of(asked, model))
        prompt = prompt_tokens(text, model, "messages", may_exceed=True, add_special_tokens=False)
    return msgspec.structs.asdict(TokenCount(len(prompt)))
