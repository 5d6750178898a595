"""`RedisLedger`: counts for all replicas together, exactly, in one Redis."""

from __future__ import annotations

import math
import time
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.quotas.ledger import (
    BUSY_SECONDS,
    Demand,
    LedgerAwayError,
    LimitName,
    Outcome,
)
from tgwui_k8s.gateway.quotas.quota import Quota
from tgwui_k8s.gateway.quotas.redis_scripts import RESERVE, SETTLE

TIMEOUT_SECONDS = 1.0
"""A Redis that is slower than this is away: requests do not wait for it."""

_MAX_CONNECTIONS = 8
"""A burst waits its turn for these: to open a connection costs more than to ask ten times."""

_PREFIX = "tgwui:quota"
_LATE_SECONDS = 24 * 3600
"""So long a budget is kept after its period: requests that began in it are settled there."""


class RedisLedger:
    """See `Ledger`. Used from one event loop."""

    def __init__(self, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """`url`: redis://, rediss:// (TLS) or unix://. Raises `UsageError`; connects later."""
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS,
                timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                # Once more, on a new connection: a kept one may have been closed meanwhile.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except ValueError:
            raise UsageError(
                "TGWUI_REDIS_URL is not of the form redis://:PASSWORD@HOST:PORT/DATABASE"
            ) from None
        self._redis = Redis(connection_pool=pool)
        self._reserve = self._redis.register_script(RESERVE)
        self._settle = self._redis.register_script(SETTLE)

    async def ping(self) -> None:
        """Raises `LedgerAwayError`."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise LedgerAwayError(_told(error)) from None

    async def reserve(self, demand: Demand) -> Outcome:
        """See `Ledger`. Raises `LedgerAwayError`."""
        quota, now = demand.quota, time.time()
        arguments: list[str | float] = [
            *_numbers(quota),
            demand.num_bucket_tokens,
            demand.num_tokens,
            demand.request_id,
            demand.longest_seconds,
            _budget_seconds(demand, now),
        ]
        try:
            found = await self._reserve(keys=_names(demand), args=arguments)
        except (RedisError, OSError) as error:
            raise LedgerAwayError(_told(error)) from None
        refused_by = cast("LimitName | None", found[0].decode() or None)
        wait_seconds, requests, tokens = (float(number) for number in found[1:])
        if refused_by == "budget":
            wait_seconds = max(0.0, demand.period.end - now)
        elif refused_by == "concurrency":
            wait_seconds = BUSY_SECONDS
        return Outcome(refused_by, wait_seconds, requests, tokens)

    async def settle(self, demand: Demand, num_tokens: int) -> None:
        """See `Ledger`. Raises `LedgerAwayError`."""
        tokens_per_minute, budget = _numbers(demand.quota)[1::2]
        arguments: list[str | float] = [
            tokens_per_minute,
            budget,
            demand.num_bucket_tokens,
            demand.num_tokens,
            num_tokens,
            demand.request_id,
            _budget_seconds(demand, time.time()),
        ]
        try:
            await self._settle(keys=_names(demand), args=arguments)
        except (RedisError, OSError) as error:
            raise LedgerAwayError(_told(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


def _names(demand: Demand) -> list[str]:
    """Names in Redis. The braces keep those of one key on one node of a cluster."""
    mine = f"{_PREFIX}:{{{demand.key_name}}}"
    return [f"{mine}:buckets", f"{mine}:calls", f"{mine}:budget:{demand.period.name}"]


def _numbers(quota: Quota) -> list[int]:
    limits = (
        quota.requests_per_minute,
        quota.tokens_per_minute,
        quota.max_concurrent_requests,
        quota.budget_tokens,
    )
    return [-1 if limit is None else limit for limit in limits]


def _budget_seconds(demand: Demand, now: float) -> int:
    return math.ceil(max(0.0, demand.period.end - now)) + _LATE_SECONDS


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
