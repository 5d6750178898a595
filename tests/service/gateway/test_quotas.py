"""Limits of keys at real gateways, with a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tests.helpers.gateway import RunningGateway, running_gateway, until
from tests.helpers.gateway_scene import BODY, PATH, chunk, stream_of
from tests.helpers.redis_server import RedisServer
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint, answer
from tgwui_k8s.gateway.quotas import redis_ledger
from tgwui_k8s.gateway.quotas.ledger import Demand
from tgwui_k8s.gateway.quotas.local import LocalLedger
from tgwui_k8s.gateway.quotas.quota import Quota, period_of
from tgwui_k8s.gateway.quotas.redis_ledger import RedisLedger

USED = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
ANSWER = answer(200, json.dumps({"choices": [], "usage": USED}).encode())
COSTS_TEN = {**BODY, "max_tokens": 9}
"""Estimated and used."""
TEN_REQUESTS = {"budget_tokens": 100, "budget_period": "month"}
"""Unlike a minute's, a month's limit does not fill up again while a busy machine is slow."""


@pytest.fixture(scope="module", name="redis")
def redis_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that runs, or can be started."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def gateways(
    folder: Path, *entries: dict[str, Any], count: int = 1, **options: Any
) -> AsyncIterator[tuple[list[RunningGateway], ScriptedEndpoint, httpx.AsyncClient]]:
    """Gateways that know these keys, before one endpoint."""
    file = folder / "keys.yaml"
    file.write_text(json.dumps({"keys": list(entries)}))
    endpoint = ScriptedEndpoint(plans=deque([Plan(raw=ANSWER)] * 500))
    server = {"api_key_file": str(file), "admin_key": ("boss",)}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(endpoint.serve())
        found = [
            await stack.enter_async_context(running_gateway(endpoint.url, server=server, **options))
            for _ in range(count)
        ]
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=20))
        http.headers["authorization"] = "Bearer a"
        yield found, endpoint, http


def entry(**limits: Any) -> dict[str, Any]:
    """Key `a`."""
    return {"name": "team-a", "key": "a", **limits}


async def test_a_refused_request_gets_openais_429(tmp_path: Path) -> None:
    """Envelope, Retry-After and x-ratelimit headers; the endpoint never hears of it."""
    limits = entry(requests_per_minute=2, tokens_per_minute=1000)
    async with gateways(tmp_path, limits) as ((gateway,), endpoint, http):
        first = await http.post(gateway.url + PATH, json=BODY)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        await http.post(gateway.url + PATH, json=BODY)
        refused = await http.post(gateway.url + PATH, json=BODY)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        error = refused.json()["error"]
        assert error["code"] == "rate_limit_exceeded"
        assert error["type"] == "rate_limit_error"
        assert "x-should-retry" not in refused.headers
        assert len(endpoint.requests) == 2
        metrics = (await http.get(gateway.url + "/metrics")).text
        line = 'tgwui_gateway_rate_limited_total{key="team-a",limit="requests"} 1.0'
        assert line in metrics
        assert "\ntgwui_gateway_limits_shared " not in metrics  # Nobody has named a Redis.


async def test_anthropics_clients_get_anthropics_429(tmp_path: Path) -> None:
    """In their envelope."""
    limits = entry(requests_per_minute=1)
    async with gateways(tmp_path, limits) as ((gateway,), _, http):
        await http.post(gateway.url + "/v1/messages", json=BODY)
        refused = await http.post(gateway.url + "/v1/messages", json=BODY)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_spent_budget_is_not_worth_trying_again(tmp_path: Path) -> None:
    """Clients obey `x-should-retry`; what was used is settled, not what was estimated."""
    limits = entry(budget_tokens=40, budget_period="day")
    body = {**BODY, "prompt": "x", "max_tokens": 25}
    async with gateways(tmp_path, limits) as ((gateway,), _, http):
        for _ in range(2):  # 26 estimated, 10 used
            assert (await http.post(gateway.url + PATH, json=body)).status_code == 200
        refused = await http.post(gateway.url + PATH, json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert refused.headers["x-should-retry"] == "false"


async def test_requests_at_a_time_include_streams_to_their_end(tmp_path: Path) -> None:
    """A place is free when the stream is over, or its client has gone."""
    raw = stream_of(chunk("x", 0), chunk("", 1))
    async with gateways(tmp_path, entry(max_concurrent_requests=1)) as ((gateway,), endpoint, http):
        endpoint.plans = deque([Plan(raw=raw, num_bytes=len(raw) - 10, deed="stall")])
        body = {**BODY, "stream": True}
        async with http.stream("POST", gateway.url + PATH, json=body) as stream:
            await anext(stream.aiter_bytes())
            refused = await http.post(gateway.url + PATH, json=BODY)
            assert refused.status_code == 429
            assert "at a time" in refused.json()["error"]["message"]
        await until(lambda: endpoint.num_open == 0)
        endpoint.plans = deque([Plan(raw=ANSWER)])
        for _ in range(100):
            last = await http.post(gateway.url + PATH, json=BODY)
            if last.status_code == 200:
                break
            await asyncio.sleep(0.01)
        assert last.status_code == 200


async def test_keys_see_and_use_their_models_only(tmp_path: Path) -> None:
    """In the list, by name, and in calls."""
    other = {"name": "team-b", "key": "b"}
    limits = entry(models=["other/*"])
    async with gateways(tmp_path, limits, other) as ((gateway,), endpoint, http):
        assert (await http.get(gateway.url + "/v1/models")).json()["data"] == []
        assert (await http.get(gateway.url + "/v1/models/fake/model")).status_code == 404
        refused = await http.post(gateway.url + PATH, json={**BODY, "model": "fake/model"})
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert endpoint.requests == []
        http.headers["authorization"] = "Bearer b"
        assert len((await http.get(gateway.url + "/v1/models")).json()["data"]) == 1


async def test_keys_are_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether they are right or wrong."""
    caplog.set_level(logging.DEBUG)
    limits = {"name": "team-a", "key": "geheim-1", "requests_per_minute": 1}
    async with gateways(tmp_path, limits) as ((gateway,), _, http):
        for key in ("geheim-1", "geheim-1", "geheim-2"):
            http.headers["authorization"] = f"Bearer {key}"
            await http.post(gateway.url + PATH, json=BODY)
    told = "".join(str(record.__dict__) for record in caplog.records)
    assert "team-a" in told
    assert "geheim" not in told


async def test_replicas_with_redis_count_exactly(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 requests at once over three gateways, and not one more than the limit gets through."""
    patient = partial(RedisLedger, timeout_seconds=30)  # Away is what it must not be here.
    monkeypatch.setattr(redis_ledger, "RedisLedger", patient)
    options = {"redis_url": redis.url, "count": 3}
    async with gateways(tmp_path, entry(**TEN_REQUESTS), **options) as (found, endpoint, http):
        await until(lambda: all(one.parts.limits_are_shared() for one in found))
        calls = [http.post(found[number % 3].url + PATH, json=COSTS_TEN) for number in range(30)]
        statuses = sorted([response.status_code for response in await asyncio.gather(*calls)])
        assert statuses == [200] * 10 + [429] * 20
        assert len(endpoint.requests) == 10
        http.headers["authorization"] = "Bearer boss"
        told = (await http.get(found[0].url + "/gateway/endpoints")).json()
        assert told["limits_of_keys_are_counted"] == "in Redis, for all replicas"


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_each_replica_counts_until_it_is_back(
    tmp_path: Path, redis: RedisServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No request fails for that; one line says that it went, and one that it is back."""
    caplog.set_level(logging.INFO)
    limits = {**entry(**TEN_REQUESTS), "name": f"team-{how}"}
    async with gateways(tmp_path, limits, redis_url=redis.url) as ((gateway,), _, http):
        shared = gateway.parts.limits_are_shared
        await until(shared)
        caplog.clear()  # On a busy machine it may take more than one look to find Redis.
        if how == "killed":
            redis.stop()
        else:
            redis.signal(signal.SIGSTOP)
        try:
            answers = [await http.post(gateway.url + PATH, json=COSTS_TEN) for _ in range(12)]
            metrics = (await http.get(gateway.url + "/metrics")).text
        finally:
            if how == "killed":
                redis.start()
            else:
                redis.signal(signal.SIGCONT)
        assert [one.status_code for one in answers] == [200] * 10 + [429] * 2
        assert "\ntgwui_gateway_limits_shared 0.0" in metrics
        await until(shared)
        told = [one.message for one in caplog.records if "Redis" in one.message]
        assert told == [
            "Redis is away: each replica counts limits by itself until it is back",
            "limits are counted in Redis, for all replicas together",
        ]


async def test_places_held_while_redis_stood_still_are_given_back(
    tmp_path: Path, redis: RedisServer
) -> None:
    """A call ends while Redis does not answer, and others begin that it only hears of afterwards:
    once it is back, none of them takes a place any more."""
    gate = asyncio.Event()
    limits = {**entry(max_concurrent_requests=1), "name": "team-places"}
    async with gateways(tmp_path, limits, redis_url=redis.url) as ((gateway,), endpoint, http):
        await until(gateway.parts.limits_are_shared)
        endpoint.plans = deque([Plan(raw=ANSWER, gate=gate), *[Plan(raw=ANSWER)] * 20])
        first = asyncio.ensure_future(http.post(gateway.url + PATH, json=BODY))
        await until(lambda: endpoint.num_open)
        redis.signal(signal.SIGSTOP)
        try:
            with pytest.raises(asyncio.TimeoutError):  # A client that leaves while it is counted.
                await asyncio.wait_for(http.post(gateway.url + PATH, json=BODY), 0.2)
            gate.set()
            assert (await first).status_code == 200
            assert (await http.post(gateway.url + PATH, json=BODY)).status_code == 200
            await until(lambda: not gateway.parts._meters._settling)
        finally:
            redis.signal(signal.SIGCONT)
        await until(gateway.parts.limits_are_shared)
        assert (await http.post(gateway.url + PATH, json=BODY)).status_code == 200


async def test_what_is_done_twice_counts_once(redis: RedisServer) -> None:
    """A lost answer makes the client library ask again."""
    ledger = RedisLedger(redis.url, timeout_seconds=30)
    quota = Quota(requests_per_minute=5, tokens_per_minute=1000, budget_tokens=100)
    period = period_of("day", 0.0)
    one, other = (Demand("team-twice", quota, name, 60, period, 60.0) for name in "ab")
    try:
        for _ in range(2):
            outcome = await ledger.reserve(one)
            assert outcome.refused_by is None
            assert 4 <= outcome.remaining_requests < 5
            assert 940 <= outcome.remaining_tokens < 950
        for _ in range(2):
            await ledger.settle(one, 50)
        assert (await ledger.reserve(other)).refused_by == "budget"  # 50 + 60 of 100.
        await ledger.settle(other, 0)
        small = Demand("team-twice", quota, "c", 50, period, 60.0)
        assert (await ledger.reserve(small)).refused_by is None
    finally:
        await ledger.close()


MOST_TOKENS_PER_MINUTE = 50
FASTEST_REFILL_SECONDS = 60 / MOST_TOKENS_PER_MINUTE
QUOTAS = st.builds(
    Quota,
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, MOST_TOKENS_PER_MINUTE),
    st.none() | st.integers(1, 3),
    st.none() | st.integers(1, 100),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle"]), st.integers(0, 5), st.integers(0, 30)),
    max_size=12,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(quota=QUOTAS, steps=STEPS)
async def test_redis_and_memory_count_alike(
    redis: RedisServer, quota: Quota, steps: list[tuple[str, int, int]]
) -> None:
    """Any requests, in any order: the same are granted, and the same is left (of what comes back
    with time, less than one does while this runs)."""
    remote, local = RedisLedger(redis.url, timeout_seconds=30), LocalLedger()
    name = f"team-{uuid4()}"  # Redis remembers the examples before.
    period = period_of("day", 0.0)
    under_way: dict[int, Demand] = {}
    began = time.monotonic()
    try:
        for deed, number, num_tokens in steps:
            demand = Demand(name, quota, f"r{number}", num_tokens, period, 60.0)
            if deed == "reserve" and number not in under_way:
                there, here = await remote.reserve(demand), await local.reserve(demand)
                if time.monotonic() - began > FASTEST_REFILL_SECONDS:
                    reject()  # The machine was too busy: both may be right and differ.
                assert there.refused_by == here.refused_by
                if quota.tokens_per_minute is not None:
                    assert abs(there.remaining_tokens - here.remaining_tokens) < 1
                if quota.requests_per_minute is not None:
                    assert abs(there.remaining_requests - here.remaining_requests) < 1
                if here.refused_by is None:
                    under_way[number] = demand
            elif deed == "settle" and number in under_way:
                reserved = under_way.pop(number)
                await remote.settle(reserved, num_tokens)
                await local.settle(reserved, num_tokens)
    finally:
        await remote.close()
