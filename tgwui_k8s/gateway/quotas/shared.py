"""`SharedLedger`: Redis while it answers; this process's own count while it does not.

While Redis is away nobody is refused for that, and nobody is let through uncounted: every replica
allows the whole limit by itself, so N replicas allow up to N times as much. A log line and the
metric `limits_shared` say so, once when it goes and once when it is back. What Redis was to be told
meanwhile, and what it may have reserved without our hearing of it, is settled then.
"""

from __future__ import annotations

import asyncio
import logging

from tgwui_k8s.gateway.quotas.ledger import Demand, LedgerAwayError, Outcome, RemoteLedger
from tgwui_k8s.gateway.quotas.local import LocalLedger
from tgwui_k8s.observability.log import event

PING_SECONDS = 1.0

MAX_UNSETTLED = 10_000
"""Of more, the oldest keep their estimate, and their places until they must be over."""

logger = logging.getLogger(__name__)


class SharedLedger:
    """See `Ledger`. Used from one event loop."""

    def __init__(self, redis: RemoteLedger, *, ping_seconds: float = PING_SECONDS) -> None:
        self._redis = redis
        self._local = LocalLedger()
        self._ping_seconds = ping_seconds
        self._reserved_in_redis: set[str] = set()
        self._unsettled: dict[str, tuple[Demand, int]] = {}
        """By request: tokens used that Redis does not know of yet."""
        self._num_failures = 0
        self.is_shared = False
        """False until Redis has answered, and while it does not."""

    async def run(self) -> None:
        """Look after Redis until cancelled."""
        is_first = True
        while True:
            num_failures = self._num_failures
            try:
                await self._redis.ping()
                await self._settle_rest()
            except LedgerAwayError as error:
                self._note_away(error, is_news=is_first)
            else:
                # An answer from before a failure says nothing about what came after it.
                if num_failures == self._num_failures:
                    self._note_back()
            is_first = False
            await asyncio.sleep(self._ping_seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close()

    async def reserve(self, demand: Demand) -> Outcome:
        """See `Ledger`."""
        if self.is_shared:
            try:
                outcome = await self._redis.reserve(demand)
            except LedgerAwayError as error:
                self._settle_later(demand, 0)  # It may have it all the same.
                self._note_away(error)
            except asyncio.CancelledError:
                self._settle_later(demand, 0)
                raise
            else:
                if outcome.refused_by is None:
                    self._reserved_in_redis.add(demand.request_id)
                return outcome
        return await self._local.reserve(demand)

    async def settle(self, demand: Demand, num_tokens: int) -> None:
        """See `Ledger`. What Redis cannot be told now it is told when it is back."""
        if demand.request_id not in self._reserved_in_redis:
            await self._local.settle(demand, num_tokens)
            return
        self._reserved_in_redis.discard(demand.request_id)
        try:
            await self._redis.settle(demand, num_tokens)
        except LedgerAwayError as error:
            self._settle_later(demand, num_tokens)
            self._note_away(error)

    def _settle_later(self, demand: Demand, num_tokens: int) -> None:
        self._unsettled[demand.request_id] = demand, num_tokens
        if len(self._unsettled) > MAX_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]

    async def _settle_rest(self) -> None:
        for name, (demand, num_tokens) in list(self._unsettled.items()):
            await self._redis.settle(demand, num_tokens)
            self._unsettled.pop(name, None)

    def _note_away(self, error: LedgerAwayError, *, is_news: bool = False) -> None:
        if self.is_shared or is_news:
            logger.warning(
                "Redis is away: each replica counts limits by itself until it is back",
                extra=event(error=str(error)),
            )
        self.is_shared = False
        self._num_failures += 1

    def _note_back(self) -> None:
        if not self.is_shared:
            logger.info("limits are counted in Redis, for all replicas together")
        self.is_shared = True
