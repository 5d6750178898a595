"""Counting what keys use: buckets, budgets, places; estimates that are settled."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.errors import RateLimitedError
from tgwui_k8s.gateway.call import Call, read_asked
from tgwui_k8s.gateway.limits import Limits
from tgwui_k8s.gateway.quotas.ledger import Demand, Ledger, LedgerAwayError, Outcome
from tgwui_k8s.gateway.quotas.local import LocalLedger
from tgwui_k8s.gateway.quotas.meter import UNSTATED_TOKENS, Meter, duration
from tgwui_k8s.gateway.quotas.quota import Period, Quota, period_of
from tgwui_k8s.gateway.quotas.shared import SharedLedger

PERIOD = Period("2026-11", 1_000_000.0)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def demand(quota: Quota, num_tokens: int = 0, name: str = "r", period: Period = PERIOD) -> Demand:
    """One of key `a`."""
    return Demand("a", quota, name, num_tokens, period, 60.0)


async def granted(ledger: Ledger, *demands: Demand) -> list[bool]:
    """What becomes of each."""
    return [(await ledger.reserve(one)).refused_by is None for one in demands]


async def test_requests_per_minute_come_back_evenly() -> None:
    """A burst of the whole minute, then one more for every part of it that passes."""
    clock = Clock()
    ledger = LocalLedger(clock)
    one = demand(Quota(requests_per_minute=3))
    assert await granted(ledger, one, one, one, one) == [True, True, True, False]
    assert (await ledger.reserve(one)) == Outcome("requests", pytest.approx(20.0), 0.0, 0.0)
    clock.now += 20.001
    assert await granted(ledger, one, one) == [True, False]
    clock.now += 3600
    assert await granted(ledger, one, one, one, one) == [True, True, True, False]


async def test_tokens_are_settled_by_what_was_used() -> None:
    """What was too much comes back; what was too little has to fill up first."""
    clock = Clock()
    ledger = LocalLedger(clock)
    one = demand(Quota(tokens_per_minute=100), 60)
    assert await granted(ledger, one, one) == [True, False]
    await ledger.settle(one, 10)
    assert (await ledger.reserve(one)).remaining_tokens == 30
    await ledger.settle(one, 160)
    outcome = await ledger.reserve(one)
    assert (outcome.refused_by, outcome.remaining_tokens) == ("tokens", -70)
    assert outcome.wait_seconds == pytest.approx(78)


async def test_a_demand_larger_than_the_minute_waits_for_a_full_one() -> None:
    """It would be refused for ever otherwise; what it uses is settled all the same."""
    clock = Clock()
    ledger = LocalLedger(clock)
    large = demand(Quota(tokens_per_minute=100), 1000)
    assert await granted(ledger, large, large) == [True, False]
    await ledger.settle(large, 150)
    clock.now += 60
    assert await granted(ledger, large) == [False]
    clock.now += 31
    assert await granted(ledger, large) == [True]


async def test_places_come_back_by_settling_or_by_time() -> None:
    """A replica that dies settles nothing: its places are free when its requests must be over."""
    clock = Clock()
    ledger = LocalLedger(clock)
    quota = Quota(max_concurrent_requests=2)
    first, second, third = (demand(quota, name=name) for name in "abc")
    assert await granted(ledger, first, second, third) == [True, True, False]
    await ledger.settle(first, 0)
    assert await granted(ledger, third, first) == [True, False]
    clock.now += 61
    assert await granted(ledger, first, second, third) == [True, True, False]


async def test_a_budget_is_for_its_period() -> None:
    """Refused before it is overdrawn; a new period begins with all of it."""
    clock = Clock()
    ledger = LocalLedger(clock)
    quota = Quota(budget_tokens=100)
    one = demand(quota, 60)
    assert await granted(ledger, one, one) == [True, False]
    assert (await ledger.reserve(one)).wait_seconds == PERIOD.end - clock.now
    await ledger.settle(one, 40)
    assert await granted(ledger, one) == [True]
    december = Period("2026-12", 2_000_000.0)
    assert await granted(ledger, demand(quota, 90, period=december)) == [True]
    await ledger.settle(one, 0)  # Of November's: December's does not get it.
    assert await granted(ledger, demand(quota, 20, period=december)) == [False]


@given(st.floats(0, 4e9))
def test_periods_follow_one_another(now: float) -> None:
    """A moment lies before the end of its period, and the end begins another one."""
    for name in ("hour", "day", "week", "month"):
        period = period_of(name, now)  # type: ignore[arg-type]
        following = period_of(name, period.end)  # type: ignore[arg-type]
        assert now < period.end < following.end
        assert period.name != following.name
        assert period_of(name, period.end - 0.001).name == period.name  # type: ignore[arg-type]


def test_periods_are_the_calendars() -> None:
    """In UTC."""
    now = datetime(2026, 12, 31, 23, 30, tzinfo=timezone.utc).timestamp()
    named = {name: period_of(name, now).name for name in ("hour", "day", "week", "month")}  # type: ignore[arg-type]
    assert named == {
        "hour": "2026-12-31T23", "day": "2026-12-31", "week": "2026-W53", "month": "2026-12",
    }  # fmt: skip
    end = datetime(2027, 1, 1, tzinfo=timezone.utc).timestamp()
    assert period_of("month", now).end == period_of("day", now).end == end


def call_of(path: str = "/v1/completions", **members: Any) -> Call:
    """A call as it comes in."""
    body = msgspec.json.encode(members)
    return Call(
        method="POST",
        path=path,
        query=b"",
        headers={},
        body=body,
        asked=read_asked(body),
        limits=Limits(),
        arrival=0.0,
        request_id="r",
        trace_parent=b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-00",
    )


@pytest.mark.parametrize(
    ("path", "members", "estimated"),
    [
        ("/v1/completions", {"prompt": "x" * 38, "max_tokens": 5}, 11 + 5),
        ("/v1/completions", {"prompt": "x" * 38}, 11 + UNSTATED_TOKENS),
        ("/v1/completions", {"prompt": "x" * 38, "max_tokens": 5, "n": 3}, 11 + 15),
        ("/v1/chat/completions", {"messages": [], "max_completion_tokens": 7}, 1 + 7),
        ("/v1/responses", {"input": "", "max_output_tokens": 7}, 9 + 7),
        ("/v1/completions", {"prompt": "", "max_tokens": -1}, 1 + UNSTATED_TOKENS),
        ("/v1/embeddings", {"input": "x" * 8}, 6),
        ("/tokenize", {"prompt": "x" * 80}, 0),
    ],
)
async def test_tokens_are_estimated(path: str, members: dict[str, Any], estimated: int) -> None:
    """A quarter of the prompt's bytes, and what may be generated."""
    ledger = LocalLedger(Clock())
    meter = Meter(ledger, "a", Quota(tokens_per_minute=1000), call_of(path, **members))
    await meter.reserve()
    assert dict(meter.headers())[b"x-ratelimit-remaining-tokens"] == b"%d" % (1000 - estimated)


@pytest.mark.parametrize(
    ("usage", "status", "used"),
    [
        ((3, 4), 200, 7),
        ((None, 4), 200, 11 + 4),
        ((3, None), 503, 3),
        ((None, None), 200, 16),
        ((None, None), 503, 0),
        ((None, None), None, 0),
    ],
)
async def test_what_was_used_is_settled(
    usage: tuple[int | None, int | None], status: int | None, used: int
) -> None:
    """What engines have said; else the estimate for an answer, and nothing for an error."""
    ledger, quota = LocalLedger(Clock()), Quota(tokens_per_minute=1000)
    call = call_of(prompt="x" * 38, max_tokens=5)
    meter = Meter(ledger, "a", quota, call)
    await meter.reserve()
    call.num_prompt_tokens, call.num_completion_tokens = usage
    await meter.settle(status)
    left = (await ledger.reserve(demand(quota))).remaining_tokens
    assert left == pytest.approx(1000 - used)


async def test_who_leaves_before_the_answer_pays_for_the_prompt() -> None:
    """An engine has worked on it."""
    ledger, quota = LocalLedger(Clock()), Quota(tokens_per_minute=1000)
    call = call_of(prompt="x" * 38, max_tokens=5)
    meter = Meter(ledger, "a", quota, call)
    await meter.reserve()
    call.endpoint_names.append("pod")
    await meter.settle(None)
    assert (await ledger.reserve(demand(quota))).remaining_tokens == pytest.approx(1000 - 11)


async def test_refusals_say_which_limit_and_when_to_come_back() -> None:
    """In words for people, and in seconds for clients."""
    ledger, quota = LocalLedger(Clock()), Quota(requests_per_minute=1)
    meters = [Meter(ledger, "team-a", quota, call_of(prompt="x")) for _ in range(2)]
    await meters[0].reserve()
    with pytest.raises(RateLimitedError) as error:
        await meters[1].reserve()
    assert error.value.retry_after_seconds == 60
    assert re.search("team-a.*1 requests per minute.*1m0s", error.value.message)
    await meters[1].settle(429)
    assert dict(meters[1].headers()) == {
        b"x-ratelimit-limit-requests": b"1",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"1m0s",
    }


def test_durations_are_openais() -> None:
    """As in `x-ratelimit-reset-requests`."""
    assert [duration(seconds) for seconds in (0, 0.0161, 1, 1.5, 59.9, 60, 360, 3661)] == [
        "0ms", "17ms", "1s", "1.5s", "59.9s", "1m0s", "6m0s", "61m1s",
    ]  # fmt: skip


class DyingRedis:
    """Answers one ping, as slowly as the test wants, and dies before it says so."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.num_pings = 0

    async def ping(self) -> None:
        """The first is answered."""
        self.num_pings += 1
        if self.num_pings > 1:
            raise LedgerAwayError("gone")
        await self.may_answer.wait()

    async def reserve(self, demand: Demand) -> Outcome:
        """Gone."""
        raise LedgerAwayError("gone")

    async def settle(self, demand: Demand, num_tokens: int) -> None:
        """Gone."""
        raise LedgerAwayError("gone")

    async def close(self) -> None:
        """Nothing to close."""


async def test_an_old_answer_of_redis_does_not_hide_a_newer_failure() -> None:
    """A ping that Redis answered before it died arrives after a request has found it dead."""
    redis = DyingRedis()
    ledger = SharedLedger(redis, ping_seconds=60)
    running = asyncio.ensure_future(ledger.run())
    await asyncio.sleep(0)
    ledger.is_shared = True
    assert await granted(ledger, demand(Quota(requests_per_minute=3))) == [True]
    redis.may_answer.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not ledger.is_shared
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
