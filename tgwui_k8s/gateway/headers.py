"""Which headers pass the gateway, in both directions."""

from __future__ import annotations

from collections.abc import Iterable

from tgwui_k8s.gateway.http_connection import Headers

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""They are about one connection (RFC 9110, 7.6.1)."""

_NOT_TO_ENDPOINTS = _HOP_BY_HOP | {
    b"accept-encoding",  # Answers are read here.
    b"authorization",  # The client's key is for the gateway.
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"traceparent",
    b"x-api-key",
    b"x-request-id",
}
_NOT_TO_CLIENTS = _HOP_BY_HOP | {
    b"content-length",
    b"date",
    b"server",
    b"traceparent",
    b"x-request-id",
}
_OURS = b"x-gateway-"


def to_endpoint(
    headers: dict[bytes, bytes], *, request_id: str, trace_parent: bytes, key: bytes | None
) -> Headers:
    """What an endpoint gets of a client's headers. `key` is the gateway's own for endpoints."""
    named = _named_by_connection(headers.get(b"connection", b""))
    passed = [
        (name, value)
        for name, value in headers.items()
        if name not in _NOT_TO_ENDPOINTS and name not in named and not name.startswith(_OURS)
    ]
    passed += [(b"x-request-id", request_id.encode()), (b"traceparent", trace_parent)]
    if key is not None:
        passed.append((b"authorization", b"Bearer " + key))
    return passed


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What a client gets of an endpoint's headers. Those of a gateway behind us are not ours."""
    headers = list(headers)
    named = _named_by_connection(
        b",".join(value for name, value in headers if name == b"connection")
    )
    return [
        (name, value)
        for name, value in headers
        if name not in _NOT_TO_CLIENTS and name not in named and not name.startswith(_OURS)
    ]


def _named_by_connection(value: bytes) -> frozenset[bytes]:
    return frozenset(name.strip().lower() for name in value.split(b",") if name.strip())
