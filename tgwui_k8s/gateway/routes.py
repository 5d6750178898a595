"""The routes that the gateway answers itself, and the list of those it passes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec

from tgwui_k8s.errors import NotFoundError
from tgwui_k8s.gateway.downstream import JSON_HEADER
from tgwui_k8s.gateway.endpoint import EndpointState
from tgwui_k8s.gateway.fleet import Fleet
from tgwui_k8s.gateway.http_connection import Headers
from tgwui_k8s.gateway.key_file import ApiKey
from tgwui_k8s.gateway.metrics import GatewayMetrics
from tgwui_k8s.gateway.status_page import status_page

GENERATION_PATHS = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/internal/chat-prompt",
        "/v1/internal/decode",
        "/v1/internal/encode",
        "/v1/internal/logits",
        "/v1/internal/token-count",
        "/generate",
        "/invocations",
        "/tokenize",
        "/detokenize",
    }
)
"""Passed on to an endpoint. What changes one engine's state is not among them."""

_MODELS = "/v1/models"

Answer = tuple[int, Headers, bytes]


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for such a route."""

    path: str
    headers: Mapping[bytes, bytes]
    key: ApiKey


@dataclass(frozen=True, slots=True)
class OwnRoute:
    """One route; `name` is its label in metrics and log."""

    name: str
    answer: Callable[[Visit], Answer]


class OwnRoutes:
    """Health, models, metrics and the pages about endpoints."""

    def __init__(
        self,
        fleet: Fleet,
        metrics: GatewayMetrics,
        *,
        is_started: Callable[[], bool],
        is_draining: Callable[[], bool],
        num_waiting: Callable[[], Mapping[str, int]],
        limits_are_shared: Callable[[], bool | None],
    ) -> None:
        """`is_started`: every discovery has looked once."""
        self._fleet = fleet
        self._metrics = metrics
        self._is_started = is_started
        self._is_draining = is_draining
        self._num_waiting = num_waiting
        self._limits_are_shared = limits_are_shared
        self._routes = {
            "/health": self._ready,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/health/startup": self._startup,
            "/ping": self._ready,
            "/metrics": self._exposition,
            _MODELS: self._models,
            "/gateway": self._page,
            "/gateway/endpoints": self._endpoints,
        }

    def find(self, path: str) -> OwnRoute | None:
        """The route of a path."""
        if path in self._routes:
            return OwnRoute(path, self._routes[path])
        if path.startswith(_MODELS + "/"):
            return OwnRoute(_MODELS + "/{model_id}", self._model)
        return None

    # -- probes -------------------------------------------------------------------------------

    def _live(self, visit: Visit) -> Answer:
        """The event loop answers."""
        return _json(200, {"status": "ok"})

    def _startup(self, visit: Visit) -> Answer:
        """Every discovery has looked once."""
        is_started = self._is_started()
        return _json(200 if is_started else 503, {"status": "ok" if is_started else "starting"})

    def _ready(self, visit: Visit) -> Answer:
        """Requests are taken. Also without endpoints: they wait, which scales engines up."""
        if self._is_draining():
            return _json(503, {"status": "draining"})
        return self._startup(visit)

    # -- models -------------------------------------------------------------------------------

    def _models(self, visit: Visit) -> Answer:
        models = self._fleet.models
        cards = {name: card for name, card in models.items() if visit.key.may_use(name)}
        return _json(200, {"object": "list", "data": [cards[name] for name in sorted(cards)]})

    def _model(self, visit: Visit) -> Answer:
        name = unquote(visit.path[len(_MODELS) + 1 :])
        card = self._fleet.models.get(name)
        if card is None or not visit.key.may_use(name):
            raise NotFoundError(
                f"The model '{name[:200]}' does not exist.", param="model", code="model_not_found"
            )
        return _json(200, card)

    # -- for operators ------------------------------------------------------------------------

    def _exposition(self, visit: Visit) -> Answer:
        accept = visit.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = self._metrics.exposition(accept)
        return 200, [(b"content-type", content_type.encode())], body

    def _endpoints(self, visit: Visit) -> Answer:
        endpoints = [describe(state) for state in self._fleet.states]
        counted = "in Redis, for all replicas" if self._limits_are_shared() else "in this replica"
        body = {
            "endpoints": endpoints,
            "waiting": dict(self._num_waiting()),
            "limits_of_keys_are_counted": counted,
        }
        return _json(200, body)

    def _page(self, visit: Visit) -> Answer:
        endpoints = [describe(state) for state in self._fleet.states]
        body = status_page(endpoints, self._num_waiting())
        return 200, [(b"content-type", b"text/html; charset=utf-8")], body.encode()


def describe(state: EndpointState) -> dict[str, Any]:
    """An endpoint for people."""
    return {
        "name": state.name,
        "uid": state.endpoint.uid,
        "url": str(state.endpoint.origin),
        "dialect": state.dialect,
        "ready": state.is_ready,
        "breaker": "open" if state.breaker.is_tripped else "closed",
        "models": sorted(state.models),
        "in_flight": state.num_in_flight,
        "running": state.load.num_running,
        "waiting": state.load.num_waiting,
        "kv_cache_usage": round(state.load.kv_cache_usage, 4),
        "requests": state.num_requests,
        "failures": state.num_failures,
        "last_error": state.last_error,
    }


def _json(status: int, body: Any) -> Answer:
    return status, [JSON_HEADER], msgspec.json.encode(body)
