"""`Ledger`: who counts what keys have used. All of a demand is granted, or nothing of it is taken.

Requests and tokens per minute are buckets that fill up evenly over a minute, so that nobody waits
for a full minute to begin. Tokens are estimated when a request comes and settled when it is over:
a bucket may fall below empty then, and has to fill up again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tgwui_k8s.errors import TgwuiError
from tgwui_k8s.gateway.quotas.quota import Period, Quota

LimitName = Literal["requests", "tokens", "concurrency", "budget"]

BUSY_SECONDS = 1.0
"""When to come back for a place among a key's requests at a time: nobody knows when one ends."""


class LedgerAwayError(TgwuiError):
    """Who counts for all replicas did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request will take of its key's quota."""

    key_name: str
    quota: Quota
    request_id: str
    """Unique: it names the request's place among those at a time."""
    num_tokens: int
    """Estimated."""
    period: Period
    """Of the budget."""
    longest_seconds: float
    """The place is free again after this, should nobody give it back."""

    @property
    def num_bucket_tokens(self) -> int:
        """What is taken of the minute's tokens: a demand larger than the bucket waits for all."""
        return min(self.num_tokens, self.quota.tokens_per_minute or 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a demand."""

    refused_by: LimitName | None
    """None: granted."""
    wait_seconds: float
    """When a refused one may succeed."""
    remaining_requests: float
    """In the bucket, after this demand; 0 where there is no such limit."""
    remaining_tokens: float


class Ledger(Protocol):
    """Counts for this process, or for all replicas."""

    async def reserve(self, demand: Demand) -> Outcome:
        """Take all of a demand or nothing."""
        ...

    async def settle(self, demand: Demand, num_tokens: int) -> None:
        """A granted demand is over, and has used so many tokens."""
        ...


class RemoteLedger(Ledger, Protocol):
    """Counts elsewhere: each method raises `LedgerAwayError` when that does not answer.

    What is done twice counts once: reserving what is reserved, settling what is not reserved.
    """

    async def ping(self) -> None:
        """Ask whether it is there."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
