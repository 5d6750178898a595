"""text-generation-webui's own routes below `/v1/internal`.

They differ from upstream's in three ways: `stop-generation` says how many generations it has
stopped, `model/load` and `model/unload` need an admin key even where nothing else needs one, and
errors are errors (upstream answers 200 or 500).
"""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgwui_k8s.api.answer import new_response_id, off_the_loop_if_large
from tgwui_k8s.api.auth import refuse_other_sites
from tgwui_k8s.api.body import describe_body, read_body
from tgwui_k8s.api.chat_prompt import chat_prompt, template_of
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.engine_requests import Asked, engine_requests
from tgwui_k8s.api.errors import without_folders
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.model_settings import settings_for_model
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import Reported, check_token_ids
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.schemas.fields import declaration, refuse_unsupported
from tgwui_k8s.api.schemas.generation import GenerationFields
from tgwui_k8s.api.schemas.internal import (
    DecodeRequest,
    EncodeRequest,
    LoadModelRequest,
    LogitsRequest,
)
from tgwui_k8s.api.schemas.sampling import SamplingFields
from tgwui_k8s.api.sse import GenerationResponse, WholeWriter
from tgwui_k8s.api.state import ModelControl, ServedModel, ServerState
from tgwui_k8s.errors import InvalidRequestError, ModelNotFoundError, UnsupportedParameterError
from tgwui_k8s.storage.describe import describe_model, describe_models
from tgwui_k8s.storage.model_dir import DEMO, list_models, resolve_model

LOGITS_ROUTE = "/v1/internal/logits"
DEFAULT_TOP_LOGITS = 50


def create_router(state: ServerState) -> APIRouter:
    """All routes below `/v1/internal` but the probe."""
    router = APIRouter(prefix="/v1/internal", tags=["text-generation-webui"])
    _add_token_routes(router, state)
    _add_generation_routes(router, state)
    _add_model_routes(router, state)
    return router


# ------------------------------------------------------------------------------------ tokens


def _add_token_routes(router: APIRouter, state: ServerState) -> None:
    @router.post("/encode", summary="Text to tokens", openapi_extra=describe_body(EncodeRequest))
    async def encode(request: Request) -> dict[str, Any]:
        """The tokens of a text, with the tokenizer's own special tokens."""
        asked = await read_body(request, EncodeRequest)
        model = state.require_model()
        tokens = await off_the_loop_if_large(request, _encoded, asked.text, model)
        return {"tokens": tokens, "length": len(tokens)}

    @router.post("/decode", summary="Tokens to text", openapi_extra=describe_body(DecodeRequest))
    async def decode(request: Request) -> dict[str, Any]:
        """The text of tokens, without special ones."""
        asked = await read_body(request, DecodeRequest)
        model = state.require_model()
        check_token_ids(asked.tokens, model, "tokens")
        text = await off_the_loop_if_large(request, model.tokenizer.decode, asked.tokens)
        return {"text": text}

    @router.post("/token-count", summary="Count tokens", openapi_extra=describe_body(EncodeRequest))
    async def token_count(request: Request) -> dict[str, Any]:
        """How many tokens a text has."""
        asked = await read_body(request, EncodeRequest)
        model = state.require_model()
        tokens = await off_the_loop_if_large(request, _encoded, asked.text, model)
        return {"length": len(tokens)}

    @router.post("/chat-prompt", summary="Render a chat", openapi_extra=describe_body(ChatRequest))
    async def render_chat(request: Request) -> dict[str, Any]:
        """The prompt that `/v1/chat/completions` would make of the same body."""
        asked = await read_body(request, ChatRequest)
        refuse_unsupported(asked)
        model = state.require_model(asked.model)
        return {"prompt": await off_the_loop_if_large(request, _rendered, asked, model)}


def _rendered(request: ChatRequest, model: ServedModel) -> str:
    return chat_prompt(request, template_of(request, model))


def _encoded(text: str, model: ServedModel) -> list[int]:
    return prompt_tokens(text, model, "text", may_exceed=True)


# -------------------------------------------------------------------------------- generation


def _add_generation_routes(router: APIRouter, state: ServerState) -> None:
    @router.post("/logits", summary="What comes next", openapi_extra=describe_body(LogitsRequest))
    async def logits(request: Request) -> Response:
        """The most likely next tokens with their probabilities, best first."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, LogitsRequest)
        plan = await off_the_loop_if_large(request, plan_logits, asked, state, arrival)
        writer = LogitsWriter(plan.model, asked.top_logits or DEFAULT_TOP_LOGITS)
        return GenerationResponse(Generation(plan, state), writer, keep_alive_seconds=None)

    @router.post("/stop-generation", summary="Stop all generations")
    async def stop_generation(request: Request) -> dict[str, int]:
        """Ends every running generation of every client, each with the text it has so far."""
        refuse_other_sites(request, state.settings.server.cors_origin)
        running = list(state.stop_generation.values())
        for stop in running:
            stop()
        return {"stopped": len(running)}


def plan_logits(request: LogitsRequest, state: ServerState, arrival: float) -> Plan:
    """One token with log probabilities. Raises `RequestError` for what cannot be served."""
    refuse_unsupported(request)
    if not request.use_samplers:
        _refuse_samplers(request)
    model, settings = state.require_model(), state.settings.server
    fields = GenerationFields.model_construct(
        **{name: getattr(request, name) for name in SamplingFields.model_fields}
    )
    asked = Asked(
        response_id=new_response_id("logits-"),
        param="prompt",
        prompts=[prompt_tokens(request.prompt, model, "prompt")],
        max_tokens=1,
        default_max_tokens=1,
        num_choices=1,
        reported=Reported(logprobs=request.top_logits or DEFAULT_TOP_LOGITS),
    )
    (engine_request,) = engine_requests(fields, asked, model, settings)
    params = msgspec.structs.replace(
        engine_request.params, logprobs_after_sampling=request.use_samplers is True
    )
    return Plan(
        route=LOGITS_ROUTE,
        response_id=asked.response_id,
        model=model,
        requests=[msgspec.structs.replace(engine_request, params=params)],
        arrival=arrival,
        timeout_seconds=settings.max_request_seconds,
    )


def _refuse_samplers(request: LogitsRequest) -> None:
    for name in sorted(request.model_fields_set):
        field = SamplingFields.model_fields.get(name)
        is_asked_for = field is not None and declaration(field)["x-status"] == "honoured"
        if is_asked_for and getattr(request, name) is not None:
            raise InvalidRequestError(f"'{name}' needs 'use_samplers': true.", param=name)


class LogitsWriter(WholeWriter):
    """Upstream's shape, token to probability."""

    def __init__(self, model: ServedModel, num_top: int) -> None:
        self._model = model
        self._num_top = num_top

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """Of two tokens with the same text the likelier one is shown; none if it was stopped."""
        probabilities: dict[str, float] = {}
        for top in choices[0].logprobs[:1]:
            ranked = zip(top.token_ids, top.logprobs, strict=True)
            for token_id, logprob in islice(ranked, self._num_top):
                text = self._model.tokenizer.token_text(token_id)
                probabilities.setdefault(text, math.exp(logprob))
        return msgspec.json.encode(probabilities)


# ------------------------------------------------------------------------------------ models


def _add_model_routes(router: APIRouter, state: ServerState) -> None:
    @router.get("/model/info", summary="The loaded model")
    async def model_info() -> dict[str, Any]:
        """Name, loader and facts of the loaded model; 503 while none is loaded."""
        model = state.loaded_model()
        facts: dict[str, Any] = msgspec.to_builtins(model.info)
        del facts["tokenizer_json"]
        return {
            "model_name": model.names[0],
            "lora_names": list(model.adapters),
            "special_tokens": model.tokenizer.special_tokens,
            **facts,
        }

    @router.get("/model/list", summary="Models that can be loaded")
    async def model_list(details: bool = False) -> dict[str, Any]:
        """Names for `model/load`: the model directory's, and the built-in demo.

        With `details=true` also `models`: loader, size, context and more of each, from its files.
        """
        if details:
            models = await run_sync(_described_models, state)
            return {"model_names": [model["name"] for model in models], "models": models}
        return {"model_names": await run_sync(_model_names, state)}

    @router.post(
        "/model/load", summary="Load a model", openapi_extra=describe_body(LoadModelRequest)
    )
    async def load_model(request: Request) -> str:
        """Replaces the loaded model; answers when it is ready. Needs an admin key."""
        asked = await read_body(request, LoadModelRequest)
        refuse_unsupported(asked)
        settings = settings_for_model(state.settings, asked.model_name, asked.args or {})
        await _control(state).load(settings)
        return "OK"

    @router.post("/model/unload", summary="Unload the model")
    async def unload_model() -> str:
        """Frees the model's memory; the server is not ready then. Needs an admin key."""
        await _control(state).unload()
        return "OK"


def _control(state: ServerState) -> ModelControl:
    if state.model_control is None:
        raise UnsupportedParameterError("This server cannot change its model.")
    return state.model_control


def _model_names(state: ServerState) -> list[str]:
    try:
        names = list_models(state.settings.model.model_dir)
    except ModelNotFoundError:
        names = []
    return [DEMO, *(name for name in names if name != DEMO)]


def _described_models(state: ServerState) -> list[dict[str, Any]]:
    """What `tgwui-k8s models` shows, without where the files lie."""
    try:
        models = describe_models(state.settings.model.model_dir)
    except ModelNotFoundError:
        models = [describe_model(resolve_model(DEMO, state.settings.model.model_dir), DEMO)]
    rows = [msgspec.to_builtins(model) for model in models]
    for row in rows:
        del row["path"]
        row["error"] = row["error"] and without_folders(row["error"])
    return rows
