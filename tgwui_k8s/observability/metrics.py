"""Every Prometheus metric of the server, declared once in `METRICS`.

`docs/metrics.md` is generated from that table.
Names follow vLLM's after the prefix, so that dashboards and the Gateway API Inference Extension
map one to one. What the engine counts comes as data (`EngineStats`) and is exported when somebody
scrapes; what the API process sees is observed as it happens.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
from tgwui_k8s.config import ObservabilitySettings
from tgwui_k8s.contract import EngineHealth, EngineStats

if TYPE_CHECKING:
    from tgwui_k8s.observability.records import RequestRecord

PREFIX = "tgwui_"
VLLM_PREFIX = "vllm:"

NO_MODEL = "none"
"""The label `model_name` while no model is loaded."""

# vLLM's buckets, so that dashboards and recording rules carry over.
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table. A counter's name ends in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("model_name",)
    buckets: tuple[float, ...] = ()
    is_in_vllm: bool = False
    """vLLM has it under the same name: `--metrics-compat vllm` exposes it as `vllm:<name>` too."""
    source: Literal["api", "stats"] = "api"
    """`stats`: read from `EngineStats` and `EngineHealth` at scrape time."""


def _stat(name: str, kind: Kind, help: str, *, is_in_vllm: bool = True) -> MetricSpec:
    return MetricSpec(name, kind, help, is_in_vllm=is_in_vllm, source="stats")


def _timing(name: str, help: str, buckets: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, "histogram", help, buckets=buckets, is_in_vllm=True)


METRICS: tuple[MetricSpec, ...] = (
    # What the engine does now
    _stat("num_requests_running", "gauge", "Requests in the batch."),
    _stat("num_requests_waiting", "gauge", "Requests in the waiting queue."),
    _stat("kv_cache_usage_perc", "gauge", "Share of KV cache blocks in use, 0 to 1."),
    # What it has done
    _stat("prompt_tokens_total", "counter", "Prompt tokens computed or taken from the cache."),
    _stat("generation_tokens_total", "counter", "Tokens generated."),
    _stat("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache."),
    _stat("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache."),
    _stat("num_preemptions_total", "counter", "Sequences that gave their blocks back."),
    _stat("spec_decode_num_draft_tokens_total", "counter", "Tokens guessed and computed ahead."),
    _stat("spec_decode_num_accepted_tokens_total", "counter", "Those that sampling confirmed."),
    _stat("num_steps_total", "counter", "Steps of the engine.", is_in_vllm=False),
    _stat(
        "engine_heartbeat_age_seconds",
        "gauge",
        "Time since the engine was last heard of.",
        is_in_vllm=False,
    ),
    MetricSpec(
        "cache_config_info",
        "gauge",
        "Always 1; the KV cache's size in its labels.",
        ("model_name", "block_size", "num_gpu_blocks"),
        is_in_vllm=True,
        source="stats",
    ),
    # Requests
    MetricSpec(
        "generation_requests_total",
        "counter",
        "Requests that arrived at generation routes, refused ones too: what to scale on.",
    ),
    MetricSpec(
        "request_success_total",
        "counter",
        "Choices that ended, by reason.",
        ("model_name", "finished_reason"),
        is_in_vllm=True,
    ),
    MetricSpec(
        "requests_aborted_total", "counter", "Requests whose client went away before the end."
    ),
    _timing(
        "time_to_first_token_seconds",
        "From the arrival of a request to its first token.",
        TTFT_BUCKETS,
    ),
    _timing("inter_token_latency_seconds", "Between two tokens of one choice.", ITL_BUCKETS),
    _timing(
        "e2e_request_latency_seconds",
        "From the arrival of a request to the end of its answer.",
        LATENCY_BUCKETS,
    ),
    _timing("request_queue_time_seconds", "In the waiting queue, per request.", LATENCY_BUCKETS),
    _timing(
        "request_prefill_time_seconds",
        "From leaving the queue to the first token, per request.",
        LATENCY_BUCKETS,
    ),
    _timing(
        "request_decode_time_seconds", "From the first token to the last one.", LATENCY_BUCKETS
    ),
    # The process
    MetricSpec("http_requests_total", "counter", "Answers, by route.", ("route", "code")),
    MetricSpec(
        "event_loop_lag_seconds",
        "histogram",
        "How late the API process's event loop runs what is due.",
        (),
        LAG_BUCKETS,
    ),
    MetricSpec("model_load_seconds", "gauge", "How long the last model load took."),
    MetricSpec("model_load_bytes", "gauge", "Bytes of weights the last model load has read."),
    MetricSpec("neuroncores", "gauge", "NeuronCores that the model lies on, where it does."),
    MetricSpec(
        "neuroncore_memory_used_bytes_estimate",
        "gauge",
        "Weights, KV cache and margin on each of those NeuronCores, as planned.",
    ),
    MetricSpec("build_info", "gauge", "Always 1; versions in its labels.", ("version", "python")),
)

FINISH_REASONS = ("stop", "length", "tool_calls", "abort", "error")


def metric_table() -> Sequence[MetricSpec]:
    """The rows of the reference page, in its order."""
    return METRICS


class StatsSource(Protocol):
    """Where the engine's figures come from: the `Backend` that routes know."""

    @property
    def stats(self) -> EngineStats:
        """The newest figures."""
        ...

    @property
    def health(self) -> EngineHealth:
        """The newest word on the engine's life."""
        ...


class Metrics:
    """The metrics of one server, in a registry of its own.

    Used from the event loop's thread. Observing costs about half a microsecond a value.
    """

    def __init__(self, settings: ObservabilitySettings, model_name: str = NO_MODEL) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.source: StatsSource | None = None
        own = [spec for spec in METRICS if spec.source == "api"]
        self._counters = {s.name: _counter(s, self.registry) for s in own if s.kind == "counter"}
        self._gauges = {s.name: _gauge(s, self.registry) for s in own if s.kind == "gauge"}
        self._histograms = {
            s.name: _histogram(s, self.registry) for s in own if s.kind == "histogram"
        }
        stats = _StatsCollector(self)
        self.registry.register(stats)
        if settings.metrics_compat == "vllm":
            own_too = (*self._counters.values(), *self._gauges.values(), *self._histograms.values())
            self.registry.register(_VllmNames((stats, *own_too)))
        self._gauges["build_info"].labels(__version__, platform.python_version()).set(1)
        self._begin_series(model_name)

    # -- wiring -------------------------------------------------------------------------------

    def set_source(self, source: StatsSource) -> None:
        """Export this backend's figures from now on."""
        self.source = source

    def set_model(self, model_name: str) -> None:
        """Label what follows with this model; its series start at zero, visible at once."""
        if self.model_name == NO_MODEL:
            self._forget_no_model()
        self._begin_series(model_name)

    def _begin_series(self, model_name: str) -> None:
        self.model_name = model_name
        self._first_token = self._series("time_to_first_token_seconds")
        self._inter_token = self._series("inter_token_latency_seconds")
        self._end_to_end = self._series("e2e_request_latency_seconds")
        self._queue_time = self._series("request_queue_time_seconds")
        self._prefill_time = self._series("request_prefill_time_seconds")
        self._decode_time = self._series("request_decode_time_seconds")
        self._arrived = self._counters["generation_requests_total"].labels(model_name)
        self._aborted = self._counters["requests_aborted_total"].labels(model_name)
        self._finished = {
            reason: self._counters["request_success_total"].labels(model_name, reason)
            for reason in FINISH_REASONS
        }

    def _forget_no_model(self) -> None:
        """The series of a server without a model hold nothing, and would stay for ever."""
        for spec in METRICS:
            if spec.kind == "histogram" and spec.labels:
                self._histograms[spec.name].remove(NO_MODEL)
        for reason in FINISH_REASONS:
            self._counters["request_success_total"].remove(NO_MODEL, reason)

    def _series(self, name: str) -> Histogram:
        return self._histograms[name].labels(self.model_name)

    # -- observing ----------------------------------------------------------------------------

    def count_http_request(self, route: str, status: int) -> None:
        """One answer; `route` is a template of ours, never a client's text."""
        self._counters["http_requests_total"].labels(route, str(status)).inc()

    def count_generation_request(self) -> None:
        """A request has arrived at a generation route."""
        self._arrived.inc()

    def count_aborted_request(self) -> None:
        """A client went away before its answer was complete."""
        self._aborted.inc()

    def observe_first_token(self, seconds: float) -> None:
        """Time from the arrival of a request to its first token."""
        self._first_token.observe(seconds)

    def observe_inter_token(self, seconds: float, num_tokens: int = 1) -> None:
        """`num_tokens` tokens of a choice came together, `seconds` after the ones before."""
        for _ in range(num_tokens):
            self._inter_token.observe(seconds / num_tokens)

    def observe_request(self, record: RequestRecord) -> None:
        """A generation has ended, however it ended."""
        self._end_to_end.observe(record.e2e_seconds)
        for series, seconds in (
            (self._queue_time, record.queue_seconds),
            (self._prefill_time, record.prefill_seconds),
            (self._decode_time, record.decode_seconds),
        ):
            if seconds is not None:
                series.observe(seconds)
        for reason in record.finish_reasons:
            self._finished[reason].inc()

    def observe_model_load(self, seconds: float, num_bytes: int) -> None:
        """A model has been loaded."""
        self._gauges["model_load_seconds"].labels(self.model_name).set(seconds)
        self._gauges["model_load_bytes"].labels(self.model_name).set(num_bytes)

    def observe_model_details(self, details: Mapping[str, Any]) -> None:
        """Facts that only some loaders have (`ModelInfo.details`), under their own names."""
        for name in ("neuroncores", "neuroncore_memory_used_bytes_estimate"):
            if isinstance(value := details.get(name), int):
                self._gauges[name].labels(self.model_name).set(value)

    async def watch_event_loop(self, interval_seconds: float = 0.25) -> None:
        """Measure the running event loop's lag until cancelled."""
        lag = self._histograms["event_loop_lag_seconds"]
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + interval_seconds
            await asyncio.sleep(interval_seconds)
            lag.observe(max(0.0, loop.time() - due))

    # -- exposing -----------------------------------------------------------------------------

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type, in the format a scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _StatsCollector(Collector):
    """Turns the engine's own figures into metrics when somebody scrapes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        source, labels = self._metrics.source, [self._metrics.model_name]
        stats = source.stats if source is not None else EngineStats()
        health = source.health if source is not None else EngineHealth()
        values: dict[str, float] = {
            "num_requests_running": stats.num_requests_running,
            "num_requests_waiting": stats.num_requests_waiting,
            "kv_cache_usage_perc": stats.kv_cache_usage,
            "prompt_tokens_total": stats.prompt_tokens,
            "generation_tokens_total": stats.generation_tokens,
            "prefix_cache_queries_total": stats.prefix_cache_queries,
            "prefix_cache_hits_total": stats.prefix_cache_hits,
            "num_preemptions_total": stats.num_preemptions,
            "spec_decode_num_draft_tokens_total": stats.num_draft_tokens,
            "spec_decode_num_accepted_tokens_total": stats.num_accepted_tokens,
            "num_steps_total": stats.num_steps,
            "engine_heartbeat_age_seconds": health.heartbeat_age_seconds,
            "cache_config_info": 1,
        }
        for spec in METRICS:
            if spec.source != "stats":
                continue
            family: GaugeMetricFamily | CounterMetricFamily
            if spec.kind == "counter":
                family = CounterMetricFamily(PREFIX + spec.name, spec.help, labels=spec.labels)
            else:
                family = GaugeMetricFamily(PREFIX + spec.name, spec.help, labels=spec.labels)
            sizes = [str(stats.kv_block_size), str(stats.kv_num_blocks)]
            family.add_metric(labels + sizes[: len(spec.labels) - 1], values[spec.name])
            yield family

    def describe(self) -> list[Metric]:
        """Nothing to check for duplicates: the table names each metric once."""
        return []


class _VllmNames(Collector):
    """The same figures once more under vLLM's names, for dashboards and autoscalers made for it."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors
        self._names = {
            PREFIX + spec.name.removesuffix("_total") for spec in METRICS if spec.is_in_vllm
        }

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            for family in collector.collect():
                if family.name in self._names:
                    yield _renamed(family)

    def describe(self) -> list[Metric]:
        """Nothing to check for duplicates."""
        return []


def _renamed(family: Metric) -> Metric:
    """A copy of the family with vLLM's prefix instead of ours."""
    copy = Metric(VLLM_PREFIX + family.name.removeprefix(PREFIX), family.documentation, family.type)
    copy.samples = [
        sample._replace(name=VLLM_PREFIX + sample.name.removeprefix(PREFIX))
        for sample in family.samples
    ]
    return copy


def _counter(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    return Counter(PREFIX + spec.name, spec.help, spec.labels, registry=registry)


def _gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    return Gauge(PREFIX + spec.name, spec.help, spec.labels, registry=registry)


def _histogram(spec: MetricSpec, registry: CollectorRegistry) -> Histogram:
    return Histogram(
        PREFIX + spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=registry
    )
