"""`/tokenize`, `/detokenize` and `/generate`: vLLM's own routes, in its shapes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import off_the_loop_if_large
from tgwui_k8s.api.body import describe_body, read_body
from tgwui_k8s.api.chat_prompt import chat_prompt, template_of
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.completions import plan_completion
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import check_token_ids
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.schemas.tokenize import DetokenizeRequest, GenerateRequest, TokenizeRequest
from tgwui_k8s.api.sse import GenerationResponse, WholeWriter
from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.errors import InvalidRequestError

_MESSAGES_ONLY = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "tools",
)


def create_router(state: ServerState) -> APIRouter:
    """Routes that clients and load generators know from vLLM."""
    router = APIRouter(tags=["tokens"])

    @router.post(
        "/tokenize", summary="Text to tokens", openapi_extra=describe_body(TokenizeRequest)
    )
    async def tokenize(request: Request) -> dict[str, Any]:
        """The tokens of a text, or of messages as the chat template renders them."""
        asked = await read_body(request, TokenizeRequest)
        return await off_the_loop_if_large(request, tokenized, asked, state)

    @router.post(
        "/detokenize", summary="Tokens to text", openapi_extra=describe_body(DetokenizeRequest)
    )
    async def detokenize(request: Request) -> dict[str, Any]:
        """The text of tokens, special ones included."""
        asked = await read_body(request, DetokenizeRequest)
        return await off_the_loop_if_large(request, detokenized, asked, state)

    @router.post(
        "/generate", summary="Go on from a prompt", openapi_extra=describe_body(GenerateRequest)
    )
    async def generate(request: Request) -> Response:
        """`{"text": [...]}`: the prompt and what was generated after it, once per choice."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, GenerateRequest)
        plan = await off_the_loop_if_large(request, plan_generate, asked, state, arrival)
        writer = GenerateWriter(asked.prompt)
        return GenerationResponse(Generation(plan, state), writer, keep_alive_seconds=None)

    return router


def tokenized(request: TokenizeRequest, state: ServerState) -> dict[str, Any]:
    """The answer of `/tokenize`; CPU work."""
    refuse_unsupported(request)
    model = state.require_model(request.model)
    token_ids = _tokens(request, model)
    texts = [model.tokenizer.token_text(token_id) for token_id in token_ids]
    return {
        "count": len(token_ids),
        "max_model_len": model.info.max_model_len,
        "tokens": token_ids,
        "token_strs": texts if request.return_token_strs else None,
    }


def detokenized(request: DetokenizeRequest, state: ServerState) -> dict[str, Any]:
    """The answer of `/detokenize`; CPU work."""
    model = state.require_model(request.model)
    check_token_ids(request.tokens, model, "tokens")
    return {"prompt": model.tokenizer.decode(request.tokens, skip_special_tokens=False)}


def plan_generate(request: GenerateRequest, state: ServerState, arrival: float) -> Plan:
    """A completion of one prompt. Raises `RequestError` for what cannot be served."""
    refuse_unsupported(request)
    fields = {name: getattr(request, name) for name in request.model_fields_set}
    completion = CompletionRequest.model_construct(**{**fields, "prompt": [request.prompt]})
    return replace(plan_completion(completion, state, arrival), route="/generate")


class GenerateWriter(WholeWriter):
    """vLLM's shape."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """Prompt and completion, once per choice."""
        return msgspec.json.encode({"text": [self._prompt + choice.text for choice in choices]})


def _tokens(request: TokenizeRequest, model: ServedModel) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("Send either 'prompt' or 'messages'.", param="prompt")
    if request.messages is None:
        _refuse_chat_fields(request)
        return prompt_tokens(
            request.prompt or "",
            model,
            "prompt",
            may_exceed=True,
            add_special_tokens=request.add_special_tokens is not False,
        )
    chat = ChatRequest.model_construct(
        messages=request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=request.chat_template_kwargs,
        tools=request.tools,
    )
    return prompt_tokens(
        chat_prompt(chat, template_of(chat, model)),
        model,
        "messages",
        may_exceed=True,
        add_special_tokens=request.add_special_tokens is True,
    )


def _refuse_chat_fields(request: TokenizeRequest) -> None:
    for name in _MESSAGES_ONLY:
        if getattr(request, name) is not None:
            raise InvalidRequestError(f"'{name}' needs 'messages'.", param=name)
