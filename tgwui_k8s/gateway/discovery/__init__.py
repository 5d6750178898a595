"""Who exists: one file per source. Each publishes the whole set it sees, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from tgwui_k8s.gateway.endpoint import Endpoint

Publish = Callable[[Iterable[Endpoint]], None]
"""Takes the whole set that a source sees now."""


class Discovery(Protocol):
    """One source."""

    name: str
    """No other source of this gateway has it."""

    async def run(self, publish: Publish) -> None:
        """Publish until cancelled; what cannot be read now keeps its last set."""
        ...


__all__ = ["Discovery", "Publish"]
