"""`LocalLedger`: counts what goes through this process, as `redis_scripts` does for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tgwui_k8s.gateway.quotas.ledger import BUSY_SECONDS, Demand, LimitName, Outcome
from tgwui_k8s.gateway.quotas.quota import WINDOW_SECONDS, Quota


@dataclass(slots=True)
class _Bucket:
    """Holds what may be used within a minute, and fills up as time goes by."""

    capacity: float
    level: float
    time: float

    def refill(self, capacity: float, now: float) -> None:
        """Add what time has brought; the capacity may have changed meanwhile."""
        gained = max(0.0, now - self.time) * capacity / WINDOW_SECONDS
        self.capacity = capacity
        self.level = min(capacity, self.level + gained)
        self.time = now

    def seconds_until(self, amount: float) -> float:
        """When it will hold `amount`."""
        return (amount - self.level) * WINDOW_SECONDS / self.capacity


@dataclass(slots=True)
class _Account:
    """One key's."""

    requests: _Bucket | None = None
    """None: no such limit."""
    tokens: _Bucket | None = None
    calls: dict[str, float] = field(default_factory=dict)
    """Requests under way, with the time when they are over at the latest."""
    period: str = ""
    used: int = 0
    """Of the budget, in `period`."""

    def advance(self, quota: Quota, period: str, now: float) -> None:
        """Bring everything up to `now`."""
        self.requests = _refilled(self.requests, quota.requests_per_minute, now)
        self.tokens = _refilled(self.tokens, quota.tokens_per_minute, now)
        self.calls = {name: end for name, end in self.calls.items() if end > now}
        if self.period != period:
            self.period, self.used = period, 0


class LocalLedger:
    """See `Ledger`. Used from one event loop; forgets everything when the process ends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    async def reserve(self, demand: Demand) -> Outcome:
        """See `Ledger`."""
        now = self._clock()
        account = self._accounts.setdefault(demand.key_name, _Account())
        account.advance(demand.quota, demand.period.name, now)
        refused_by, wait_seconds = _refusal(account, demand, now)
        if refused_by is None:
            _take(account.requests, 1)
            _take(account.tokens, demand.num_bucket_tokens)
            account.calls[demand.request_id] = now + demand.longest_seconds
            account.used += demand.num_tokens
        return Outcome(refused_by, wait_seconds, _left(account.requests), _left(account.tokens))

    async def settle(self, demand: Demand, num_tokens: int) -> None:
        """See `Ledger`."""
        account = self._accounts.get(demand.key_name)
        if account is None:
            return
        account.calls.pop(demand.request_id, None)
        bucket = account.tokens
        if bucket is not None:
            bucket.refill(bucket.capacity, self._clock())
            _take(bucket, num_tokens - demand.num_bucket_tokens)
        if account.period == demand.period.name:
            account.used += num_tokens - demand.num_tokens


def _refilled(bucket: _Bucket | None, limit: int | None, now: float) -> _Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return _Bucket(limit, limit, now)
    bucket.refill(limit, now)
    return bucket


def _take(bucket: _Bucket | None, amount: float) -> None:
    if bucket is not None:
        bucket.level = min(bucket.capacity, bucket.level - amount)


def _left(bucket: _Bucket | None) -> float:
    return 0.0 if bucket is None else bucket.level


def _refusal(account: _Account, demand: Demand, now: float) -> tuple[LimitName | None, float]:
    """The first limit that is in the way, and for how long."""
    quota = demand.quota
    most_calls, budget = quota.max_concurrent_requests, quota.budget_tokens
    if budget is not None and account.used + demand.num_tokens > budget:
        return "budget", max(0.0, demand.period.end - now)
    if most_calls is not None and len(account.calls) >= most_calls:
        return "concurrency", BUSY_SECONDS
    if account.requests is not None and account.requests.level < 1:
        return "requests", account.requests.seconds_until(1)
    if account.tokens is not None and account.tokens.level < demand.num_bucket_tokens:
        return "tokens", account.tokens.seconds_until(demand.num_bucket_tokens)
    return None, 0.0
