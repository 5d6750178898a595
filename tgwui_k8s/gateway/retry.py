"""Which failures are tried again, where, how often and when.

Before the first byte of an answer everything may be tried again: the client has seen nothing, and a
generation changes nothing. A budget keeps retries from doubling the load of a cluster that is down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tgwui_k8s.gateway.failures import (
    BrokenFramingError,
    ConnectFailedError,
    ConnectionLostError,
    EndpointError,
    ExchangeError,
    PhaseTimeoutError,
)

_ANTHROPIC_OVERLOADED = 529
RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504, _ANTHROPIC_OVERLOADED})

FIRST_BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 2.0

_DEPOSIT = 0.2
"""What each request adds to the budget: retries are a fifth of the load at most ..."""
_PER_SECOND = 10.0
"""... and as many a second in any case, so that a quiet gateway can retry, too."""


def is_retryable(error: ExchangeError) -> bool:
    """Whether another endpoint may do better."""
    if isinstance(error, EndpointError):
        return error.status in RETRYABLE_STATUSES or error.is_retryable
    if isinstance(error, PhaseTimeoutError):
        return error.phase != "total"
    return isinstance(error, (ConnectFailedError, ConnectionLostError, BrokenFramingError))


def is_endpoints_fault(error: ExchangeError) -> bool:
    """Whether the endpoint's breaker should hear of it. A full queue is no fault."""
    if isinstance(error, EndpointError):
        return error.status >= 500 and error.status not in (503, _ANTHROPIC_OVERLOADED)
    return not (isinstance(error, PhaseTimeoutError) and error.phase == "total")


def backoff_seconds(num_tries: int, error: ExchangeError, random: Random) -> float:
    """How long to wait before the next try on an endpoint that has been tried already."""
    asked = error.retry_after_seconds if isinstance(error, EndpointError) else None
    seconds = FIRST_BACKOFF_SECONDS * float(2 ** min(num_tries, 10))
    seconds = min(max(seconds, asked or 0.0), LONGEST_BACKOFF_SECONDS)
    return seconds * random.uniform(0.8, 1.2)


@dataclass(slots=True)
class RetryBudget:
    """How many retries the gateway as a whole may still make."""

    largest: float
    tokens: float = field(init=False)
    time: float = 0.0

    def __post_init__(self) -> None:
        """Full."""
        self.tokens = self.largest

    def note_request(self) -> None:
        """A request has arrived."""
        self.tokens = min(self.tokens + _DEPOSIT, self.largest)

    def take(self, now: float) -> bool:
        """Whether one more retry is allowed; it counts as made."""
        self.tokens = min(self.tokens + (now - self.time) * _PER_SECOND, self.largest)
        self.time = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
