"""What the routes share: one object, wired by `create_app`, handed to every route.

Nothing here is global; a test builds its own with a fake backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tgwui_k8s.config import Settings
from tgwui_k8s.contract import Backend, EmbeddingRequest, EngineHealth, LoadProgress, ModelInfo
from tgwui_k8s.errors import (
    DrainingError,
    EngineUnavailableError,
    ModelNotReadyError,
    NotFoundError,
)
from tgwui_k8s.observability.recent_errors import RecentErrors

if TYPE_CHECKING:
    from tgwui_k8s.api.chat_template import ChatTemplate
    from tgwui_k8s.api.tokenizer import Tokenizer
    from tgwui_k8s.observability.metrics import Metrics


@dataclass(slots=True)
class ServedModel:
    """A loaded model as clients know it."""

    info: ModelInfo
    names: tuple[str, ...]
    """The first is the one reported; all are accepted."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    created: int = field(default_factory=lambda: int(time.time()))
    adapter: str = ""
    """The LoRA adapter that these names stand for; empty for the model alone."""
    adapters: dict[str, ServedModel] = field(default_factory=dict)
    """The same model with each of its adapters, by the adapter's name."""

    def named(self, name: str | None) -> ServedModel | None:
        """What a request that asks for `name` gets (None: the model alone); None for no such."""
        return self if name is None or name in self.names else self.adapters.get(name)


class EngineBackend(Backend, Protocol):
    """The `Backend` that routes know: the engine seen from the API process."""

    @property
    def health(self) -> EngineHealth:
        """Whether the engine can still answer; never waits."""
        ...

    async def embed(self, request: EmbeddingRequest) -> bytes:
        """The vectors of the texts: float32, row after row. Cancelling aborts the request."""
        ...


class ModelControl(Protocol):
    """Changes the loaded model while the server runs; wired by `tgwui_k8s.server`.

    All methods set `ServerState.model`; `load` sets it to None first, to the new model at its end.
    """

    async def load(self, settings: Settings) -> None:
        """Replace the loaded model by the one `settings` names.

        The name came over HTTP: it must be resolved with `over_http=True`. Requests still running
        get an error. Raises `UsageError` or `ModelNotFoundError` before anything has changed, and
        another `StartupError` for a model that cannot be loaded: then none is loaded any more.
        """
        ...

    async def load_adapters(self, names: Sequence[str]) -> None:
        """Make adapters of `--lora-dir` available beside those that are.

        Raises `ModelNotFoundError`, another `StartupError` or a `RequestError`; those before the
        one that failed stay.
        """
        ...

    async def unload_adapters(self, names: Sequence[str] | None) -> None:
        """Let no new request use these adapters (None: any); unknown names are ignored."""
        ...

    async def unload(self) -> None:
        """Free the model's memory; requests still running get an error.

        `ServerState.load_progress` has the phase `unloaded` then.
        """
        ...


@dataclass(slots=True)
class ServerState:
    """The server's state between requests.

    `model` is None until loading has ended, after an unload, and while the engine restarts.
    """

    settings: Settings
    backend: EngineBackend
    metrics: Metrics
    model: ServedModel | None = None
    load_progress: LoadProgress = field(default_factory=lambda: LoadProgress("starting"))
    restarting: bool = False
    """The engine died and is being started again."""
    draining: bool = False
    num_active_requests: int = 0
    """Requests on generation routes that have not been answered to their end.

    `api.middleware` counts: from the arrival of the request to the last byte of its answer.
    """
    model_control: ModelControl | None = None
    """None where the model cannot be changed at run time."""
    recent_errors: RecentErrors = field(default_factory=lambda: RecentErrors(time.time))
    stop_generation: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Per running generation (its request id): ends it now with what it has generated so far."""

    def require_model(self, name: str | None = None) -> ServedModel:
        """The loaded model, for a new request that asks for `name` (None: whichever is loaded).

        Raises `DrainingError`, `EngineUnavailableError`, `ModelNotReadyError`, or
        `NotFoundError` for another name.
        """
        if self.draining:
            raise DrainingError("The server is shutting down.", retry_after_seconds=5)
        return self.loaded_model(name)

    def loaded_model(self, name: str | None = None) -> ServedModel:
        """The same for who only looks, which a draining server does not mind."""
        if self.restarting:
            raise EngineUnavailableError("The engine restarts.", retry_after_seconds=5)
        if self.model is None:
            raise ModelNotReadyError(
                f"No model is ready (phase: {self.load_progress.phase}).", retry_after_seconds=2
            )
        named = self.model.named(name)
        if named is None:
            shown = (name or "")[:200]
            raise NotFoundError(
                f"The model '{shown}' does not exist.", param="model", code="model_not_found"
            )
        return named
