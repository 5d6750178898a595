"""Endpoints behind a name with several addresses: a headless Service, without any rights.

DNS knows neither UIDs nor who is about to leave, and answers are cached for seconds; where the
Kubernetes API can be read, that is better.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.discovery import Publish
from tgwui_k8s.gateway.endpoint import Endpoint, parse_endpoint
from tgwui_k8s.gateway.http_client import Origin
from tgwui_k8s.observability.log import event

RESOLVE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class DnsDiscovery:
    """Resolves `http://host:port` every few seconds."""

    def __init__(self, url: str, *, resolve_seconds: float = RESOLVE_SECONDS) -> None:
        """Raises `UsageError` for what is no URL."""
        self._template = parse_endpoint(url)
        if self._template.origin.is_tls:
            raise UsageError("--endpoint-dns needs http://: certificates are not for addresses")
        self.name = f"dns {url}"
        self._resolve_seconds = resolve_seconds

    async def run(self, publish: Publish) -> None:
        """See `Discovery`."""
        while True:
            try:
                endpoints = await self._resolve()
            except OSError as error:
                facts = event(name=self._template.origin.host, error=str(error))
                logger.warning("a name could not be resolved", extra=facts)
                if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
                    publish(())  # A Service without ready pods has no name.
            else:
                publish(endpoints)
            await asyncio.sleep(self._resolve_seconds)

    async def _resolve(self) -> list[Endpoint]:
        origin = self._template.origin
        found = await asyncio.get_running_loop().getaddrinfo(
            origin.host, origin.port, type=socket.SOCK_STREAM
        )
        addresses = sorted({str(entry[4][0]) for entry in found})
        origins = (Origin(address, origin.port) for address in addresses)
        return [Endpoint(str(one), one, dialect=self._template.dialect) for one in origins]


_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
