"""How a stream of events goes through the gateway: what each kind needs to know of its events."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.event_stream import DONE, NOT_JSON, data_of
from tgwui_k8s.gateway.failures import EndpointError

RETRYABLE_CODES = frozenset(
    {
        "draining",
        "engine_unavailable",
        "internal_error",
        "model_not_ready",
        "overloaded",
        "stream_interrupted",
    }
)
"""Errors inside a stream that another endpoint need not have."""

_MAX_ERROR_EVENT_BYTES = 16 * 1024


class Stream(Protocol):
    """One client's stream."""

    is_complete: bool
    """The client has all of it."""

    @property
    def has_delivered(self) -> bool:
        """Whether the client has any of it: then only a stream that can continue is retried."""
        ...

    def take(self, block: bytes) -> bytes:
        """One event from the endpoint as bytes for the client. Raises `ExchangeError`."""
        ...

    def finish(self) -> bytes | None:
        """The endpoint's answer has ended: what is left to say, or None where more is missing."""
        ...


def raise_if_error(chunk: dict[str, Any]) -> None:
    """Raise `EndpointError` where the event is an error and not a chunk."""
    error = chunk.get("error")
    if error is None:
        return
    code = error.get("code") if isinstance(error, dict) else None
    raise EndpointError(500, msgspec.json.encode(chunk), is_retryable=code in RETRYABLE_CODES)


class _WithUsage(msgspec.Struct, gc=False):
    usage: Any = None
    message: Any = None
    response: Any = None


_usage_decoder = msgspec.json.Decoder(_WithUsage)


def usage_in(data: bytes) -> object:
    """The `usage` of an answer or event, wherever the API has it."""
    try:
        found = _usage_decoder.decode(data)
    except NOT_JSON:
        return None
    for holder in (found.message, found.response):
        if found.usage is None and isinstance(holder, dict):
            return holder.get("usage")
    return found.usage


class PlainStream:
    """Events that are passed on as they are. What has been passed on cannot be taken back."""

    def __init__(self, call: Call, *, has_done: bool) -> None:
        """`has_done`: the stream ends with `[DONE]`, so that without it something is missing."""
        self._call = call
        self._has_done = has_done
        self.has_delivered = False
        self.is_complete = False

    def take(self, block: bytes) -> bytes:
        """The same event. Raises `EndpointError` for an error event that comes first."""
        data = data_of(block)
        if data == DONE:
            self.is_complete = True
        elif len(data) < _MAX_ERROR_EVENT_BYTES and b'"error"' in data[:64]:
            self._take_error(data)
        elif b'"usage":{' in data or b'"usage": {' in data:
            self._call.note_usage(usage_in(data))
        self.has_delivered = True
        return block + b"\n\n"

    def finish(self) -> bytes | None:
        """Without a mark for its end, a stream has ended when the connection says so."""
        return None if self._has_done else b""

    def _take_error(self, data: bytes) -> None:
        try:
            chunk = msgspec.json.decode(data)
        except NOT_JSON:
            return
        if not isinstance(chunk, dict) or not isinstance(chunk.get("error"), dict):
            return
        if not self.has_delivered:
            raise_if_error(chunk)
        self.is_complete = True  # The endpoint itself has said that there is no more.
