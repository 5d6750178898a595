"""What can go wrong between gateway and endpoint: data for retry and breaker, not for clients.

ExchangeError
├── ConnectFailedError      refused, unreachable, unknown name, TLS
├── ConnectionLostError     reset or closed before the answer was complete
├── BrokenFramingError      what came is not the HTTP or the event stream it should be
├── PhaseTimeoutError       nothing came within the phase's time
└── EndpointError           the endpoint answered, with an error
"""

from __future__ import annotations

from typing import Literal

from tgwui_k8s.errors import TgwuiError

Phase = Literal["connect", "first_byte", "between_chunks", "total", "silent", "client"]


class ExchangeError(TgwuiError):
    """An exchange with an endpoint did not come to its end."""

    reason = "error"
    """One word for metrics and log lines."""


class ConnectFailedError(ExchangeError):
    """No connection to the endpoint."""

    reason = "connect"


class ConnectionLostError(ExchangeError):
    """The connection ended before the answer did."""

    reason = "connection_lost"


class BrokenFramingError(ExchangeError):
    """The endpoint does not speak the protocol it should."""

    reason = "framing"


class PhaseTimeoutError(ExchangeError):
    """The endpoint was silent for too long."""

    def __init__(self, phase: Phase, seconds: float) -> None:
        super().__init__(f"the endpoint took more than {seconds:g} s ({phase.replace('_', ' ')})")
        self.phase = phase
        self.reason = f"timeout_{phase}"


_NOT_READY_CODES = (b'"engine_unavailable"', b'"model_not_ready"', b'"draining"')


class EndpointError(ExchangeError):
    """The endpoint answered with an error status, or with an error event in its stream."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        retry_after_seconds: float | None = None,
        is_retryable: bool = False,
    ) -> None:
        """`is_retryable`: although the status alone does not say so."""
        super().__init__(f"the endpoint answered {status}")
        self.status = status
        self.body = body
        self.headers = headers or []
        self.retry_after_seconds = retry_after_seconds
        self.is_retryable = is_retryable
        self.reason = f"status_{status}"

    @property
    def says_not_ready(self) -> bool:
        """Whether the endpoint will answer everything so until it is ready again."""
        return self.status >= 500 and any(code in self.body for code in _NOT_READY_CODES)
