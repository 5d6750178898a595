"""One streamed request to an OpenAI-compatible server, recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools
import msgspec

from benchmarks.load.http import Exchange, Origin, TruncatedError, ask
from benchmarks.load.recording import Recording, error_code

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True)
class Target:
    """What is asked, but for the prompt."""

    origin: Origin
    model: str
    endpoint: str = "completions"
    """`completions` or `chat`."""
    max_tokens: int = 128
    temperature: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the body, such as `ignore_eos`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 600.0

    def request(self, prompt: str) -> bytes:
        """The whole HTTP request."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        headers = {"Content-Type": "application/json", **self.headers}
        return self.origin.request(
            "POST", _PATHS[self.endpoint], headers, msgspec.json.encode(body)
        )


async def stream(target: Target, prompt: str) -> Recording:
    """Ask and listen to the end. Never raises: what goes wrong is in the recording's `error`."""
    request = target.request(prompt)
    recording = Recording(time.perf_counter())
    refusal = bytearray()

    def on_body(data: bytes) -> None:
        if exchange.status == 200:
            recording.take(data)
        elif len(refusal) < _MAX_ERROR_BYTES:
            refusal.extend(data)

    exchange = Exchange(request, on_body)
    try:
        await asyncio.wait_for(exchange.run(target.origin), target.timeout_seconds)
        if exchange.status != 200:
            recording.error = _refusal(exchange.status, bytes(refusal))
    except asyncio.TimeoutError:
        recording.error = "timeout"
    except TruncatedError:
        if not exchange.status:
            recording.error = "closed without an answer"
    except httptools.HttpParserError:
        recording.error = "answer is no HTTP"
    except OSError as error:
        recording.error = f"connection: {type(error).__name__}"
    recording.end()
    return recording


async def first_model(origin: Origin, headers: Mapping[str, str]) -> str:
    """The first name in `/v1/models`. Raises `OSError` or `ValueError`."""
    request = origin.request("GET", "/v1/models", headers, b"")
    status, body = await asyncio.wait_for(ask(origin, request), 30.0)
    if status != 200:
        raise ValueError(f"/v1/models answers {status}; say --model")
    try:
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise ValueError("/v1/models lists no model; say --model") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"HTTP {status}: {error_code(msgspec.json.decode(body)['error'])}"
    except (msgspec.DecodeError, LookupError, TypeError):
        return f"HTTP {status}"
