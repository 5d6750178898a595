"""When an engine is taken for hung."""

from __future__ import annotations

import pytest

from tgwui_k8s.engine.watchdog import FULL_STEP_FACTOR, Watchdog


class Clock:
    """A clock that goes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


def make_watchdog(clock: Clock, limit_seconds: float = 10.0) -> Watchdog:
    """Ten seconds for a decode step, a hundred tokens of budget."""
    return Watchdog(limit_seconds, token_budget=100, clock=clock)


def beat(watchdog: Watchdog, clock: Clock, seconds: int, **heartbeat: object) -> None:
    """The same heartbeat every second."""
    for _ in range(seconds):
        clock.now += 1
        watchdog.hear(**heartbeat)


def test_idle_engine_is_healthy_for_ever(clock: Clock) -> None:
    """Without work nothing is late."""
    watchdog = make_watchdog(clock)
    beat(watchdog, clock, 1000, num_steps=5, has_work=False)

    assert watchdog.complaint() is None


def test_step_that_does_not_end_is_a_hang(clock: Clock) -> None:
    """With work pending and no new step for longer than the limit, the engine hangs."""
    watchdog = make_watchdog(clock)
    beat(watchdog, clock, 11, num_steps=5, has_work=True)
    assert watchdog.complaint() is None

    beat(watchdog, clock, 1, num_steps=5, has_work=True)

    assert "no step has ended for 11 s" in watchdog.complaint()


def test_steps_that_end_are_progress(clock: Clock) -> None:
    """A busy engine that goes on is healthy."""
    watchdog = make_watchdog(clock)
    for num_steps in range(100):
        beat(watchdog, clock, 9, num_steps=num_steps, has_work=True)

    assert watchdog.complaint() is None


def test_work_that_comes_after_a_long_rest_is_not_late(clock: Clock) -> None:
    """Time without work does not count."""
    watchdog = make_watchdog(clock)
    beat(watchdog, clock, 1000, num_steps=5, has_work=False)
    beat(watchdog, clock, 10, num_steps=5, has_work=True)

    assert watchdog.complaint() is None


def test_full_prefill_step_gets_more_time(clock: Clock) -> None:
    """A step that uses the whole budget may take so many times as long, and no longer."""
    watchdog = make_watchdog(clock)
    beat(watchdog, clock, 10 * FULL_STEP_FACTOR, num_steps=5, has_work=True, step_tokens=100)
    assert watchdog.complaint() is None

    beat(watchdog, clock, 2, num_steps=5, has_work=True, step_tokens=100)

    assert watchdog.complaint() is not None


def test_half_full_step_gets_time_in_proportion(clock: Clock) -> None:
    """Half the budget earns half of the extra time."""
    watchdog = make_watchdog(clock)
    beat(watchdog, clock, 45, num_steps=5, has_work=True, step_tokens=50)
    assert watchdog.complaint() is None

    beat(watchdog, clock, 2, num_steps=5, has_work=True, step_tokens=50)

    assert watchdog.complaint() is not None


def test_silence_is_a_hang_even_without_work(clock: Clock) -> None:
    """An engine whose heartbeat stops is stuck as a whole."""
    watchdog = make_watchdog(clock)
    clock.now += 11

    assert "not been heard of" in watchdog.complaint()
    assert watchdog.silence_seconds == 11


def test_short_limit_does_not_make_late_heartbeats_a_hang(clock: Clock) -> None:
    """Heartbeats come every second, so a limit below that says nothing about silence."""
    watchdog = make_watchdog(clock, limit_seconds=0.1)
    clock.now += 3

    assert watchdog.complaint() is None


def test_time_that_the_watcher_slept_does_not_count(clock: Clock) -> None:
    """After the whole container was frozen, the engine is not to blame."""
    watchdog = make_watchdog(clock)
    clock.now += 1000
    watchdog.forgive(1000)

    assert watchdog.complaint() is None
