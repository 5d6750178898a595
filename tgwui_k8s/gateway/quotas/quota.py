"""`Quota`: what one API key may use. `period_of`: which budget a moment belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

PeriodName = Literal["hour", "day", "week", "month"]

WINDOW_SECONDS = 60.0
"""The minute of requests and tokens per minute."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one key; None: no such limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    budget_tokens: int | None = None
    """Prompt and completion tokens per period."""
    budget_period: PeriodName = "month"

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to count."""
        return any(
            limit is not None
            for limit in (
                self.requests_per_minute,
                self.tokens_per_minute,
                self.max_concurrent_requests,
                self.budget_tokens,
            )
        )


UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar hour, day, week (from Monday) or month, in UTC."""

    name: str
    """The same for every replica, such as `2026-11` or `2026-11-21T13`."""
    end: float
    """On the system's clock."""


def period_of(name: PeriodName, now: float) -> Period:
    """The period that `now`, a time of the system's clock, lies in."""
    moment = datetime.fromtimestamp(now, timezone.utc)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    if name == "hour":
        return Period(hour.strftime("%Y-%m-%dT%H"), (hour + timedelta(hours=1)).timestamp())
    if name == "day":
        return Period(day.strftime("%Y-%m-%d"), (day + timedelta(days=1)).timestamp())
    if name == "week":
        monday = day - timedelta(days=day.weekday())
        return Period(monday.strftime("%G-W%V"), (monday + timedelta(days=7)).timestamp())
    first = day.replace(day=1)
    next_first = (first + timedelta(days=31)).replace(day=1)
    return Period(first.strftime("%Y-%m"), next_first.timestamp())
