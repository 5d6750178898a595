"""`Gateway`: all its parts, put together from the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from tgwui_k8s.config import GatewaySettings, Settings
from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.admission import Admission, AdmissionLimits
from tgwui_k8s.gateway.app import GatewayApp
from tgwui_k8s.gateway.choose import Weights
from tgwui_k8s.gateway.discovery import Discovery
from tgwui_k8s.gateway.discovery.dns import DnsDiscovery
from tgwui_k8s.gateway.discovery.file import FileDiscovery
from tgwui_k8s.gateway.discovery.kubernetes import (
    ClusterAccess,
    KubernetesDiscovery,
    own_namespace,
)
from tgwui_k8s.gateway.discovery.static import StaticDiscovery
from tgwui_k8s.gateway.endpoint import EndpointState
from tgwui_k8s.gateway.fleet import Fleet
from tgwui_k8s.gateway.http_client import HttpClient
from tgwui_k8s.gateway.keys import Keys
from tgwui_k8s.gateway.limits import Limits
from tgwui_k8s.gateway.metrics import GatewayMetrics
from tgwui_k8s.gateway.monitor import EndpointMonitor
from tgwui_k8s.gateway.quotas.meters import Meters
from tgwui_k8s.gateway.relay import Relay, RelayLimits
from tgwui_k8s.gateway.routes import OwnRoutes
from tgwui_k8s.gateway.tracing import NoTracing, OtlpTracing, Tracing

_LONGEST_POLL_TIMEOUT_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Gateway:
    """Made in a running event loop. `app` answers; `run_background` keeps it informed."""

    def __init__(self, settings: Settings) -> None:
        """Raises `UsageError` for endpoints that cannot be understood."""
        mine, server = settings.gateway, settings.server
        self._discoveries = discoveries_of(mine)
        self._client = HttpClient()
        self.metrics = GatewayMetrics()
        self._tracing: Tracing = (
            OtlpTracing.to(mine.otlp_endpoint) if mine.otlp_endpoint else NoTracing()
        )
        key = mine.endpoint_api_key[0].encode() if mine.endpoint_api_key else None
        monitor = EndpointMonitor(
            self._client,
            poll_seconds=mine.endpoint_poll_seconds,
            timeout_seconds=min(mine.endpoint_silent_seconds, _LONGEST_POLL_TIMEOUT_SECONDS),
            silent_seconds=mine.endpoint_silent_seconds,
            headers=lambda: [] if key is None else [(b"authorization", b"Bearer " + key)],
        )
        self.fleet = Fleet(
            monitor.watch, on_forget=lambda endpoint: self._client.forget(endpoint.origin)
        )
        self.admission = Admission(
            self.fleet,
            AdmissionLimits(
                mine.max_queued_requests, mine.queue_timeout, mine.max_endpoint_requests
            ),
            Weights(mine.queue_weight, mine.kv_cache_weight, mine.affinity_bound),
            expected_models=mine.expected_model,
        )
        relay = Relay(
            self._client,
            self.admission,
            self.metrics,
            RelayLimits(
                mine.max_retries,
                mine.max_continuations,
                mine.client_stall_seconds,
                server.sse_keep_alive_seconds,
                max_budget=2.0 * mine.max_endpoint_requests,
            ),
            endpoint_key=lambda: key,
        )
        self._meters = Meters(mine.redis_url)
        keys = Keys(server)
        if keys.are_limited and mine.redis_url is None:
            logger.warning(
                "each replica counts the limits of keys by itself: name a Redis in TGWUI_REDIS_URL"
            )
        routes = OwnRoutes(
            self.fleet,
            self.metrics,
            is_started=self._is_started,
            is_draining=lambda: self.app.is_draining,
            num_waiting=self.admission.num_waiting,
            limits_are_shared=lambda: self._meters.is_shared,
        )
        self.app = GatewayApp(
            relay,
            routes,
            keys,
            self._meters,
            self.metrics,
            self._tracing,
            limits=Limits(
                mine.connect_timeout,
                mine.first_byte_timeout,
                mine.between_chunks_timeout,
                server.max_request_seconds,
            ),
            longest_seconds=server.max_request_seconds,
            max_body_bytes=server.max_body_bytes,
        )
        self.metrics.observed = self
        self.fleet.on_change(lambda: self.metrics.expect_models(self.fleet.known_models))

    async def run_background(self) -> None:
        """Look for endpoints until cancelled."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self.metrics.watch_event_loop())]
        tasks.append(loop.create_task(self._meters.run()))
        tasks += [loop.create_task(self._discover(one)) for one in self._discoveries]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.fleet.close()
            self._client.close()
            await asyncio.get_running_loop().run_in_executor(None, self._tracing.close)

    # -- metrics.Observed ---------------------------------------------------------------------

    def endpoint_states(self) -> Collection[EndpointState]:
        """The fleet."""
        return self.fleet.states

    def num_waiting(self) -> Mapping[str, int]:
        """Length of every model's queue."""
        return self.admission.num_waiting()

    def limits_are_shared(self) -> bool | None:
        """Whether limits of keys hold for all replicas together; None: they never will."""
        return self._meters.is_shared

    async def _discover(self, discovery: Discovery) -> None:
        await discovery.run(lambda found: self.fleet.publish(discovery.name, found))

    def _is_started(self) -> bool:
        return all(self.fleet.has_published(one.name) for one in self._discoveries)


def discoveries_of(settings: GatewaySettings) -> list[Discovery]:
    """Every source of endpoints that is configured. Raises `UsageError` where there is none."""
    found: list[Discovery] = []
    if settings.endpoint:
        found.append(StaticDiscovery(settings.endpoint))
    if settings.endpoint_file is not None:
        found.append(FileDiscovery(settings.endpoint_file))
    if settings.endpoint_dns is not None:
        found.append(DnsDiscovery(settings.endpoint_dns))
    if settings.endpoint_selector is not None:
        found.append(
            KubernetesDiscovery(
                ClusterAccess.from_pod(),
                namespace=settings.endpoint_namespace or own_namespace(),
                selector=settings.endpoint_selector,
                port_name=settings.endpoint_port_name,
            )
        )
    if not found:
        raise UsageError(
            "the gateway knows no engine: give --endpoint URL, --endpoint-file, --endpoint-dns or "
            "--endpoint-selector"
        )
    return found
