"""The table of metrics, and what a scrape shows."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.still_backend import StillBackend
from tgwui_k8s.config import ObservabilitySettings
from tgwui_k8s.contract import EngineHealth, EngineStats
from tgwui_k8s.observability.metrics import METRICS, PREFIX, Metrics, metric_table
from tgwui_k8s.observability.records import RequestRecord

CONTRACT = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    "requests_aborted_total",
    "generation_requests_total",
    "http_requests_total",
    "model_load_seconds",
    "model_load_bytes",
    "engine_heartbeat_age_seconds",
    "event_loop_lag_seconds",
    "cache_config_info",
    "build_info",
}

STATS = EngineStats(
    num_requests_running=3,
    num_requests_waiting=4,
    kv_cache_usage=0.25,
    num_steps=5,
    num_preemptions=6,
    num_draft_tokens=60,
    num_accepted_tokens=40,
    prefix_cache_queries=70,
    prefix_cache_hits=7,
    prompt_tokens=80,
    generation_tokens=90,
    kv_block_size=16,
    kv_num_blocks=1000,
)


def _metrics(**settings: str) -> Metrics:
    metrics = Metrics(ObservabilitySettings(**settings), "m")  # type: ignore[arg-type]
    backend = StillBackend()
    backend.stats = STATS
    backend.health = EngineHealth(heartbeat_age_seconds=1.5)
    metrics.set_source(backend)
    return metrics


def _samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, as `name{label=value}`."""
    text = metrics.exposition()[0].decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_the_table_has_every_metric_of_the_contract() -> None:
    """Names as in api.md, each once, with help and a sane name."""
    names = [spec.name for spec in metric_table()]
    assert set(names) >= CONTRACT
    assert len(names) == len(set(names))
    for spec in metric_table():
        assert re.fullmatch("[a-z0-9_]+", spec.name)
        assert spec.help.endswith(".")
        assert spec.name.endswith("_total") == (spec.kind == "counter")
        assert bool(spec.buckets) == (spec.kind == "histogram")
        assert list(spec.buckets) == sorted(set(spec.buckets))


def test_a_scrape_shows_every_metric_of_the_table() -> None:
    """Nothing is declared that is never exposed."""
    metrics = _metrics()
    metrics.count_http_request("/x", 200)
    metrics.observe_model_load(1.0, 2)
    families = {
        family.name for family in text_string_to_metric_families(metrics.exposition()[0].decode())
    }
    assert families == {PREFIX + spec.name.removesuffix("_total") for spec in METRICS}


def test_the_engines_figures_are_read_when_somebody_asks() -> None:
    """Gauges and counters come from the backend's newest stats."""
    metrics = _metrics()
    samples = _samples(metrics)
    assert samples["tgwui_num_requests_running{model_name=m}"] == 3
    assert samples["tgwui_num_requests_waiting{model_name=m}"] == 4
    assert samples["tgwui_kv_cache_usage_perc{model_name=m}"] == 0.25
    assert samples["tgwui_num_preemptions_total{model_name=m}"] == 6
    assert samples["tgwui_spec_decode_num_draft_tokens_total{model_name=m}"] == 60
    assert samples["tgwui_spec_decode_num_accepted_tokens_total{model_name=m}"] == 40
    assert samples["tgwui_prefix_cache_queries_total{model_name=m}"] == 70
    assert samples["tgwui_prefix_cache_hits_total{model_name=m}"] == 7
    assert samples["tgwui_prompt_tokens_total{model_name=m}"] == 80
    assert samples["tgwui_generation_tokens_total{model_name=m}"] == 90
    assert samples["tgwui_engine_heartbeat_age_seconds{model_name=m}"] == 1.5
    info = "tgwui_cache_config_info{block_size=16,model_name=m,num_gpu_blocks=1000}"
    assert samples[info] == 1


def test_before_anything_happens_series_stand_at_zero() -> None:
    """A dashboard or autoscaler sees the series from the first scrape on."""
    samples = _samples(Metrics(ObservabilitySettings(), "m"))
    assert samples["tgwui_generation_requests_total{model_name=m}"] == 0
    assert samples["tgwui_requests_aborted_total{model_name=m}"] == 0
    assert samples["tgwui_request_success_total{finished_reason=stop,model_name=m}"] == 0
    assert samples["tgwui_time_to_first_token_seconds_count{model_name=m}"] == 0
    assert samples["tgwui_num_requests_waiting{model_name=m}"] == 0


def test_a_finished_request_is_in_every_histogram_it_has_times_for() -> None:
    """Times that are not known are not counted as zero."""
    metrics = _metrics()
    metrics.observe_first_token(0.03)
    metrics.observe_inter_token(0.06, num_tokens=3)
    metrics.observe_request(
        RequestRecord(
            route="/v1/completions",
            model="m",
            status=200,
            finish_reasons=("stop", "length"),
            num_prompt_tokens=5,
            num_completion_tokens=6,
            queue_seconds=0.1,
            decode_seconds=2.0,
            e2e_seconds=3.0,
        )
    )
    samples = _samples(metrics)
    assert samples["tgwui_time_to_first_token_seconds_bucket{le=0.02,model_name=m}"] == 0
    assert samples["tgwui_time_to_first_token_seconds_bucket{le=0.04,model_name=m}"] == 1
    assert samples["tgwui_inter_token_latency_seconds_count{model_name=m}"] == 3
    assert samples["tgwui_inter_token_latency_seconds_sum{model_name=m}"] == pytest.approx(0.06)
    assert samples["tgwui_e2e_request_latency_seconds_sum{model_name=m}"] == 3.0
    assert samples["tgwui_request_queue_time_seconds_count{model_name=m}"] == 1
    assert samples["tgwui_request_decode_time_seconds_count{model_name=m}"] == 1
    assert samples["tgwui_request_prefill_time_seconds_count{model_name=m}"] == 0
    assert samples["tgwui_request_success_total{finished_reason=stop,model_name=m}"] == 1
    assert samples["tgwui_request_success_total{finished_reason=length,model_name=m}"] == 1


def test_another_model_gets_series_of_its_own() -> None:
    """What one model did is not the other's."""
    metrics = _metrics()
    metrics.count_generation_request()
    metrics.set_model("other")
    metrics.count_generation_request()
    metrics.count_generation_request()
    metrics.count_aborted_request()
    samples = _samples(metrics)
    assert samples["tgwui_generation_requests_total{model_name=m}"] == 1
    assert samples["tgwui_generation_requests_total{model_name=other}"] == 2
    assert samples["tgwui_requests_aborted_total{model_name=other}"] == 1
    assert samples["tgwui_num_requests_running{model_name=other}"] == 3


def test_a_server_without_a_model_leaves_no_empty_series() -> None:
    """What came while it was loading is still counted."""
    metrics = Metrics(ObservabilitySettings())
    metrics.count_generation_request()
    metrics.set_model("m")
    without_model = {name: value for name, value in _samples(metrics).items() if "=none" in name}
    assert without_model == {
        "tgwui_generation_requests_total{model_name=none}": 1,
        "tgwui_requests_aborted_total{model_name=none}": 0,
    }


def test_vllms_names_on_demand() -> None:
    """What autoscalers and dashboards made for vLLM look for has equal values under its names."""
    samples = _samples(_metrics(metrics_compat="vllm"))
    assert samples["vllm:num_requests_running{model_name=m}"] == 3
    assert samples["vllm:num_requests_waiting{model_name=m}"] == 4
    assert samples["vllm:kv_cache_usage_perc{model_name=m}"] == 0.25
    assert samples["vllm:cache_config_info{block_size=16,model_name=m,num_gpu_blocks=1000}"] == 1
    ours = {name for name in samples if name.startswith(PREFIX)}
    for spec in METRICS:
        theirs = f"vllm:{spec.name}"
        assert spec.is_in_vllm == any(name.startswith(theirs) for name in samples)
    for name in (name for name in samples if name.startswith("vllm:")):
        assert PREFIX + name.removeprefix("vllm:") in ours


def test_no_vllm_names_unless_asked_for() -> None:
    """They would double every scrape."""
    assert not any(name.startswith("vllm:") for name in _samples(_metrics()))


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    """Each has a registry of its own."""
    one, other = _metrics(), _metrics()
    one.count_generation_request()
    assert _samples(other)["tgwui_generation_requests_total{model_name=m}"] == 0


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text;version=1.0.0", "application/openmetrics")],
)
def test_the_format_is_what_the_scraper_accepts(accept: str, content_type: str) -> None:
    """Prometheus asks for OpenMetrics, curl gets text."""
    text, actual = _metrics().exposition(accept)
    assert actual.startswith(content_type)
    assert b"tgwui_num_requests_running" in text


async def test_the_event_loops_lag_is_measured() -> None:
    """Who blocks the loop for 20 ms while the watch is due after 1 ms shows as 19 ms of lag."""
    metrics = _metrics()
    watch = asyncio.create_task(metrics.watch_event_loop(interval_seconds=0.001))
    await asyncio.sleep(0)
    time.sleep(0.02)  # noqa: ASYNC251 - blocking is the point
    await asyncio.sleep(0.01)
    watch.cancel()
    assert _samples(metrics)["tgwui_event_loop_lag_seconds_sum{}"] >= 0.018
