"""All endpoints: who joins and leaves, what each serves, who waits for one.

Discoveries publish whole sets, one each; the fleet is their union. An endpoint that is gone from
all sets takes nothing new at once, and is forgotten when its last request has ended. One monitor
task per endpoint keeps its state fresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.endpoint import Endpoint, EndpointState
from tgwui_k8s.observability.log import event

Monitor = Callable[[EndpointState, Callable[[], None]], Coroutine[Any, Any, None]]
"""Keeps one state fresh until cancelled; the callable says that something has changed."""

NEW_SECONDS = 60.0
"""So long an endpoint may take to say which models it has, before they are taken for unknown."""

_SEE_OUT_SECONDS = 0.2

logger = logging.getLogger(__name__)


class Fleet:
    """Used from one event loop."""

    def __init__(self, monitor: Monitor, *, on_forget: Callable[[Endpoint], None]) -> None:
        self._monitor = monitor
        self._on_forget = on_forget
        self._sets: dict[str, Mapping[str, Endpoint]] = {}
        self._states: dict[str, EndpointState] = {}
        self._monitors: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []
        self.known_models: set[str] = set()
        """Every name that was ever served: such a model may be asleep, others do not exist."""

    # -- discovery ----------------------------------------------------------------------------

    def publish(self, source: str, endpoints: Iterable[Endpoint]) -> None:
        """The whole set that `source` sees now."""
        self._sets[source] = {endpoint.uid: endpoint for endpoint in endpoints}
        wanted = {uid: one for found in self._sets.values() for uid, one in found.items()}
        for uid, state in list(self._states.items()):
            if wanted.get(uid) != state.endpoint:
                self._remove(uid)
        for uid, endpoint in wanted.items():
            if uid not in self._states:
                self._add(endpoint)

    def has_published(self, source: str) -> bool:
        """Whether this source has looked at least once."""
        return source in self._sets

    def _add(self, endpoint: Endpoint) -> None:
        now = asyncio.get_running_loop().time()
        state = EndpointState(endpoint, Breaker(), dialect=endpoint.dialect, join_time=now)
        self._states[endpoint.uid] = state
        logger.info("endpoint joins", extra=event(endpoint=state.name, uid=endpoint.uid))
        monitor = asyncio.get_running_loop().create_task(self._monitor(state, self.note_change))
        self._monitors[endpoint.uid] = monitor

    def _remove(self, uid: str) -> None:
        state = self._states.pop(uid)
        state.is_leaving = True
        seeing_out = asyncio.get_running_loop().create_task(
            self._see_out(state, self._monitors.pop(uid))
        )
        self._leaving.add(seeing_out)
        seeing_out.add_done_callback(self._leaving.discard)
        logger.info("endpoint leaves", extra=event(endpoint=state.name, uid=uid))

    async def _see_out(self, state: EndpointState, monitor: asyncio.Task[None]) -> None:
        """Watch an endpoint until its last request has ended: it may die before."""
        try:
            while state.num_in_flight:  # noqa: ASYNC110 - a leaver is rare, a counter is hot
                await asyncio.sleep(_SEE_OUT_SECONDS)
        finally:
            monitor.cancel()
            self._on_forget(state.endpoint)

    # -- what there is ------------------------------------------------------------------------

    @property
    def states(self) -> Collection[EndpointState]:
        """Every endpoint that has not left."""
        return self._states.values()

    def state_of(self, uid: str) -> EndpointState:
        """One endpoint's state."""
        return self._states[uid]

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """The union of what ready endpoints serve: name to card."""
        cards: dict[str, Mapping[str, Any]] = {}
        for state in self._states.values():
            if state.is_ready:
                cards.update(state.models)
        return cards

    def may_have(self, model: str) -> bool:
        """Whether a model was ever served, or may be a newcomer's that has not said yet."""
        if model in self.known_models:
            return True
        newest = asyncio.get_running_loop().time() - NEW_SECONDS
        return any(
            model in state.models or (not state.models and state.join_time > newest)
            for state in self.states
        )

    # -- who waits ----------------------------------------------------------------------------

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever an endpoint may have become usable."""
        self._listeners.append(listener)

    def note_change(self) -> None:
        """An endpoint has changed, or has room again."""
        for state in self._states.values():
            self.known_models.update(state.models)
        self.wake()

    def wake(self) -> None:
        """Tell those who wait to look again."""
        for listener in self._listeners:
            listener()

    async def close(self) -> None:
        """Stop all monitors."""
        tasks = [*self._monitors.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
