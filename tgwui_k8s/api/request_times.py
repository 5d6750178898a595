"""When the tokens of one HTTP request came; metrics hear of each as it happens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgwui_k8s.observability.metrics import Metrics


class RequestTimes:
    """Intervals on this process's monotonic clock, in seconds."""

    def __init__(self, arrival: float, metrics: Metrics) -> None:
        self.arrival = arrival
        self.queue_seconds: float | None = None
        """The engine's own word."""
        self._metrics = metrics
        self._first_token: float | None = None
        self._last_token: float | None = None

    def note_tokens(self, num_tokens: int, now: float, previous: float | None) -> None:
        """Some tokens of a choice came; `previous`: when its last ones did."""
        if self._first_token is None:
            self._first_token = now
            self._metrics.observe_first_token(now - self.arrival)
        if previous is not None:
            self._metrics.observe_inter_token(now - previous, num_tokens)
        self._last_token = now

    @property
    def ttft_seconds(self) -> float | None:
        """From the arrival to the first token."""
        return None if self._first_token is None else self._first_token - self.arrival

    @property
    def prefill_seconds(self) -> float | None:
        """From leaving the queue to the first token."""
        if self.ttft_seconds is None or self.queue_seconds is None:
            return None
        return max(0.0, self.ttft_seconds - self.queue_seconds)

    @property
    def decode_seconds(self) -> float | None:
        """From the first token to the last."""
        if self._first_token is None or self._last_token is None:
            return None
        return self._last_token - self._first_token

    @property
    def e2e_seconds(self) -> float:
        """From the arrival to now."""
        return time.monotonic() - self.arrival
