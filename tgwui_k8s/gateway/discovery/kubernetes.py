"""Endpoints from Kubernetes: the EndpointSlices of labelled Services.

Level-triggered: what counts is what the API server shows, not what it once told.

    LIST ─► publish ─► WATCH from there, a minute at most ─► LIST ─► ...
              ▲            │ each event changes one slice
              └────────────┘

A watch that ends, is cut, falls silent, or says 410 leads to the next LIST; so does the end of its
minute, so that a lost event is forgotten in that time. While the API server is away the last set
stays: engines do not die of that, and their monitors see the ones that do. Nothing here talks to
an endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.discovery import Publish
from tgwui_k8s.gateway.endpoint import DialectName, Endpoint
from tgwui_k8s.gateway.failures import BrokenFramingError, ExchangeError, PhaseTimeoutError
from tgwui_k8s.gateway.http_client import HttpClient, Origin, request_bytes
from tgwui_k8s.gateway.http_connection import Exchange
from tgwui_k8s.gateway.limits import Watchdog
from tgwui_k8s.observability.log import event

WATCH_SECONDS = 60
"""How long a watch lasts, and so how long a lost event can matter."""

DIALECT_LABEL = "tgwui-k8s/dialect"
"""On a Service: what its engines speak, where that is not found out."""

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECT_SECONDS = 5.0
_LIST_SECONDS = 30.0
_GRACE_SECONDS = 15.0
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
_MAX_LIST_BYTES = 64 * 1024 * 1024
_GONE = 410

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Where the API server is and how to be let in."""

    origin: Origin
    token_file: Path | None = None
    """Read for every LIST: tokens change."""
    tls: ssl.SSLContext | None = None

    @classmethod
    def from_pod(cls, environ: Mapping[str, str] = os.environ) -> ClusterAccess:
        """As every pod has it. Raises `UsageError` outside a pod."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise UsageError("--endpoint-selector works in a Kubernetes pod only")
        try:
            tls = ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt"))
        except OSError as error:
            raise UsageError(
                f"the service account's certificate cannot be read: {error.strerror}; does the pod "
                "have automountServiceAccountToken: true?"
            ) from None
        return cls(Origin(host, int(port), is_tls=True), _SERVICE_ACCOUNT / "token", tls)


def own_namespace() -> str:
    """The pod's namespace; `default` elsewhere."""
    try:
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return "default"


class KubernetesDiscovery:
    """Publishes ready pods behind all Services that a label selector matches."""

    def __init__(
        self,
        access: ClusterAccess,
        *,
        namespace: str,
        selector: str,
        port_name: str = "",
        watch_seconds: float = WATCH_SECONDS,
        random: Random | None = None,
    ) -> None:
        """`port_name`: of the Service's ports; empty: its first."""
        self.name = f"kubernetes {namespace} {selector}"
        self._access = access
        self._client = HttpClient(access.tls)
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._selector = selector
        self._port_name = port_name
        self._watch_seconds = watch_seconds
        self._random = random or Random()  # noqa: S311 - spreads requests
        self._slices: dict[str, list[Endpoint]] = {}

    async def run(self, publish: Publish) -> None:
        """See `Discovery`."""
        backoff = _FIRST_BACKOFF_SECONDS
        try:
            while True:
                try:
                    version = await self._list(publish)
                    await self._watch(version, publish)
                    backoff = _FIRST_BACKOFF_SECONDS
                except (ExchangeError, msgspec.DecodeError, OSError) as error:
                    logger.warning(
                        "the Kubernetes API cannot be read", extra=event(error=str(error))
                    )
                    await asyncio.sleep(backoff * self._random.uniform(0.8, 1.2))
                    backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
        finally:
            self._client.close()

    # -- LIST and WATCH -----------------------------------------------------------------------

    async def _list(self, publish: Publish) -> str:
        """Publish all there is; the resource version to watch from."""
        exchange, watchdog = await self._get({}, _LIST_SECONDS)
        try:
            found = msgspec.json.decode(
                await exchange.read_all(_MAX_LIST_BYTES), type=dict[str, Any]
            )
        finally:
            watchdog.stop()
            exchange.abort()
        slices = found.get("items") or []
        self._slices = {_key(one): self._endpoints_of(one) for one in slices}
        self._publish(publish)
        return str(found.get("metadata", {}).get("resourceVersion", ""))

    async def _watch(self, version: str, publish: Publish) -> None:
        """Follow changes; returns when it is time for the next LIST."""
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(self._watch_seconds))),
        }
        exchange, watchdog = await self._get(query, self._watch_seconds + _GRACE_SECONDS)
        rest = b""
        try:
            while data := await exchange.read():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.strip() and not self._take(line):
                        return
                if lines:
                    self._publish(publish)
        finally:
            watchdog.stop()
            exchange.abort()

    def _take(self, line: bytes) -> bool:
        """One event; False where the watch is worth no more."""
        change = msgspec.json.decode(line, type=dict[str, Any])
        kind, one = change.get("type"), change.get("object") or {}
        if kind in ("ADDED", "MODIFIED"):
            self._slices[_key(one)] = self._endpoints_of(one)
        elif kind == "DELETED":
            self._slices.pop(_key(one), None)
        elif kind == "ERROR":
            if one.get("code") != _GONE:
                raise BrokenFramingError(f"the watch failed: {str(one.get('message'))[:200]}")
            return False
        return True

    async def _get(self, query: dict[str, str], seconds: float) -> tuple[Exchange, Watchdog]:
        """An exchange whose head has come with a 200. Raises `ExchangeError`."""
        headers = [(b"accept", b"application/json")]
        if self._access.token_file is not None:
            token = self._access.token_file.read_text().strip()
            headers.append((b"authorization", f"Bearer {token}".encode()))
        target = f"{self._path}?{urlencode({'labelSelector': self._selector, **query})}"
        origin = self._access.origin
        exchange = await self._client.start(
            origin,
            request_bytes("GET", target, origin, headers),
            connect_seconds=_CONNECT_SECONDS,
            fresh=True,
        )
        watchdog = Watchdog(
            lambda phase, seconds: exchange.abort(PhaseTimeoutError(phase, seconds))
        )
        watchdog.enter("total", seconds)
        try:
            await exchange.head()
            if exchange.status != 200:
                raise BrokenFramingError(f"the API server answered {exchange.status}")
        except BaseException:
            watchdog.stop()
            exchange.abort()
            raise
        return exchange, watchdog

    # -- slices -------------------------------------------------------------------------------

    def _publish(self, publish: Publish) -> None:
        publish(endpoint for endpoints in self._slices.values() for endpoint in endpoints)

    def _endpoints_of(self, one: Mapping[str, Any]) -> list[Endpoint]:
        """The pods of a slice that may be sent requests."""
        port = self._port_of(one)
        if port is None:
            return []
        labels = one.get("metadata", {}).get("labels") or {}
        dialect = labels.get(DIALECT_LABEL)
        if dialect not in get_args(DialectName):
            dialect = None
        return [
            _endpoint(entry, port, dialect)
            for entry in one.get("endpoints") or []
            if entry.get("addresses") and _takes_requests(entry.get("conditions") or {})
        ]

    def _port_of(self, one: Mapping[str, Any]) -> int | None:
        ports = [port for port in one.get("ports") or [] if port.get("port")]
        named = [port for port in ports if port.get("name") == self._port_name]
        chosen = named if self._port_name else ports
        return int(chosen[0]["port"]) if chosen else None


def _endpoint(entry: Mapping[str, Any], port: int, dialect: DialectName | None) -> Endpoint:
    origin = Origin(entry["addresses"][0], port)
    pod = entry.get("targetRef") or {}
    # A pod that gets the address of one that has gone is another endpoint.
    return Endpoint(pod.get("uid") or str(origin), origin, pod.get("name") or "", dialect)


def _takes_requests(conditions: Mapping[str, Any]) -> bool:
    return conditions.get("ready") is not False and conditions.get("terminating") is not True


def _key(one: Mapping[str, Any]) -> str:
    metadata = one.get("metadata", {})
    return f"{metadata.get('namespace')}/{metadata.get('name')}"
