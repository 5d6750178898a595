"""Tells a long prefill from a hang, by what the engine says of itself. Knows no processes.

The engine hangs when, with work pending, no step has ended for too long; a step gets more time
the more of the token budget it uses. It also hangs when it has not been heard of at all: its
heartbeat has a thread of its own, so then the whole interpreter is stuck or stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FULL_STEP_FACTOR = 8
"""A step that uses the whole token budget may take so many times as long as a decode step."""

MIN_SILENCE_SECONDS = 5.0
"""Heartbeats come every second; a few may be late on a busy machine."""


class Watchdog:
    """Watches one engine process from the moment its model is loaded."""

    def __init__(
        self,
        limit_seconds: float,
        token_budget: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_seconds`: how long a decode step may take at most."""
        self._limit_seconds = limit_seconds
        self._token_budget = token_budget
        self._clock = clock
        self._heard = self._moved = clock()
        self._num_steps = 0
        self._step_tokens = 0
        self._has_work = False

    @property
    def silence_seconds(self) -> float:
        """Time since the engine was last heard of."""
        return max(0.0, self._clock() - self._heard)

    def hear(self, num_steps: int, *, has_work: bool, step_tokens: int = 0) -> None:
        """The engine says it has done so many steps, and is at one of `step_tokens` tokens."""
        self._heard = self._clock()
        # Work that has just come is not late, however long nothing happened before it.
        if num_steps != self._num_steps or not (has_work and self._has_work):
            self._moved = self._heard
        self._num_steps = num_steps
        self._has_work = has_work
        self._step_tokens = step_tokens

    def forgive(self, seconds: float) -> None:
        """Do not count this time: it was the watcher that slept."""
        self._heard += seconds
        self._moved += seconds

    def complaint(self) -> str | None:
        """Why the engine must be taken for hung; None while it need not."""
        silence_limit = max(self._limit_seconds, MIN_SILENCE_SECONDS)
        if self.silence_seconds > silence_limit:
            return f"the engine hangs: it has not been heard of for {self.silence_seconds:.0f} s"
        seconds = self._clock() - self._moved
        if self._has_work and seconds > self._step_limit():
            return f"the engine hangs: with work pending, no step has ended for {seconds:.0f} s"
        return None

    def _step_limit(self) -> float:
        share = min(1.0, self._step_tokens / self._token_budget)
        return self._limit_seconds * (1 + (FULL_STEP_FACTOR - 1) * share)
