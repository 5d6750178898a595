"""A gateway in the running event loop, served by its real HTTP server on a free port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from tgwui_k8s.config import GatewaySettings, ServerSettings, Settings
from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.gateway import Gateway
from tgwui_k8s.gateway.http_server import make_server
from tgwui_k8s.listener import bind

_POLL_SECONDS = 0.05


@dataclass
class RunningGateway:
    """Where it is, and its parts."""

    url: str
    parts: Gateway
    server: uvicorn.Server

    def forgive(self) -> None:
        """Close every breaker."""
        for state in self.parts.fleet.states:
            state.breaker = Breaker()


@asynccontextmanager
async def running_gateway(
    *urls: str, num_ready: int | None = None, server: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[RunningGateway]:
    """Serve until the context ends; waits until `num_ready` (all) of the endpoints are ready.

    `settings` are the gateway's, `server` the server's.
    """
    mine = GatewaySettings(**{"endpoint": urls, "endpoint_poll_seconds": _POLL_SECONDS, **settings})
    gateway = Gateway(Settings(gateway=mine, server=ServerSettings(**(server or {}))))
    background = asyncio.ensure_future(gateway.run_background())
    listener = bind("127.0.0.1", 0)
    http_server = make_server(gateway.app, farewell_seconds=1)
    serving = asyncio.ensure_future(http_server.serve(sockets=[listener]))
    wanted = len(urls) if num_ready is None else num_ready
    await until(lambda: sum(state.is_ready for state in gateway.fleet.states) >= wanted)
    await until(lambda: http_server.started)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield RunningGateway(url, gateway, http_server)
    finally:
        http_server.should_exit = True
        await asyncio.wait((serving,), timeout=5)
        for task in (serving, background):
            task.cancel()
        await asyncio.gather(serving, background, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; fail when it does not for long."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("It never happened.")


def events_of(text: str) -> list[str]:
    """The data of a stream's events."""
    assert text.endswith("\n\n") or not text
    blocks = [block for block in text.split("\n\n") if block]
    return [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]


def chunks_of(text: str) -> list[dict[str, Any]]:
    """The chunks of a complete stream."""
    events = events_of(text)
    assert events[-1] == "[DONE]", events[-1][:300]
    return [json.loads(event) for event in events[:-1]]
