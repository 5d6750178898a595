"""The last errors that clients got: kinds, counts and times for a person to look at.

Bounded, in the API process's memory, and gone with it; what is kept is the log. Nothing of it was
written by a client (no message, field or model's name) but request ids, by which the log is found.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tgwui_k8s.error_envelope import envelope
from tgwui_k8s.errors import RequestError

MOST_KINDS = 50


class SeenError(msgspec.Struct, kw_only=True):
    """Errors of one kind at one route; times are seconds since 1970."""

    route: str
    status: int
    """As in the answer; in a stream that broke off, what it would have been without streaming."""
    type: str
    code: str | None
    count: int = 0
    first_seen: float
    last_seen: float
    last_request_id: str


class RecentErrors:
    """The kinds of errors that came last."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds since 1970."""
        self._now = now
        self._kinds: dict[tuple[str, int, str, str | None], SeenError] = {}

    def note(self, route: str, status: int, error: RequestError, request_id: str) -> None:
        """An error went to a client; the kind that was seen the longest time ago may give way."""
        told = envelope(error)["error"]
        kind, code = str(told["type"]), error.code
        key = (route, status, kind, code)
        now = self._now()
        seen = self._kinds.pop(key, None) or SeenError(
            route=route,
            status=status,
            type=kind,
            code=code,
            first_seen=now,
            last_seen=now,
            last_request_id=request_id,
        )
        seen.count += 1
        seen.last_seen, seen.last_request_id = now, request_id
        self._kinds[key] = seen
        if len(self._kinds) > MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def newest_first(self) -> list[SeenError]:
        """Each kind once."""
        return list(reversed(self._kinds.values()))
