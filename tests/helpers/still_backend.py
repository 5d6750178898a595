"""A backend that generates nothing by itself, and a server's state around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tests.helpers.api_server import tiny_tokenizer
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.state import ServedModel, ServerState
from tgwui_k8s.config import ServerSettings, Settings
from tgwui_k8s.contract import (
    EngineHealth,
    EngineStats,
    GenerationRequest,
    LoadProgress,
    ModelInfo,
    TokenDelta,
)
from tgwui_k8s.demo.tiny_tokenizer import CHAT_TEMPLATE
from tgwui_k8s.observability.metrics import Metrics


class StillBackend:
    """Answers every request with the deltas it was given, and remembers what it was asked."""

    def __init__(self, *deltas: TokenDelta) -> None:
        self.info: ModelInfo | None = None
        self.stats = EngineStats()
        self.health = EngineHealth()
        self.deltas = list(deltas)
        self.requests: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        self.requests.append(request)
        yield self.deltas

    def abort_choice(self, request_id: str, index: int) -> None:
        """Nothing runs, so there is nothing to abort."""

    async def close(self) -> None:
        """Nothing to free."""


def make_state(
    backend: StillBackend | None = None, *, is_loaded: bool = True, **server: Any
) -> ServerState:
    """A state with a loaded model of the names `still` and `org/still`."""
    settings = Settings(server=ServerSettings(**server))
    state = ServerState(
        settings=settings,
        backend=backend or StillBackend(),
        metrics=Metrics(settings.observability, "still"),
    )
    if is_loaded:
        state.load_progress = LoadProgress("ready", 7, 7)
        state.model = still_model()
    return state


def still_model() -> ServedModel:
    """A model with the tiny tokenizer's 512 tokens and a context of 64."""
    info = ModelInfo(
        loader="still",
        architecture="StillForCausalLM",
        dtype="float32",
        device="cpu",
        max_model_len=64,
        vocab_size=512,
        eos_token_ids=(1,),
    )
    tokenizer = tiny_tokenizer()
    template = ChatTemplate({DEFAULT: CHAT_TEMPLATE}, tokenizer.special_tokens)
    return ServedModel(info, ("still", "org/still"), tokenizer, template)
