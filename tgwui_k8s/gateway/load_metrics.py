"""An endpoint's load out of its `/metrics`: three gauges, under the names that engines have."""

from __future__ import annotations

import re

from tgwui_k8s.gateway.endpoint import Load

_RUNNING = (
    "tgwui_num_requests_running",
    "vllm:num_requests_running",
    "tgi_batch_current_size",
    "llamacpp:requests_processing",
)
_WAITING = (
    "tgwui_num_requests_waiting",
    "vllm:num_requests_waiting",
    "tgi_queue_size",
    "llamacpp:requests_deferred",
)
_CACHE = (
    "tgwui_kv_cache_usage_perc",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "llamacpp:kv_cache_usage_ratio",
)
_NAMES = "|".join((*_RUNNING, *_WAITING, *_CACHE))
_SAMPLE = re.compile(rf"^({_NAMES})(?:\{{[^}}]*\}})? ([-+0-9.eE]+)", re.MULTILINE)


def parse_load(text: str) -> Load | None:
    """The load, where at least one of the gauges is there. Series of one name are added up."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            continue
    if not sums:
        return None
    return Load(_first(sums, _RUNNING), _first(sums, _WAITING), _first(sums, _CACHE))


def _first(sums: dict[str, float], names: tuple[str, ...]) -> float:
    return next((sums[name] for name in names if name in sums), 0.0)
