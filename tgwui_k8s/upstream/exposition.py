"""Counters, gauges and histograms in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of histogram buckets, in seconds."""


def labels(**values: str) -> str:
    """Labels as they stand in a sample: `{model_name="a"}`."""
    if not values:
        return ""
    return "{" + ",".join(f'{name}="{_escape(text)}"' for name, text in values.items()) + "}"


class Counter:
    """Only grows; one value for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0, **by: str) -> None:
        """Count."""
        key = labels(**by)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def samples(self) -> Iterator[str]:
        """Lines without help."""
        with self._lock:
            values = dict(self._values)
        for key, value in values.items():
            yield f"{self.name}{key} {value:g}"


class Gauge:
    """What is true when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, help: str, read: Callable[[], tuple[str, float]]) -> None:
        self.name = name
        self.help = help
        self._read = read

    def samples(self) -> Iterator[str]:
        """One line."""
        key, value = self._read()
        yield f"{self.name}{key} {value:g}"


class Histogram:
    """Seconds, in buckets."""

    kind = "histogram"

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def observe(self, seconds: float, model_name: str) -> None:
        """Count one duration."""
        with self._lock:
            counts = self._counts.setdefault(model_name, [0] * (len(LATENCIES) + 1))
            counts[bisect_left(LATENCIES, seconds)] += 1
            self._sums[model_name] = self._sums.get(model_name, 0.0) + seconds

    def samples(self) -> Iterator[str]:
        """Cumulative buckets, sum and count."""
        with self._lock:
            every = {
                name: (list(counts), self._sums[name]) for name, counts in self._counts.items()
            }
        for model_name, (counts, total) in every.items():
            cumulated = 0
            for bound, count in zip((*LATENCIES, None), counts, strict=True):
                cumulated += count
                upper = "+Inf" if bound is None else f"{bound:g}"
                key = labels(model_name=model_name, le=upper)
                yield f"{self.name}_bucket{key} {cumulated}"
            key = labels(model_name=model_name)
            yield f"{self.name}_sum{key} {total:g}"
            yield f"{self.name}_count{key} {cumulated}"


def render(metrics: list[Counter | Gauge | Histogram]) -> bytes:
    """The whole page."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        lines += metric.samples()
    return ("\n".join(lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
