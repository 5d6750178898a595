"""A route without FastAPI's machinery, for what must answer at once."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope


class PlainRoute(Route):
    """Starlette's route; like FastAPI's it leaves itself in the scope, for log and metrics."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's, with the route beside what it found."""
        match, found = super().matches(scope)
        return match, {**found, "route": self} if match is not Match.NONE else found
