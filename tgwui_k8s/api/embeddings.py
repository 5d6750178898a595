"""`POST /v1/embeddings`, where the loaded model makes vectors of texts."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tgwui_k8s.api.answer import describe_answer, new_response_id, off_the_loop_if_large
from tgwui_k8s.api.body import read_body
from tgwui_k8s.api.prompt_tokens import prompt_tokens
from tgwui_k8s.api.sampling_fields import check_token_ids
from tgwui_k8s.api.schemas.embeddings import (
    Embedding,
    Embeddings,
    EmbeddingsRequest,
    EmbeddingsUsage,
)
from tgwui_k8s.api.schemas.fields import refuse_unsupported
from tgwui_k8s.api.sse import send_json, unless_gone
from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.contract import EmbeddingRequest
from tgwui_k8s.errors import (
    ContextLengthError,
    DeadlineExceededError,
    InvalidRequestError,
    UnsupportedParameterError,
)

ROUTE = "/v1/embeddings"


def create_router(state: ServerState) -> APIRouter:
    """The route for embeddings."""
    router = APIRouter(tags=["embeddings"])

    @router.post(
        ROUTE,
        summary="Texts to vectors",
        openapi_extra=describe_answer(EmbeddingsRequest, Embeddings),
    )
    async def create_embeddings(request: Request) -> Response:
        """OpenAI's embeddings."""
        arrival = time.monotonic()
        state.require_model()
        asked = await read_body(request, EmbeddingsRequest)
        plan = await off_the_loop_if_large(request, plan_embeddings, asked, state)
        seconds = state.settings.server.max_request_seconds - (time.monotonic() - arrival)
        return EmbeddingsResponse(plan, state, timeout_seconds=seconds)

    return router


@dataclass(frozen=True, slots=True)
class EmbeddingsPlan:
    """What is to be embedded, and how the vectors are told."""

    model: ServedModel
    request: EmbeddingRequest
    size: int
    """Numbers of a vector, after cutting."""
    is_base64: bool


def plan_embeddings(request: EmbeddingsRequest, state: ServerState) -> EmbeddingsPlan:
    """What to embed; CPU work. Raises `RequestError` for what cannot be served."""
    refuse_unsupported(request)
    model = state.require_model(request.model)
    if not model.info.capabilities.embeddings:
        raise UnsupportedParameterError(
            "The loaded model generates text and makes no embeddings.", param="model"
        )
    lists = [_tokens(one, model) for one in request.inputs]
    return EmbeddingsPlan(
        model,
        EmbeddingRequest(
            request_id=new_response_id("embd-"), token_id_lists=tuple(map(tuple, lists))
        ),
        _size(request.dimensions, model),
        request.encoding_format == "base64",
    )


def _tokens(one: str | list[int], model: ServedModel) -> list[int]:
    """Token ids are taken as they are; a text gets the tokenizer's special tokens."""
    longest = model.info.max_model_len
    if isinstance(one, str):
        token_ids = prompt_tokens(one, model, "input")
    else:
        check_token_ids(one, model, "input")
        token_ids = one
    if not token_ids:
        raise InvalidRequestError(
            "Invalid 'input': it has no tokens.", param="input", code="invalid_value"
        )
    if len(token_ids) > longest:
        raise ContextLengthError(
            f"This model's maximum context length is {longest} tokens, but an input has "
            f"{len(token_ids)}.",
            param="input",
            details={"n_prompt_tokens": len(token_ids), "n_ctx": longest},
        )
    return token_ids


def _size(wanted: int | None, model: ServedModel) -> int:
    sizes = model.info.embedding_sizes
    if wanted is None:
        return sizes[0]
    if wanted not in sizes:
        possible = ", ".join(map(str, sizes[:20]))
        raise UnsupportedParameterError(
            f"Unsupported parameter: 'dimensions'. The loaded model's vectors have {possible} "
            "numbers.",
            param="dimensions",
        )
    return wanted


class EmbeddingsResponse(Response):
    """Has the vectors made and answers with them; stops when the client goes away."""

    def __init__(self, plan: EmbeddingsPlan, state: ServerState, *, timeout_seconds: float) -> None:
        super().__init__()
        self._plan = plan
        self._state = state
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises the `RequestError` that kept the vectors from being made."""
        await unless_gone(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        embedding = self._state.backend.embed(self._plan.request)
        try:
            vectors = await asyncio.wait_for(embedding, self._timeout_seconds)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                "The request did not finish within the server's limit."
            ) from None
        await send_json(send, await run_sync(encoded, self._plan, vectors))


def encoded(plan: EmbeddingsPlan, vectors: bytes) -> bytes:
    """The answer as JSON. A vector that is cut is made a unit vector again; CPU work."""
    import numpy as np  # here, because most servers never need it

    full_size = plan.model.info.embedding_sizes[0]
    rows = np.frombuffer(vectors, np.float32).reshape(-1, full_size)
    if plan.size < full_size:
        rows = rows[:, : plan.size]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    data = [
        Embedding(
            index=index,
            embedding=base64.b64encode(row.astype("<f4").tobytes()).decode()
            if plan.is_base64
            else row.tolist(),
        )
        for index, row in enumerate(rows)
    ]
    num_tokens = sum(map(len, plan.request.token_id_lists))
    usage = EmbeddingsUsage(num_tokens, num_tokens)
    return msgspec.json.encode(Embeddings(data=data, model=plan.model.names[0], usage=usage))
