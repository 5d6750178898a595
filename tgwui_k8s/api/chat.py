"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import (
    answer_head,
    check_stream_options,
    describe_generation,
    extensions,
    new_response_id,
    off_the_loop_if_large,
    wants_usage,
)
from tgwui_k8s.api.answer_format import answer_format
from tgwui_k8s.api.body import read_body
from tgwui_k8s.api.chat_message import chat_delta, chat_message
from tgwui_k8s.api.chat_prompt import chat_prompt, template_of
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.engine_requests import Asked, engine_requests, timeout_of
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.logprobs import chat_logprobs
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import Reported
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
)
from tgwui_k8s.api.sse import Envelope, GenerationResponse, frame
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.errors import InvalidRequestError

ROUTE = "/v1/chat/completions"


def create_router(state: ServerState) -> APIRouter:
    """The route for chat completions."""
    router = APIRouter(tags=["generation"])

    @router.post(
        ROUTE,
        summary="Answer a conversation",
        openapi_extra=describe_generation(ChatRequest, ChatCompletion, ChatCompletionChunk),
    )
    async def create_chat_completion(request: Request) -> Response:
        """OpenAI's chat completions with text-generation-webui's samplers."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, ChatRequest)
        return await off_the_loop_if_large(request, answer_chat, asked, state, arrival)

    return router


def answer_chat(request: ChatRequest, state: ServerState, arrival: float) -> GenerationResponse:
    """The answer, ready to run; CPU work. Raises `RequestError` for what cannot be served."""
    plan = plan_chat(request, state, arrival)
    return GenerationResponse(
        Generation(plan, state),
        ChatWriter(request, plan),
        keep_alive_seconds=state.settings.server.sse_keep_alive_seconds if request.stream else None,
    )


def plan_chat(
    request: ChatRequest,
    state: ServerState,
    arrival: float,
    *,
    route: str = ROUTE,
    id_prefix: str = "chatcmpl-",
) -> Plan:
    """What to generate. Raises `RequestError` for what cannot be served.

    `route` and `id_prefix` are those of another API that has made its request one of ours.
    """
    refuse_unsupported(request)
    model = state.require_model(request.model)
    check_stream_options(request)
    settings = state.settings.server
    response_id = new_response_id(id_prefix)
    template = template_of(request, model)
    text = chat_prompt(request, template)
    form = answer_format(
        request,
        model,
        template=template.text,
        prompt=text,
        tool_call_parser=state.settings.model.tool_call_parser,
    )
    # A model's template has written its own special tokens.
    prompt = prompt_tokens(
        text,
        model,
        "messages",
        may_exceed=bool(request.truncation_length),
        add_special_tokens=request.instruction_template is not None,
        add_bos=request.add_bos_token,
    )
    asked = Asked(
        response_id=response_id,
        param="messages",
        prompts=[prompt],
        max_tokens=_max_tokens(request),
        default_max_tokens=None,
        num_choices=request.n or 1,
        reported=Reported(logprobs=_num_logprobs(request)),
        grammar=form.grammar,
    )
    return Plan(
        route=route,
        response_id=response_id,
        model=model,
        requests=engine_requests(request, asked, model, settings),
        arrival=arrival,
        timeout_seconds=timeout_of(request, settings),
        stop=request.stop or (),
        skip_special_tokens=request.skip_special_tokens is not False,
        resume_text_lengths=request.resume_text_lengths or (),
        visible_token_ids=form.visible_token_ids,
        make_parser=form.make_parser,
    )


def _max_tokens(request: ChatRequest) -> int | None:
    """The limit, by either of its two names."""
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' are the same limit and cannot differ.",
            param="max_tokens",
            code="invalid_value",
        )
    return new if new is not None else old


def _num_logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs is not None:
        raise InvalidRequestError(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
            code="invalid_value",
        )
    return None


class ChatWriter:
    """Chunks as OpenAI's chat completions."""

    def __init__(self, request: ChatRequest, plan: Plan) -> None:
        self._plan = plan
        self._num_logprobs = _num_logprobs(request)
        self._returns_ids = request.return_token_ids is True
        self._wants_usage = wants_usage(request)
        self._head = answer_head(plan.response_id, plan.model)
        self._envelope = Envelope(
            ChatCompletionChunk(
                **self._head, choices=[], usage=None if self._wants_usage else UNSET
            )
        )

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """One event per chunk that says something; the first says whose message it is."""
        return b"".join(
            [
                self._envelope.frame(self._chunk_choice(generation, chunk))
                for chunk in chunks
                if self._says_something(chunk)
            ]
        )

    def last_events(self, generation: Generation) -> bytes:
        """The usage, where it was asked for."""
        if not self._wants_usage:
            return b""
        return frame(ChatCompletionChunk(**self._head, choices=[], usage=generation.usage))

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """The answer."""
        messages = [
            ChatChoice(
                index=chunk.index,
                message=chat_message(chunk.events),
                logprobs=self._logprobs(chunk),
                finish_reason=chunk.finish_reason,
                **(extensions(self._plan, chunk) if self._returns_ids else {}),
            )
            for chunk in choices
        ]
        return msgspec.json.encode(
            ChatCompletion(**self._head, choices=messages, usage=generation.usage)
        )

    def _says_something(self, chunk: ChoiceChunk) -> bool:
        """False while a parser holds back all there is."""
        if chunk.events or chunk.is_first or chunk.finish_reason is not None:
            return True
        return self._returns_ids or self._num_logprobs is not None

    def _chunk_choice(self, generation: Generation, chunk: ChoiceChunk) -> ChatChunkChoice:
        begins = chunk.is_first and not generation.is_resumed(chunk.index)
        return ChatChunkChoice(
            index=chunk.index,
            delta=chat_delta(chunk.events, begins=begins),
            logprobs=self._logprobs(chunk),
            finish_reason=chunk.finish_reason,
            **(extensions(self._plan, chunk) if self._returns_ids else {}),
        )

    def _logprobs(self, chunk: ChoiceChunk) -> ChatLogprobs | None:
        if self._num_logprobs is None:
            return None
        return chat_logprobs(self._plan.model.tokenizer, chunk.logprobs, self._num_logprobs)
