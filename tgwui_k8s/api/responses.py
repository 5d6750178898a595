"""OpenAI's `POST /v1/responses`, as far as it needs no memory between requests."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import describe_generation, off_the_loop_if_large
from tgwui_k8s.api.body import read_body
from tgwui_k8s.api.chat import plan_chat
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.response_prompt import FIELD_NAMES, chat_request
from tgwui_k8s.api.response_writer import ResponseWriter
from tgwui_k8s.api.schemas.response_answer import ResponseEvent, ResponseObject
from tgwui_k8s.api.schemas.response_request import ResponseRequest
from tgwui_k8s.api.sse import GenerationResponse
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.api.translated_errors import naming_fields

ROUTE = "/v1/responses"


def create_router(state: ServerState) -> APIRouter:
    """The route for responses."""
    router = APIRouter(tags=["generation"])

    @router.post(
        ROUTE,
        summary="Answer a conversation of items",
        openapi_extra=describe_generation(
            ResponseRequest, ResponseObject, ResponseEvent, has_done=False
        ),
    )
    async def create_response(request: Request) -> Response:
        """OpenAI's responses; nothing is stored."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, ResponseRequest)
        return await off_the_loop_if_large(request, answer_response, asked, state, arrival)

    return router


def answer_response(
    request: ResponseRequest, state: ServerState, arrival: float
) -> GenerationResponse:
    """The answer, ready to run; CPU work. Raises `RequestError` for what cannot be served."""
    chat = chat_request(request)
    with naming_fields(FIELD_NAMES):
        plan = plan_chat(chat, state, arrival, route=ROUTE, id_prefix="resp_")
    writer = ResponseWriter(request, plan)
    return GenerationResponse(
        Generation(plan, state),
        writer,
        keep_alive_seconds=state.settings.server.sse_keep_alive_seconds if request.stream else None,
        ending=writer,
    )
