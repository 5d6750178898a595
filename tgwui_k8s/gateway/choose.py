"""Which endpoint takes a request: filter → score → pick, as pure functions.

A candidate is an endpoint as it is at this moment. Nothing here waits, remembers or looks at a
clock; the same input and random numbers give the same choice.

1. `usable`: ready, not leaving, its breaker closed, serves the model, has room.
2. `score`: how busy it is. Our own requests count at once; what others have brought it is known
   from its last figures; a cache that runs full counts more and more.
3. `pick`: the conversation's own endpoint, unless that has more than its bounded share of the load;
   else the less busy of two at random, which is nearly as good as the least busy of all and does
   not send every replica's next request to the same endpoint.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from tgwui_k8s.gateway.affinity import rank
from tgwui_k8s.gateway.endpoint import EndpointState

STALE_SECONDS = 10.0
"""Figures older than this are not believed."""

_FULLEST = 0.99


@dataclass(frozen=True, slots=True)
class Weights:
    """What makes an endpoint busy, in units of one running request."""

    queue: float = 2.0
    """A request in its queue."""
    kv_cache: float = 4.0
    """Times usage / (1 - usage) of its KV cache."""
    affinity_bound: float = 1.25
    """A conversation's own endpoint may have so many times the mean of requests in flight."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint at this moment."""

    uid: str
    num_in_flight: int
    """Sent by this gateway and not answered yet."""
    num_others_running: float = 0
    """Requests that came another way, as far as is known."""
    num_waiting: float = 0
    kv_cache_usage: float = 0


def usable(
    states: Collection[EndpointState],
    model: str | None,
    now: float,
    *,
    max_in_flight: int,
) -> list[Candidate]:
    """The endpoints that could take a request for `model` (None: whatever they serve)."""
    return [
        candidate_of(state, now)
        for state in states
        if state.is_ready
        and not state.is_leaving
        and (model is None or model in state.models)
        and state.num_in_flight < max_in_flight
        and state.breaker.allows(now)
    ]


def candidate_of(state: EndpointState, now: float) -> Candidate:
    """What counts of a state."""
    uid, num_in_flight = state.endpoint.uid, state.num_in_flight
    if now - state.load_time > STALE_SECONDS:
        return Candidate(uid, num_in_flight)
    load = state.load
    others = max(0.0, load.num_running + load.num_waiting - state.num_in_flight_then)
    return Candidate(uid, num_in_flight, others, load.num_waiting, load.kv_cache_usage)


def score(candidate: Candidate, weights: Weights) -> float:
    """How busy an endpoint is; less is better."""
    usage = min(max(candidate.kv_cache_usage, 0.0), _FULLEST)
    return (
        candidate.num_in_flight
        + candidate.num_others_running
        + weights.queue * candidate.num_waiting
        + weights.kv_cache * usage / (1 - usage)
    )


def pick(
    candidates: Sequence[Candidate], key: bytes | None, weights: Weights, random: Random
) -> Candidate | None:
    """One of the candidates, if there is any. `key` tells the conversation."""
    if not candidates:
        return None
    if key is not None and weights.affinity_bound > 0:
        return _of_conversation(candidates, key, weights)
    if len(candidates) == 1:
        return candidates[0]
    first, second = random.sample(candidates, 2)
    return first if score(first, weights) <= score(second, weights) else second


def _of_conversation(candidates: Sequence[Candidate], key: bytes, weights: Weights) -> Candidate:
    """The first in the conversation's order that is not over its share."""
    by_uid = {candidate.uid: candidate for candidate in candidates}
    busyness = {uid: score(candidate, weights) for uid, candidate in by_uid.items()}
    share = math.ceil(weights.affinity_bound * (sum(busyness.values()) + 1) / len(candidates))
    for uid in rank(key, by_uid):
        if busyness[uid] + 1 <= share:
            return by_uid[uid]
    return min(candidates, key=lambda candidate: busyness[candidate.uid])
