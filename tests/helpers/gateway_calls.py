"""Calls as the gateway's parts see them."""

from __future__ import annotations

from typing import Any

from tgwui_k8s.gateway.call import COMPLETIONS, Call, read_asked
from tgwui_k8s.gateway.limits import Limits


def call_of(body: bytes, **changes: Any) -> Call:
    """A call with this body."""
    fields: dict[str, Any] = {
        "method": "POST",
        "path": COMPLETIONS,
        "query": b"",
        "headers": {},
        "body": body,
        "asked": read_asked(body),
        "limits": Limits(),
        "arrival": 0.0,
        "request_id": "r",
        "trace_parent": b"",
    }
    return Call(**{**fields, **changes})
