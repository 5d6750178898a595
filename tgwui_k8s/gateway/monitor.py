"""Asks one endpoint how it is, again and again: ready, which models, how busy.

Each endpoint has a task of its own, so that a slow one delays nobody. Polls are spread by chance;
while an endpoint is not ready it is asked more often, so that a new one takes part soon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from tgwui_k8s.errors import TgwuiError
from tgwui_k8s.gateway.endpoint import DialectName, EndpointState
from tgwui_k8s.gateway.failures import ExchangeError, PhaseTimeoutError
from tgwui_k8s.gateway.http_client import HttpClient, request_bytes
from tgwui_k8s.gateway.limits import Watchdog
from tgwui_k8s.gateway.load_metrics import parse_load
from tgwui_k8s.observability.log import event

UNREADY_POLL_SECONDS = 0.5
NUM_POLLS_PER_MODEL_LIST = 5
FAILURES_TO_UNREADY = 2
"""One lost poll of a busy endpoint is no reason to send its requests elsewhere."""

_MAX_ANSWER_BYTES = 8 * 1024 * 1024
_HEALTH_PATHS: Mapping[DialectName, str] = {
    "tgwui": "/health/ready",
    "vllm": "/health",
    "llama-server": "/health",
    "tgi": "/health",
    "kserve": "/v2/health/ready",
}

logger = logging.getLogger(__name__)


class EndpointMonitor:
    """`watch` is the fleet's `Monitor`."""

    def __init__(
        self,
        client: HttpClient,
        *,
        poll_seconds: float,
        timeout_seconds: float,
        silent_seconds: float,
        headers: Callable[[], list[tuple[bytes, bytes]]] = list,
        random: Random | None = None,
    ) -> None:
        """`silent_seconds`: an endpoint that sends nothing for so long, on no connection, is dead.

        `headers`: sent along, such as a key for the endpoints."""
        self._client = client
        self._poll_seconds = poll_seconds
        self._timeout_seconds = timeout_seconds
        self._silent_seconds = silent_seconds
        self._headers = headers
        self._random = random or Random()  # noqa: S311 - spreads polls

    async def watch(self, state: EndpointState, on_change: Callable[[], None]) -> None:
        """Keep `state` fresh until cancelled."""
        num_polls = num_failures = 0
        while True:
            before = (state.is_ready, state.models)
            try:
                await self._poll(state, with_models=num_polls % NUM_POLLS_PER_MODEL_LIST == 0)
                num_failures = 0
                num_polls = num_polls + 1 if state.is_ready else 0
            except (TgwuiError, msgspec.DecodeError, ValueError) as error:
                num_failures += 1
                num_polls = 0
                state.last_error = str(error)
                if num_failures >= FAILURES_TO_UNREADY or not state.models:
                    state.is_ready = False
                self._cut_if_silent(state)
            if before != (state.is_ready, state.models):
                self._report(state)
                on_change()
            seconds = self._poll_seconds if state.is_ready else UNREADY_POLL_SECONDS
            await asyncio.sleep(seconds * self._random.uniform(0.8, 1.2))

    async def _poll(self, state: EndpointState, *, with_models: bool) -> None:
        if state.dialect is None:
            await self._find_dialect(state)
        dialect = state.dialect or "tgwui"
        status, _ = await self._get(state, _HEALTH_PATHS[dialect])
        is_ready = status == 200
        if is_ready and (with_models or not state.models):
            state.models = await self._models(state, dialect)
            is_ready = bool(state.models)
        if is_ready:
            await self._read_load(state)
        state.is_ready = is_ready

    async def _find_dialect(self, state: EndpointState) -> None:
        """What it speaks; stays unknown while the endpoint is not up."""
        status, body = await self._get(state, "/v1/models")
        if status == 200:
            owners = {card.get("owned_by") for card in _cards(body)}
            if "tgwui-k8s" in owners:
                state.dialect = "tgwui"
            elif "llamacpp" in owners:
                state.dialect = "llama-server"
            else:
                state.dialect = "vllm"
        if state.dialect in (None, "vllm"):
            # TGI's `/v1/models` looks like any other's.
            status, body = await self._get(state, "/info")
            if status == 200 and "max_concurrent_requests" in msgspec.json.decode(body, type=dict):
                state.dialect = "tgi"

    async def _models(
        self, state: EndpointState, dialect: DialectName
    ) -> dict[str, Mapping[str, Any]]:
        if dialect == "kserve":
            status, body = await self._get(state, "/v2/repository/index", method="POST")
            found = msgspec.json.decode(body, type=list[dict[str, Any]]) if status == 200 else []
            names = (str(one["name"]) for one in found if "name" in one)
            return {name: _card(name, "kserve") for name in names}
        if dialect == "tgi":
            status, body = await self._get(state, "/info")
            name = msgspec.json.decode(body, type=dict[str, Any]).get("model_id")
            return {str(name): _card(str(name), "tgi")} if status == 200 and name else {}
        status, body = await self._get(state, "/v1/models")
        if status != 200:
            return {}
        return {str(card["id"]): card for card in _cards(body) if "id" in card}

    async def _read_load(self, state: EndpointState) -> None:
        num_in_flight = state.num_in_flight
        try:
            status, body = await self._get(state, "/metrics")
        except ExchangeError:
            return  # An endpoint without metrics is balanced by what we send it.
        load = parse_load(body.decode("utf-8", "replace")) if status == 200 else None
        if load is not None:
            state.load = load
            state.load_time = asyncio.get_running_loop().time()
            state.num_in_flight_then = num_in_flight

    async def _get(
        self, state: EndpointState, path: str, *, method: str = "GET"
    ) -> tuple[int, bytes]:
        """Status and body. Raises `ExchangeError`."""
        origin = state.endpoint.origin
        body = b"{}" if method == "POST" else None
        request = request_bytes(method, path, origin, self._headers(), body)
        exchange = await self._client.start(
            origin, request, connect_seconds=self._timeout_seconds, fresh=False
        )
        watchdog = Watchdog(
            lambda phase, seconds: exchange.abort(PhaseTimeoutError(phase, seconds))
        )
        watchdog.enter("first_byte", self._timeout_seconds)
        try:
            await exchange.head()
            state.heard_time = asyncio.get_running_loop().time()
            return exchange.status, await exchange.read_all(_MAX_ANSWER_BYTES)
        finally:
            watchdog.stop()
            exchange.abort()

    def _cut_if_silent(self, state: EndpointState) -> None:
        """A frozen process or a dead node closes no connection: its requests must not wait."""
        silent_seconds = asyncio.get_running_loop().time() - state.heard_time
        if state.exchanges and silent_seconds >= self._silent_seconds:
            facts = event(endpoint=state.name, num_requests=len(state.exchanges))
            logger.warning("endpoint is silent: its requests go elsewhere", extra=facts)
            state.cut_exchanges(PhaseTimeoutError("silent", self._silent_seconds))

    def _report(self, state: EndpointState) -> None:
        fields = event(
            endpoint=state.name,
            ready=state.is_ready,
            models=sorted(state.models),
            dialect=state.dialect,
            **({} if state.is_ready else {"error": state.last_error}),
        )
        logger.info("endpoint is %s", "ready" if state.is_ready else "not ready", extra=fields)


def _cards(body: bytes) -> list[dict[str, Any]]:
    found = msgspec.json.decode(body, type=dict[str, Any]).get("data")
    cards = found if isinstance(found, list) else []
    return [card for card in cards if isinstance(card, dict)]


def _card(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
