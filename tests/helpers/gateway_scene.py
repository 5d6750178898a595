"""Scripted endpoints, a gateway over them and a client: the stage for faults and edges."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.helpers.gateway import RunningGateway, running_gateway
from tests.helpers.scripted_endpoint import Plan, ScriptedEndpoint, answer

GOOD = answer(200, b'{"choices":[],"said":"good"}')
PATH = "/v1/completions"
BODY = {"prompt": "x", "model": "fake/model"}


def stream_of(*events: str) -> bytes:
    """An answer that is a stream of these events."""
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    return answer(200, body, content_type=b"text/event-stream")


def chunk(text: str, offset: int, *, finish: str | None = None) -> str:
    """A chunk as the engine writes it for the gateway."""
    choice = {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": finish,
        "token_ids": list(range(offset, offset + len(text))),
        "text_offset": offset,
        "text_length": len(text),
    }
    return json.dumps({"id": "a", "created": 1, "model": "m", "choices": [choice]})


@dataclass
class Scene:
    """Endpoints of which the first that is asked follows the plan; the others are fine."""

    gateway: RunningGateway
    endpoints: list[ScriptedEndpoint]
    http: httpx.AsyncClient

    async def post(self, plans: list[Plan], body: dict[str, Any] | None = None) -> httpx.Response:
        """A request whose attempts meet `plans` in order, then good answers."""
        shared: deque[Plan] = deque([*plans, *(Plan(raw=GOOD) for _ in range(20))])
        for endpoint in self.endpoints:
            endpoint.plans = shared
        return await self.http.post(self.gateway.url + PATH, json=body or BODY)

    @property
    def num_attempts(self) -> int:
        """That reached an endpoint."""
        return sum(len(endpoint.requests) for endpoint in self.endpoints)


@asynccontextmanager
async def scene(num_endpoints: int = 2, **settings: Any) -> AsyncIterator[Scene]:
    """A gateway over scripted endpoints."""
    async with AsyncExitStack() as stack:
        endpoints = [
            await stack.enter_async_context(ScriptedEndpoint().serve())
            for _ in range(num_endpoints)
        ]
        gateway = await stack.enter_async_context(
            running_gateway(*(endpoint.url for endpoint in endpoints), **settings)
        )
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=20))
        yield Scene(gateway, endpoints, http)
