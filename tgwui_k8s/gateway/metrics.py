"""Every Prometheus metric of the gateway, declared once in `GATEWAY_METRICS`.

What is counted as it happens is a counter or histogram here; what can be read off the fleet and the
queues is read when somebody scrapes, so that an endpoint that has left leaves no series behind.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tgwui_k8s import __version__
from tgwui_k8s.gateway.endpoint import EndpointState
from tgwui_k8s.observability.metrics import LAG_BUCKETS, LATENCY_BUCKETS, TTFT_BUCKETS, MetricSpec

PREFIX = "tgwui_gateway_"
OTHER_MODEL = "other"
"""The label of every model that is not ours: clients must not be able to invent labels."""

OVERHEAD_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

GATEWAY_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("requests_total", "counter", "Answers, by model.", ("model_name", "code")),
    MetricSpec("http_requests_total", "counter", "Answers, by route.", ("route", "code")),
    MetricSpec(
        "request_seconds",
        "histogram",
        "From the arrival of a request to the end of its answer.",
        buckets=LATENCY_BUCKETS,
    ),
    MetricSpec(
        "time_to_first_byte_seconds",
        "histogram",
        "From the arrival of a request to the first byte of its answer.",
        buckets=TTFT_BUCKETS,
    ),
    MetricSpec(
        "overhead_seconds",
        "histogram",
        "What the gateway itself added to the time to the first byte.",
        (),
        OVERHEAD_BUCKETS,
    ),
    MetricSpec("prompt_tokens_total", "counter", "Prompt tokens, as endpoints have counted."),
    MetricSpec(
        "generation_tokens_total", "counter", "Tokens generated, as endpoints have counted."
    ),
    MetricSpec(
        "retries_total", "counter", "Attempts after the first, by what failed.", ("reason",)
    ),
    MetricSpec(
        "continuations_total",
        "counter",
        "Streams that went on elsewhere, by what broke them off.",
        ("model_name", "reason"),
    ),
    MetricSpec(
        "interrupted_streams_total", "counter", "Streams that broke off and could not go on."
    ),
    MetricSpec(
        "attempt_failures_total", "counter", "Attempts that failed, by reason.", ("reason",)
    ),
    MetricSpec(
        "rate_limited_total", "counter", "Requests that a key's quota refused.", ("key", "limit")
    ),
    MetricSpec("requests_in_flight", "gauge", "Requests that clients wait for.", ()),
    MetricSpec(
        "event_loop_lag_seconds",
        "histogram",
        "How late the event loop runs what is due.",
        (),
        LAG_BUCKETS,
    ),
    MetricSpec("build_info", "gauge", "Always 1; versions in its labels.", ("version", "python")),
    MetricSpec(
        "queue_size",
        "gauge",
        "Requests that wait for an engine: what scales a model up from zero.",
        source="stats",
    ),
    MetricSpec(
        "limits_shared",
        "gauge",
        "1 while Redis counts the limits of keys, 0 while it is away; none without a Redis.",
        (),
        source="stats",
    ),
    MetricSpec(
        "endpoint_ready", "gauge", "1 where it takes requests.", ("endpoint",), source="stats"
    ),
    MetricSpec(
        "endpoint_requests_in_flight",
        "gauge",
        "Requests that this gateway has under way there.",
        ("endpoint",),
        source="stats",
    ),
    MetricSpec(
        "endpoint_breaker_open",
        "gauge",
        "1 where it is left alone after failures.",
        ("endpoint",),
        source="stats",
    ),
    MetricSpec("endpoint_requests_total", "counter", "Attempts.", ("endpoint",), source="stats"),
    MetricSpec(
        "endpoint_failures_total", "counter", "Attempts that failed.", ("endpoint",), source="stats"
    ),
)


def metric_table() -> Sequence[MetricSpec]:
    """The rows of the reference page, in its order."""
    return GATEWAY_METRICS


class Observed(Protocol):
    """What is read when somebody scrapes."""

    def endpoint_states(self) -> Collection[EndpointState]:
        """The fleet."""
        ...

    def num_waiting(self) -> Mapping[str, int]:
        """Length of every model's queue."""
        ...

    def limits_are_shared(self) -> bool | None:
        """Whether limits of keys hold for all replicas together; None: they never will."""
        ...


class GatewayMetrics:
    """The metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.observed: Observed | None = None
        own = [spec for spec in GATEWAY_METRICS if spec.source == "api"]
        self._counters = {
            spec.name: Counter(PREFIX + spec.name, spec.help, spec.labels, registry=self.registry)
            for spec in own
            if spec.kind == "counter"
        }
        self._gauges = {
            spec.name: Gauge(PREFIX + spec.name, spec.help, spec.labels, registry=self.registry)
            for spec in own
            if spec.kind == "gauge"
        }
        self._histograms = {
            spec.name: Histogram(
                PREFIX + spec.name,
                spec.help,
                spec.labels,
                buckets=spec.buckets,
                registry=self.registry,
            )
            for spec in own
            if spec.kind == "histogram"
        }
        # Kept, because a series costs more to look up than to count. There are as many as labels.
        self._counter = cache(lambda name, *labels: self._counters[name].labels(*labels))
        self._histogram = cache(lambda name, *labels: self._histograms[name].labels(*labels))
        self.registry.register(_ObservedCollector(self))
        self._gauges["build_info"].labels(__version__, platform.python_version()).set(1)
        self.in_flight = self._gauges["requests_in_flight"]

    def expect_models(self, models: Iterable[str]) -> None:
        """Begin their series of what must not happen at 0: an alert sees how much one has risen."""
        for model in models:
            self._counter("interrupted_streams_total", model)

    def count_http_request(self, route: str, status: int) -> None:
        """One answer; `route` is one of ours, never a client's text."""
        self._counter("http_requests_total", route, str(status)).inc()

    def observe_call(
        self, model: str, status: int, seconds: float, first_byte_seconds: float | None
    ) -> None:
        """A call is over; `model` is a served name or `OTHER_MODEL`."""
        self._counter("requests_total", model, str(status)).inc()
        self._histogram("request_seconds", model).observe(seconds)
        if first_byte_seconds is not None:
            self._histogram("time_to_first_byte_seconds", model).observe(first_byte_seconds)

    def count_tokens(self, model: str, num_prompt: int | None, num_completion: int | None) -> None:
        """What a call has used; None where nobody has said."""
        self._counter("prompt_tokens_total", model).inc(num_prompt or 0)
        self._counter("generation_tokens_total", model).inc(num_completion or 0)

    def observe_overhead(self, seconds: float) -> None:
        """Time to the first byte less what endpoints and queues took of it."""
        self._histograms["overhead_seconds"].observe(seconds)

    def count_retry(self, reason: str) -> None:
        """An attempt after the first begins."""
        self._counter("retries_total", reason).inc()

    def count_continuation(self, model: str, reason: str) -> None:
        """A stream goes on elsewhere."""
        self._counter("continuations_total", model, reason).inc()

    def count_interruption(self, model: str) -> None:
        """A stream broke off for good."""
        self._counter("interrupted_streams_total", model).inc()

    def count_rate_limited(self, key_name: str, limit: str) -> None:
        """A request was refused; `key_name` is the operator's."""
        self._counter("rate_limited_total", key_name, limit).inc()

    def count_failure(self, reason: str) -> None:
        """An attempt has failed."""
        self._counter("attempt_failures_total", reason).inc()

    async def watch_event_loop(self, interval_seconds: float = 0.25) -> None:
        """Measure the running event loop's lag until cancelled."""
        lag = self._histograms["event_loop_lag_seconds"]
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + interval_seconds
            await asyncio.sleep(interval_seconds)
            lag.observe(max(0.0, loop.time() - due))

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type, in the format a scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _ObservedCollector(Collector):
    """Fleet and queues, as they are when somebody scrapes."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        observed = self._metrics.observed
        states = observed.endpoint_states() if observed is not None else ()
        num_waiting = observed.num_waiting() if observed is not None else {}
        is_shared = observed.limits_are_shared() if observed is not None else None
        samples: Mapping[str, Sequence[tuple[str, float]]] = {
            "limits_shared": [] if is_shared is None else [("", is_shared)],
            "queue_size": [(model or OTHER_MODEL, size) for model, size in num_waiting.items()],
            "endpoint_ready": [(s.name, s.is_ready) for s in states],
            "endpoint_requests_in_flight": [(s.name, s.num_in_flight) for s in states],
            "endpoint_breaker_open": [(s.name, s.breaker.is_tripped) for s in states],
            "endpoint_requests_total": [(s.name, s.num_requests) for s in states],
            "endpoint_failures_total": [(s.name, s.num_failures) for s in states],
        }
        for spec in GATEWAY_METRICS:
            if spec.source != "stats":
                continue
            family: GaugeMetricFamily | CounterMetricFamily
            if spec.kind == "counter":
                family = CounterMetricFamily(PREFIX + spec.name, spec.help, labels=spec.labels)
            else:
                family = GaugeMetricFamily(PREFIX + spec.name, spec.help, labels=spec.labels)
            for label, value in samples[spec.name]:
                family.add_metric([label] if spec.labels else [], value)
            yield family

    def describe(self) -> list[Metric]:
        """Nothing to check for duplicates: the table names each metric once."""
        return []
