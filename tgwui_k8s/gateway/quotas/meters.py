"""`Meters`: makes a meter for every call of a limited key, and settles in the background."""

from __future__ import annotations

import asyncio

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.key_file import ApiKey
from tgwui_k8s.gateway.quotas.ledger import Ledger
from tgwui_k8s.gateway.quotas.local import LocalLedger
from tgwui_k8s.gateway.quotas.meter import Meter
from tgwui_k8s.gateway.quotas.shared import SharedLedger


class Meters:
    """Used from one event loop."""

    def __init__(self, redis_url: str | None) -> None:
        """`redis_url`: where all replicas count together; None: this one counts by itself.

        Raises `UsageError`.
        """
        self._shared = None if redis_url is None else _shared_ledger(redis_url)
        self._ledger: Ledger = self._shared or LocalLedger()
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def is_shared(self) -> bool | None:
        """Whether limits hold for all replicas together, at this moment; None: they never will."""
        return None if self._shared is None else self._shared.is_shared

    async def run(self) -> None:
        """Look after the ledger until cancelled; then settle what is left."""
        try:
            if self._shared is not None:
                await self._shared.run()
            else:
                await asyncio.Event().wait()
        finally:
            if self._settling:
                await asyncio.wait(self._settling, timeout=1)
            if self._shared is not None:
                await self._shared.close()

    def meter_of(self, key: ApiKey, call: Call) -> Meter | None:
        """None for a key without limits."""
        return Meter(self._ledger, key.name, key.quota, call) if key.quota.is_limited else None

    def settle_soon(self, meter: Meter, status: int | None) -> None:
        """The call is over; nobody waits for its bill."""
        task = asyncio.ensure_future(meter.settle(status))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)


def _shared_ledger(url: str) -> SharedLedger:
    try:
        from tgwui_k8s.gateway.quotas.redis_ledger import RedisLedger
    except ImportError:
        raise UsageError(
            "TGWUI_REDIS_URL needs the extra 'redis': pip install 'tgwui-k8s[redis]'"
        ) from None
    return SharedLedger(RedisLedger(url))
