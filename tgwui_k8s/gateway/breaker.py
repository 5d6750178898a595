"""Circuit breaker: after failures in a row an endpoint is left alone for a while.

    closed ──failures──► open ──time──► half open ──success──► closed
                           ▲                │
                           └────failure─────┘   twice as long, up to a limit

Half open lets one request through at a time. Clocks are handed over, so that tests need not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]

FAILURES_TO_OPEN = 3
FIRST_OPEN_SECONDS = 0.5
LONGEST_OPEN_SECONDS = 15.0


@dataclass(slots=True)
class Breaker:
    """One endpoint's."""

    num_failures: int = 0
    """In a row."""
    open_until: float = 0.0
    open_seconds: float = FIRST_OPEN_SECONDS
    """How long it will stay open the next time."""
    has_trial: bool = False
    """The one request of the half-open state is on its way."""

    def state(self, now: float) -> State:
        """As of `now`."""
        if self.num_failures < FAILURES_TO_OPEN:
            return "closed"
        return "open" if now < self.open_until else "half_open"

    @property
    def is_tripped(self) -> bool:
        """Not closed."""
        return self.num_failures >= FAILURES_TO_OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may be sent."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self.has_trial)

    def begin(self, now: float) -> None:
        """A request is sent."""
        if self.state(now) == "half_open":
            self.has_trial = True

    def succeed(self) -> None:
        """The endpoint has answered as it should."""
        self.num_failures = 0
        self.open_seconds = FIRST_OPEN_SECONDS
        self.has_trial = False

    def fail(self, now: float) -> None:
        """The endpoint has failed."""
        was_closed = self.state(now) == "closed"
        self.num_failures += 1
        is_trial, self.has_trial = self.has_trial, False
        if self.num_failures < FAILURES_TO_OPEN or not (was_closed or is_trial):
            # Requests that were under way when it opened say nothing new.
            return
        self.open_until = now + self.open_seconds
        self.open_seconds = min(2 * self.open_seconds, LONGEST_OPEN_SECONDS)

    def give_up(self) -> None:
        """A request ended without a verdict: the client went away."""
        self.has_trial = False
