"""From recordings to figures: percentiles, throughput, goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from benchmarks.load.recording import Recording


class Spread(msgspec.Struct, frozen=True):
    """A distribution in milliseconds; percentiles interpolate linearly."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread | None:
        """None where there is nothing to describe."""
        values = np.fromiter(seconds, dtype=np.float64) * 1000.0
        if values.size == 0:
            return None
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(*(round(float(x), 3) for x in (values.mean(), p50, p90, p99, values.max())))


class Objectives(msgspec.Struct, frozen=True):
    """What a request must keep to count as good; milliseconds, None for no demand."""

    ttft_ms: float | None = None
    itl_ms: float | None = None
    """Of 99 % of the request's own gaps."""
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def are_met(self, recording: Recording) -> bool:
        """True for a completed request within every limit."""
        gap = float(np.percentile(recording.gaps, 99)) if recording.gaps else None
        pairs = (
            (recording.ttft, self.ttft_ms),
            (gap, self.itl_ms),
            (recording.tpot, self.tpot_ms),
            (recording.e2e, self.e2e_ms),
        )
        return recording.error is None and all(
            limit is None or seconds is None or seconds * 1000.0 <= limit
            for seconds, limit in pairs
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Latencies and tokens are those of completed requests."""

    duration_s: float
    num_completed: int
    errors: dict[str, int]
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens: int
    chunks: int
    chunks_per_s: float
    tokens_counted_by: list[str]
    """`usage`, `token_ids` or `chunks`; the last one counts too few where chunks hold several."""
    ttft_ms: Spread | None
    itl_ms: Spread | None
    """Between chunks with content: inter-token latency where a chunk is a token."""
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    good_requests_per_s: float
    good_share: float
    """Of all requests, failed ones included."""


def figures(recordings: Sequence[Recording], objectives: Objectives) -> Figures:
    """What the recordings say together; from the first start to the last end."""
    completed = [recording for recording in recordings if recording.error is None]
    duration = _duration(recordings)
    num_tokens = sum(recording.num_tokens for recording in completed)
    num_chunks = sum(recording.num_chunks for recording in completed)
    num_good = sum(map(objectives.are_met, completed))
    return Figures(
        duration_s=round(duration, 3),
        num_completed=len(completed),
        errors=dict(Counter(recording.error for recording in recordings if recording.error)),
        requests_per_s=_rate(len(completed), duration),
        output_tokens=num_tokens,
        output_tokens_per_s=_rate(num_tokens, duration),
        prompt_tokens=sum(recording.num_prompt_tokens for recording in completed),
        chunks=num_chunks,
        chunks_per_s=_rate(num_chunks, duration),
        tokens_counted_by=sorted({recording.tokens_by for recording in completed}),
        ttft_ms=Spread.of(_known(recording.ttft for recording in completed)),
        itl_ms=Spread.of(gap for recording in completed for gap in recording.gaps),
        tpot_ms=Spread.of(_known(recording.tpot for recording in completed)),
        e2e_ms=Spread.of(_known(recording.e2e for recording in completed)),
        good_requests_per_s=_rate(num_good, duration),
        good_share=round(num_good / len(recordings), 4) if recordings else 0.0,
    )


def _duration(recordings: Sequence[Recording]) -> float:
    ends = _known(recording.ended for recording in recordings)
    return max(ends, default=0.0) - min((r.started for r in recordings), default=0.0)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rate(number: int, seconds: float) -> float:
    return round(number / seconds, 2) if seconds > 0 else 0.0
