"""How long each phase of an exchange may take: from the settings, or per request by header.

x-gateway-connect-timeout          until the connection stands
x-gateway-first-byte-timeout       until the answer begins
x-gateway-between-chunks-timeout   until the next event of a stream; comments do not count
x-gateway-total-timeout            from arrival to end, queueing and retries included
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tgwui_k8s.errors import InvalidRequestError
from tgwui_k8s.gateway.failures import Phase

SHORTEST_SECONDS = 0.01

_LATE_SECONDS = 0.1
"""A timer that fires so much later than it was due says that this process stood still."""

_HEADERS = {
    b"x-gateway-connect-timeout": "connect",
    b"x-gateway-first-byte-timeout": "first_byte",
    b"x-gateway-between-chunks-timeout": "between_chunks",
    b"x-gateway-total-timeout": "total",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds per phase."""

    connect: float = 2.0
    first_byte: float = 120.0
    between_chunks: float = 30.0
    total: float = 600.0


def limits_of(
    headers: Mapping[bytes, bytes], timeout_s: object, defaults: Limits, longest: float
) -> Limits:
    """What this request may take; `timeout_s` is the field of its body.

    Raises `InvalidRequestError` for a header that is no number of seconds up to `longest`.
    """
    limits = defaults
    for name, phase in _HEADERS.items():
        if name in headers:
            seconds = _seconds(name.decode(), headers[name], longest)
            limits = replace(limits, **{phase: seconds})
    if isinstance(timeout_s, (int, float)) and 0 < timeout_s < limits.total:
        limits = replace(limits, total=float(timeout_s))
    return limits


def _seconds(name: str, value: bytes, longest: float) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_SECONDS <= seconds <= longest:
        raise InvalidRequestError(
            f"Invalid header '{name}': expected seconds from {SHORTEST_SECONDS} to {longest:g}.",
            param=name,
            code="invalid_value",
        )
    return seconds


class Watchdog:
    """Calls `on_expire` when a phase takes too long. Entering a phase costs no timer of its own.

    A process that stood still itself, for want of a core, has not listened: what has come meanwhile
    is read before anybody is blamed for silence.
    """

    __slots__ = (
        "_deadline", "_interrupted", "_is_extended", "_loop", "_on_expire", "_phase", "_seconds",
        "_timer",
    )  # fmt: skip

    def __init__(self, on_expire: Callable[[Phase, float], None]) -> None:
        self._on_expire = on_expire
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._phase: Phase = "total"
        self._seconds = 0.0
        self._deadline = math.inf
        self._is_extended = False
        self._interrupted: tuple[Phase, float, float] = ("total", 0.0, math.inf)

    def enter(self, phase: Phase, seconds: float) -> None:
        """From now on `phase` has this long."""
        self._phase = phase
        self._seconds = seconds
        self._deadline = self._loop.time() + seconds
        self._is_extended = False
        if self._timer is None or self._timer.when() > self._deadline:
            self._set_timer()

    def interrupt(self, phase: Phase, seconds: float) -> None:
        """Somebody else is waited for; `resume` goes on with the phase before."""
        self._interrupted = (self._phase, self._seconds, self._deadline)
        self.enter(phase, seconds)

    def resume(self) -> None:
        """Back to the phase before, with the time it has left."""
        self._phase, self._seconds, self._deadline = self._interrupted
        if self._deadline < math.inf and (
            self._timer is None or self._timer.when() > self._deadline
        ):
            self._set_timer()

    def stop(self) -> None:
        """The end of all phases."""
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """No phase will follow. Lets go of its owner: the two would otherwise keep each other until
        the garbage collector comes by, which it seldom does here."""
        self.stop()
        self._timer = None
        self._on_expire = _ignore

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        late_seconds = now - self._timer.when() if self._timer is not None else 0.0
        self._timer = None
        if self._deadline == math.inf:
            return
        if now >= self._deadline and late_seconds > _LATE_SECONDS and not self._is_extended:
            self._is_extended = True
            self._deadline = now + min(late_seconds, self._seconds)
        if now < self._deadline:
            self._set_timer()
        else:
            self._deadline = math.inf
            self._on_expire(self._phase, self._seconds)


def _ignore(phase: Phase, seconds: float) -> None:
    """Nobody is there any more."""
