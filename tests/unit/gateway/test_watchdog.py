"""Phases that take too long, and a process that could not look in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tgwui_k8s.gateway.limits import Watchdog


class Timer:
    """What `call_at` gives."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.is_cancelled = False

    def when(self) -> float:
        """When it should fire."""
        return self.due

    def cancel(self) -> None:
        """Never."""
        self.is_cancelled = True


class Loop:
    """Time passes when the test says so; timers fire at the end of that, however late it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        """The clock."""
        return self.now

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """A timer."""
        self.timers.append(Timer(due, callback))
        return self.timers[-1]

    def run_until(self, now: float) -> None:
        """Stand still until then."""
        self.now = now
        due = [timer for timer in self.timers if timer.due <= now]
        self.timers = [timer for timer in self.timers if timer.due > now]
        for timer in due:
            if not timer.is_cancelled:
                timer.callback()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """In place of the running one."""
    fake = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: fake)
    return fake


@pytest.fixture
def expired() -> list[str]:
    """Phases that took too long."""
    return []


@pytest.fixture
def watchdog(loop: Loop, expired: list[str]) -> Watchdog:
    """On that loop."""
    return Watchdog(lambda phase, seconds: expired.append(phase))


def test_a_phase_that_takes_too_long_expires_on_time(
    loop: Loop, expired: list[str], watchdog: Watchdog
) -> None:
    """Not before, and counted from the last time that it was entered."""
    watchdog.enter("first_byte", 1.0)
    loop.run_until(0.9)
    watchdog.enter("between_chunks", 1.0)
    loop.run_until(1.0)
    loop.run_until(1.8)
    assert expired == []
    loop.run_until(1.95)
    assert expired == ["between_chunks"]


def test_a_process_that_stood_still_listens_before_it_blames(
    loop: Loop, expired: list[str], watchdog: Watchdog
) -> None:
    """The event that came meanwhile is read after the timer has fired, and counts."""
    watchdog.enter("between_chunks", 1.0)
    loop.run_until(5.0)
    assert expired == []
    watchdog.enter("between_chunks", 1.0)
    loop.run_until(5.95)
    assert expired == []


def test_silence_after_standing_still_is_silence(
    loop: Loop, expired: list[str], watchdog: Watchdog
) -> None:
    """It is forgiven once, and for no longer than the phase may take."""
    watchdog.enter("between_chunks", 1.0)
    loop.run_until(5.0)
    loop.run_until(5.9)
    assert expired == []
    loop.run_until(8.0)
    assert expired == ["between_chunks"]
