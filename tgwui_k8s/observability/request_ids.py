"""What a request is called: an id and a trace, the client's where they are sane, else new ones."""

from __future__ import annotations

import os
import re

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})"
)


def request_id_of(header: bytes | None) -> bytes:
    """The id for a request that came with this `x-request-id`."""
    if header is not None and _REQUEST_ID.fullmatch(header) is not None:
        return header
    return os.urandom(16).hex().encode()


def trace_of(header: bytes | None) -> tuple[bytes, bytes]:
    """The trace id and the `traceparent` for a request that came with this `traceparent`."""
    matched = _TRACEPARENT.fullmatch(header or b"")
    if header is not None and matched is not None:
        return matched[1], header
    trace_id = os.urandom(16).hex().encode()
    return trace_id, child_of(trace_id)


def child_of(trace_id: bytes, flags: bytes = b"00") -> bytes:
    """A `traceparent` for a new span of the trace."""
    return b"00-%b-%b-%b" % (trace_id, os.urandom(8).hex().encode(), flags)
