"""Endpoints by name: `--endpoint http://host:5000`, as often as there are engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tgwui_k8s.gateway.discovery import Publish
from tgwui_k8s.gateway.endpoint import parse_endpoint


class StaticDiscovery:
    """Publishes once."""

    name = "static"

    def __init__(self, urls: Iterable[str]) -> None:
        """Raises `UsageError` for what is no URL of an endpoint."""
        self._endpoints = [parse_endpoint(url) for url in urls]

    async def run(self, publish: Publish) -> None:
        """See `Discovery`."""
        publish(self._endpoints)
        await asyncio.Event().wait()
