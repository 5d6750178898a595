"""What is true of the running server: loading, serving or draining, and what is in flight.

One object per process, kept as an attribute of upstream's own `modules.shared`, which every hook
hands over. No hook finds state anywhere else.
"""

from __future__ import annotations

import os
import threading
import time
from types import ModuleType
from typing import Any, cast

_ATTRIBUTE = "tgwui_k8s_service"
_NOTHING = (None, "None")
_DRAIN_SECONDS = 120.0


class Service:
    """Life cycle and requests of one server. Safe from any thread."""

    def __init__(self, shared: ModuleType) -> None:
        self._shared = shared
        self._changed = threading.Condition()
        self._is_started = False
        self._is_draining = False
        self._num_requests = 0
        self.started_at = time.monotonic()

    @property
    def has_model(self) -> bool:
        """Whether a request for text can be served; a model that sleeps by --idle-timeout can."""
        if self._shared.model is not None:
            return True
        sleeps = getattr(self._shared.args, "idle_timeout", 0) > 0
        return sleeps and self._is_started and self._shared.model_name not in _NOTHING

    @property
    def is_started(self) -> bool:
        """Whether the start, with the load of the first model, is over."""
        return self._is_started

    @property
    def is_draining(self) -> bool:
        """Whether SIGTERM has come."""
        return self._is_draining

    @property
    def num_requests(self) -> int:
        """HTTP requests in flight, probes aside."""
        return self._num_requests

    def started(self) -> None:
        """The start is over: upstream's application answers from now on."""
        self._is_started = True

    def drain(self) -> None:
        """Take nothing new."""
        self._is_draining = True

    def enter(self) -> None:
        """One more request."""
        with self._changed:
            self._num_requests += 1

    def leave(self) -> None:
        """One request less."""
        with self._changed:
            self._num_requests -= 1
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether all requests ended in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_requests == 0, seconds)


def service_of(shared: Any) -> Service:
    """The service of the process that `shared` belongs to."""
    service = getattr(shared, _ATTRIBUTE, None)
    if service is None:
        service = Service(shared)
        setattr(shared, _ATTRIBUTE, service)
    return cast("Service", service)


def drain_seconds() -> float:
    """How long running requests get after SIGTERM: TGWUI_DRAIN_TIMEOUT, default 120."""
    return float(os.environ.get("TGWUI_DRAIN_TIMEOUT") or _DRAIN_SECONDS)
