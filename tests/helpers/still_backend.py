"""A backend that generates nothing by itself, and a server's state around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

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


class LetterTokenizer:
    """One token per character, its code point the id. Id 1 begins and id 2 ends a sequence."""

    vocab_size = 256
    bos_token_id = 1
    eos_token_ids = (2,)
    special_token_ids = frozenset({1, 2})

    def encode(
        self, text: str, *, add_special_tokens: bool = True, add_bos: bool | None = None
    ) -> list[int]:
        has_bos = add_special_tokens if add_bos is None else add_bos
        return [1] * has_bos + [ord(letter) for letter in text]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token_id) for token_id in token_ids if token_id > 2)

    def token_text(self, token_id: int) -> str:
        return chr(token_id)


class JoiningTemplate:
    """`role: content` per message, a line each."""

    def render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **rest: Any
    ) -> str:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")


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
    """A model of 256 tokens and a context of 64."""
    info = ModelInfo(
        loader="still",
        architecture="StillForCausalLM",
        dtype="float32",
        device="cpu",
        max_model_len=64,
        vocab_size=256,
        eos_token_ids=(2,),
    )
    return ServedModel(info, ("still", "org/still"), LetterTokenizer(), JoiningTemplate())  # type: ignore[arg-type]
