"""vLLM's figures as ours. Importing this needs vLLM."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from vllm.v1.metrics.loggers import StatLoggerBase

from tgwui_k8s.contract import EngineStats


class StatsCollector(StatLoggerBase):
    """Takes what vLLM tells its loggers after every step, and keeps the sums."""

    def __init__(self, config: Any = None, engine_index: int = 0) -> None:
        self.stats = EngineStats()

    def attach(self, config: Any, engine_index: int = 0) -> StatsCollector:
        """vLLM makes its loggers by calling something; this one exists already."""
        cache = config.cache_config
        self.stats = replace(
            self.stats,
            kv_block_size=cache.block_size or 0,
            kv_num_blocks=cache.num_gpu_blocks or 0,
        )
        return self

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM on the event loop."""
        stats = replace(self.stats, num_steps=self.stats.num_steps + 1)
        if scheduler_stats is not None:
            prefix = scheduler_stats.prefix_cache_stats
            stats = replace(
                stats,
                num_requests_running=scheduler_stats.num_running_reqs,
                num_requests_waiting=scheduler_stats.num_waiting_reqs
                + scheduler_stats.num_skipped_waiting_reqs,
                kv_cache_usage=scheduler_stats.kv_cache_usage,
                prefix_cache_queries=stats.prefix_cache_queries + prefix.queries,
                prefix_cache_hits=stats.prefix_cache_hits + prefix.hits,
            )
        if iteration_stats is not None:
            stats = replace(
                stats,
                num_preemptions=stats.num_preemptions + iteration_stats.num_preempted_reqs,
                prompt_tokens=stats.prompt_tokens + iteration_stats.num_prompt_tokens,
                generation_tokens=stats.generation_tokens + iteration_stats.num_generation_tokens,
            )
        self.stats = stats

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
