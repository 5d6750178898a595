"""Who may go, and where: a lease on an endpoint for every attempt of every call.

Where no endpoint can take a call it waits in its model's queue: until one has room, comes back, or
is started because somebody waits (the queue's length is a metric for autoscalers). The queue is
bounded in length and time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from tgwui_k8s.errors import (
    InvalidRequestError,
    ModelNotReadyError,
    NotFoundError,
    OverloadedError,
    RequestError,
)
from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.choose import Candidate, Weights, pick, usable
from tgwui_k8s.gateway.endpoint import DialectName, EndpointState
from tgwui_k8s.gateway.fair_queue import FairQueue
from tgwui_k8s.gateway.fleet import Fleet

_RETRY_AFTER_SECONDS = 5
_LOOK_AGAIN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How much may be under way and how much may wait."""

    max_waiting: int = 1000
    """Calls in one model's queue."""
    queue_seconds: float = 60.0
    """How long a call waits at most."""
    max_in_flight: int = 512
    """Calls that one endpoint gets from this gateway at a time."""


@dataclass(slots=True, eq=False)
class _Waiter:
    call: Call
    tried: Collection[str]
    dialects: frozenset[DialectName]
    priority: float
    future: asyncio.Future[Lease | None]
    """None: its time is up."""


class Lease:
    """One call's place on one endpoint. Release it, whatever happens."""

    __slots__ = ("_admission", "_call", "state")

    def __init__(self, admission: Admission, call: Call, state: EndpointState) -> None:
        self._admission = admission
        self._call = call
        self.state = state

    def release(self) -> None:
        """The attempt is over."""
        self._admission.release(self._call, self.state)


class Admission:
    """Used from one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        limits: AdmissionLimits,
        weights: Weights,
        *,
        expected_models: Collection[str] = (),
        random: Random | None = None,
    ) -> None:
        """`expected_models`: names to wait for although nobody has served them yet."""
        self._fleet = fleet
        self._limits = limits
        self._weights = weights
        self._expected_models = frozenset(expected_models)
        self._random = random or Random()  # noqa: S311 - spreads load
        self._queues: dict[str, FairQueue[_Waiter]] = {}
        self._num_in_flight: Counter[str] = Counter()
        self._is_dispatch_due = False
        self._timer: asyncio.TimerHandle | None = None
        fleet.on_change(self._dispatch_soon)

    def num_waiting(self) -> dict[str, int]:
        """Length of every model's queue."""
        return {model: len(queue) for model, queue in self._queues.items()}

    async def place(
        self,
        call: Call,
        tried: Collection[str] = (),
        dialects: frozenset[DialectName] = frozenset(),
        *,
        is_begun: bool = False,
    ) -> Lease:
        """Wait for an endpoint, preferably none of `tried`; speaking one of `dialects`, if any.

        `is_begun`: the client has a part of the answer. Such a call goes first, and may wait where
        the queue is full. Raises `RequestError`: no such model, none of its endpoints has the path,
        the queue is full, or nothing came free in time.
        """
        self._check_model(call)
        self._check_path(call, dialects)
        queue = self._queues.get(call.model or "")
        if queue is None and (state := self._choose(call, tried, dialects)) is not None:
            return self._lease(call, state)
        if not is_begun and queue is not None and len(queue) >= self._limits.max_waiting:
            raise OverloadedError(
                "The gateway's queue for this model is full.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        priority = -math.inf if is_begun else call.priority
        return await self._wait(_Waiter(call, tried, dialects, priority, _new_future()))

    @property
    def queue_seconds(self) -> float:
        """How long a call may wait at a stretch."""
        return self._limits.queue_seconds

    def has_other(
        self, call: Call, tried: Collection[str], dialects: frozenset[DialectName]
    ) -> bool:
        """Whether an endpoint that was not tried could take the call now."""
        return any(one.uid not in tried for one in self._candidates(call, dialects))

    def release(self, call: Call, state: EndpointState) -> None:
        """Give a place back."""
        state.num_in_flight -= 1
        self._num_in_flight[call.key_name] -= 1
        if not self._num_in_flight[call.key_name]:
            del self._num_in_flight[call.key_name]
        self._dispatch_soon()

    async def _wait(self, waiter: _Waiter) -> Lease:
        loop, call, began = asyncio.get_running_loop(), waiter.call, time.monotonic()
        seconds = min(self._limits.queue_seconds - call.waited_at_a_stretch, call.deadline - began)
        queue = self._queues.setdefault(call.model or "", FairQueue())
        # Behind calls for the same endpoints only: others may wait for some that are away.
        queue.push(waiter, priority=waiter.priority, key=call.key_name, kind=waiter.dialects)
        timer = loop.call_later(max(seconds, 0.0), _give_up, waiter)
        self._dispatch_soon()
        self._look_again_later()
        try:
            lease = await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                _release(waiter.future.result())
            raise
        finally:
            timer.cancel()
            self._remove(queue, waiter)
            call.wait_seconds += time.monotonic() - began
        if lease is None:
            raise self._in_vain(call)
        return lease

    def _remove(self, queue: FairQueue[_Waiter], waiter: _Waiter) -> None:
        call = waiter.call
        queue.remove(waiter, priority=waiter.priority, key=call.key_name, kind=waiter.dialects)
        if not len(queue) and self._queues.get(call.model or "") is queue:
            del self._queues[call.model or ""]

    def _look_again_later(self) -> None:
        """An open breaker lets a trial through after a while, and nobody tells."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_LOOK_AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if self._queues:
            self._dispatch_soon()
            self._look_again_later()

    def _in_vain(self, call: Call) -> RequestError:
        """What a call is told whose time is up."""
        if any(state.is_ready and _serves(state, call.model) for state in self._fleet.states):
            return OverloadedError(
                "No engine had room for the request in time.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        return ModelNotReadyError(
            "No engine serves this model at the moment.",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )

    def _dispatch_soon(self) -> None:
        if self._queues and not self._is_dispatch_due:
            self._is_dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_dispatch_due = False
        for queue in list(self._queues.values()):
            while (found := self._next(queue)) is not None:
                waiter, state = found
                self._remove(queue, waiter)
                waiter.future.set_result(self._lease(waiter.call, state))

    def _next(self, queue: FairQueue[_Waiter]) -> tuple[_Waiter, EndpointState] | None:
        for waiter in queue.heads(self._num_in_flight):
            if not waiter.future.done():
                state = self._choose(waiter.call, waiter.tried, waiter.dialects)
                if state is not None:
                    return waiter, state
        return None

    def _candidates(self, call: Call, dialects: frozenset[DialectName]) -> list[Candidate]:
        now = asyncio.get_running_loop().time()
        states = self._fleet.states
        if dialects:
            states = [state for state in states if state.dialect in dialects]
        return usable(states, call.model, now, max_in_flight=self._limits.max_in_flight)

    def _choose(
        self, call: Call, tried: Collection[str], dialects: frozenset[DialectName]
    ) -> EndpointState | None:
        candidates = self._candidates(call, dialects)
        fresh = [candidate for candidate in candidates if candidate.uid not in tried]
        chosen = pick(fresh or candidates, call.conversation(), self._weights, self._random)
        return None if chosen is None else self._fleet.state_of(chosen.uid)

    def _lease(self, call: Call, state: EndpointState) -> Lease:
        state.num_in_flight += 1
        state.num_requests += 1
        state.breaker.begin(asyncio.get_running_loop().time())
        self._num_in_flight[call.key_name] += 1
        call.endpoint_names.append(state.name)
        call.served_model = call.model or next(iter(state.models), "")
        return Lease(self, call, state)

    def _check_path(self, call: Call, dialects: frozenset[DialectName]) -> None:
        """Refuse what the engines of a model do not have, also when they are ready again."""
        if not dialects or call.endpoint_names:
            return
        mine = [state for state in self._fleet.states if _serves(state, call.model)]
        if mine and all(state.dialect not in (None, *dialects) for state in mine):
            raise NotFoundError(
                f"The engines of this model do not serve {call.path[:100]}.", param="model"
            )

    def _check_model(self, call: Call) -> None:
        """Refuse a model that does not exist, and no model where there are several."""
        served = self._fleet.models
        if call.model is None:
            if len({card.get("root") or name for name, card in served.items()}) > 1:
                raise InvalidRequestError(
                    "Several models are served: name one in 'model'.",
                    param="model",
                    code="missing_required_parameter",
                )
        elif (
            served
            and call.model not in self._expected_models
            and not self._fleet.may_have(call.model)
        ):
            raise NotFoundError(
                f"The model '{call.model[:100]}' does not exist.",
                param="model",
                code="model_not_found",
            )


def _serves(state: EndpointState, model: str | None) -> bool:
    return bool(state.models) and (model is None or model in state.models)


def _new_future() -> asyncio.Future[Lease | None]:
    return asyncio.get_running_loop().create_future()


def _give_up(waiter: _Waiter) -> None:
    if not waiter.future.done():
        waiter.future.set_result(None)


def _release(lease: Lease | None) -> None:
    if lease is not None:
        lease.release()
