"""Runs a load against a server and reports it."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.load.arrivals import closed_loop, constant, open_loop, poisson
from benchmarks.load.client import Target, stream
from benchmarks.load.figures import Objectives, Spread, figures
from benchmarks.load.recording import Recording
from benchmarks.load.report import GeneratorFigures, Report


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked, and when. Exactly one of `rate` and `concurrency` is set."""

    num_requests: int
    rate: float | None = None
    """Requests a second, however slowly the server answers."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    concurrency: int | None = None
    """Requests under way at any time."""
    num_warm_up: int = 0
    """Requests before the measured ones, sent at once."""
    max_seconds: float = math.inf
    """No request is sent later; those under way are waited for."""
    seed: int = 0


async def run_load(
    target: Target, load: Load, prompts: Sequence[str], objectives: Objectives
) -> Report:
    """Send the load; request i has prompt i, warm-up ones first, around and around."""

    def ask(index: int) -> asyncio.Future[Recording]:
        return asyncio.ensure_future(stream(target, prompts[index % len(prompts)]))

    await asyncio.gather(*map(ask, range(load.num_warm_up)))
    lateness: list[float] = []
    gc.collect()
    gc.freeze()
    wall, cpu = time.perf_counter(), time.process_time()
    if load.concurrency is not None:
        recordings = await closed_loop(
            lambda index: ask(index + load.num_warm_up),
            load.concurrency,
            load.num_requests,
            load.max_seconds,
        )
    else:
        rate = load.rate or 1.0
        times = poisson(rate, load.seed) if load.arrivals == "poisson" else constant(rate)
        recordings, lateness = await open_loop(
            lambda index: ask(index + load.num_warm_up), times, load.num_requests, load.max_seconds
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_chunks = sum(recording.num_chunks for recording in recordings)
    return Report(
        _described(target, load),
        figures(recordings, objectives),
        GeneratorFigures(
            cpu_us_per_chunk=round(1e6 * cpu / max(1, num_chunks), 2),
            cpu_share=round(cpu / wall, 4),
            late_ms=Spread.of(lateness),
        ),
    )


def _described(target: Target, load: Load) -> dict[str, Any]:
    described: dict[str, Any] = {
        "model": target.model,
        "endpoint": target.endpoint,
        "max_tokens": target.max_tokens,
        "temperature": target.temperature,
        **target.fields,
        "num_requests": load.num_requests,
        "num_warm_up": load.num_warm_up,
    }
    if load.concurrency is not None:
        return {**described, "concurrency": load.concurrency}
    return {**described, "rate": load.rate, "arrivals": load.arrivals, "seed": load.seed}
