"""Filter, score, pick, affinity: pure functions, so properties over everything."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tgwui_k8s.gateway.affinity import beginning_of, conversation_key, rank
from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.choose import (
    STALE_SECONDS,
    Candidate,
    Weights,
    candidate_of,
    pick,
    score,
    usable,
)
from tgwui_k8s.gateway.endpoint import Endpoint, EndpointState, Load
from tgwui_k8s.gateway.http_client import Origin

WEIGHTS = Weights()

candidates = st.lists(
    st.builds(
        Candidate,
        uid=st.uuids().map(str),
        num_in_flight=st.integers(0, 100),
        num_others_running=st.floats(0, 100),
        num_waiting=st.floats(0, 100),
        kv_cache_usage=st.floats(0, 1),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.uid,
)
keys = st.one_of(st.none(), st.binary(min_size=16, max_size=16))


def make_state(uid: str = "a", **changes: object) -> EndpointState:
    """A ready endpoint that serves model `m`."""
    endpoint = Endpoint(uid, Origin("127.0.0.1", 1))
    fields = {"is_ready": True, "models": {"m": {}}, **changes}
    return EndpointState(endpoint, Breaker(), **fields)  # type: ignore[arg-type]


@settings(deadline=None)
@given(candidates, keys, st.randoms(use_true_random=False))
def test_one_of_the_candidates_is_picked(
    found: list[Candidate], key: bytes | None, random: Random
) -> None:
    """Whatever their load, some endpoint takes the request."""
    assert pick(found, key, WEIGHTS, random) in found


def test_nobody_is_picked_of_nobody() -> None:
    """Then the request waits."""
    assert pick([], b"k" * 16, WEIGHTS, Random(0)) is None


@settings(deadline=None)
@given(candidates, st.binary(min_size=16, max_size=16))
def test_a_conversation_stays_where_it_is_while_load_allows(
    found: list[Candidate], key: bytes
) -> None:
    """The choice is the first in the conversation's order that is not over its bound; no endpoint
    before it had room."""
    chosen = pick(found, key, WEIGHTS, Random(0))
    assert chosen is not None
    busyness = {one.uid: score(one, WEIGHTS) for one in found}
    share = WEIGHTS.affinity_bound * (sum(busyness.values()) + 1) / len(found) + 1
    for uid in rank(key, busyness):
        if uid == chosen.uid:
            break
        assert busyness[uid] + 1 > share - 1
    assert busyness[chosen.uid] + 1 <= share or chosen.uid == min(
        busyness, key=busyness.__getitem__
    )


def test_replicas_agree_and_a_leaver_moves_only_its_own() -> None:
    """Rendezvous hashing: the order of the others does not change when one leaves."""
    uids = [f"pod-{number}" for number in range(7)]
    for number in range(50):
        key = conversation_key("m", str(number).encode())
        order = rank(key, uids)
        assert order == rank(key, reversed(uids))
        left = [uid for uid in uids if uid != "pod-3"]
        assert rank(key, left) == [uid for uid in order if uid != "pod-3"]


def test_conversations_spread_evenly() -> None:
    """With equal load every endpoint is the home of its share of conversations."""
    found = [Candidate(f"pod-{number}", 0) for number in range(4)]
    homes = Counter(
        pick(found, conversation_key("m", str(number).encode()), WEIGHTS, Random(0)).uid  # type: ignore[union-attr]
        for number in range(2000)
    )
    assert min(homes.values()) > 400


def test_two_choices_keep_load_level() -> None:
    """A thousand requests without affinity: nobody has much more than the others."""
    random, load = Random(1), Counter({str(number): 0 for number in range(5)})
    for _ in range(1000):
        found = [Candidate(uid, count) for uid, count in load.items()]
        chosen = pick(found, None, WEIGHTS, random)
        assert chosen is not None
        load[chosen.uid] += 1
    assert max(load.values()) - min(load.values()) < 10


@settings(deadline=None)
@given(
    st.builds(
        make_state,
        is_ready=st.booleans(),
        is_leaving=st.booleans(),
        num_in_flight=st.integers(0, 12),
        models=st.sampled_from([{}, {"m": {}}, {"other": {}}]),
    ),
    st.sampled_from([None, "m"]),
)
def test_only_endpoints_that_can_serve_are_usable(state: EndpointState, model: str | None) -> None:
    """Ready, staying, with room, and with the model."""
    found = usable([state], model, 0.0, max_in_flight=10)
    expected = (
        state.is_ready
        and not state.is_leaving
        and state.num_in_flight < 10
        and (model is None or model in state.models)
    )
    assert bool(found) is expected


def test_the_broken_are_left_out() -> None:
    """Open breakers."""
    broken = make_state("broken")
    for _ in range(3):
        broken.breaker.fail(0.0)
    found = usable([make_state("fine"), broken], "m", 0.1, max_in_flight=9)
    assert [candidate.uid for candidate in found] == ["fine"]


def test_own_requests_are_not_counted_twice() -> None:
    """What we had in flight when the figures were read is part of them."""
    state = make_state(num_in_flight=5, num_in_flight_then=4, load=Load(6, 2, 0.5), load_time=100.0)
    fresh = candidate_of(state, 101.0)
    assert (fresh.num_in_flight, fresh.num_others_running) == (5, 4.0)
    stale = candidate_of(state, 101.0 + STALE_SECONDS)
    assert (stale.num_others_running, stale.num_waiting, stale.kv_cache_usage) == (0, 0, 0)


def test_all_turns_of_a_conversation_begin_alike() -> None:
    """The key depends on the first two messages only; another question is another one."""
    first = b'[{"role":"system","content":"s"},{"role":"user","content":"a"}]'
    later = first[:-1] + b',{"role":"assistant","content":"b"},{"role":"user","content":"c"}]'
    other = first.replace(b'"a"', b'"z"')
    assert beginning_of(first, None) == beginning_of(later, None)
    assert beginning_of(first, None) != beginning_of(other, None)
    assert beginning_of(None, b'"x' + b"y" * 600) == beginning_of(None, b'"x' + b"y" * 700)
    assert beginning_of(b"not json", None) == b"not json"
