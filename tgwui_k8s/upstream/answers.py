"""Answers of our own, as status, headers and bytes: probes, refusals, errors.

The same answers go out by the little server of the start (`starting`) and in front of upstream's
application (`front`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tgwui_k8s.upstream.service import Service

PROBES = ("/health", "/health/live", "/health/ready", "/health/startup")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    @property
    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI wants them."""
        every = {
            "content-type": self.content_type,
            "content-length": str(len(self.body)),
            **self.headers,
        }
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in every.items()]


def error_body(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def refusal(status: int, message: str, code: str | None, retry_after: int | None = None) -> Answer:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Answer(status, json.dumps(error_body(message, kind, code)).encode(), headers)


def probe(path: str, service: Service) -> Answer:
    """The answer of a probe: 200 or 503 and, in words, why."""
    if path == "/health/live":
        return _health("alive")
    if path == "/health/startup":
        return _health("started") if service.is_started else _health("loading", ok=False)
    if service.is_draining:
        return _health("draining", ok=False)
    if not service.is_started:
        return _health("loading", ok=False)
    return _health("ready") if service.has_model else _health("no model is loaded", ok=False)


def not_now(service: Service) -> Answer | None:
    """The refusal of any request that comes too early or too late; None where all is well."""
    if service.is_draining:
        return refusal(503, "The server is shutting down.", "draining", 1)
    if not service.is_started:
        return refusal(503, "The server is loading the model.", "model_not_ready", 5)
    return None


def _health(status: str, *, ok: bool = True) -> Answer:
    return Answer(200 if ok else 503, json.dumps({"status": status}).encode())
