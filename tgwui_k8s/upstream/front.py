"""What stands before upstream's application: probes, drain, and the count of what is in flight.

Plain ASGI, outermost: no key, no check of the Host header and no thread is between a probe and
its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tgwui_k8s.upstream.answers import PROBES, Answer, not_now, probe
from tgwui_k8s.upstream.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """An ASGI application around another."""

    def __init__(self, app: Application, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is ours, refuse while draining, pass on and count the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in PROBES:
            await send_answer(probe(scope["path"], self._service), send)
            return
        refused = not_now(self._service)
        # What only watches goes on: Prometheus sees the drain to its end.
        if refused is not None and scope["path"] != "/metrics":
            await send_answer(refused, send)
            return
        self._service.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.leave()


async def send_answer(answer: Answer, send: Send) -> None:
    """Send a whole answer."""
    await send(
        {"type": "http.response.start", "status": answer.status, "headers": answer.all_headers}
    )
    await send({"type": "http.response.body", "body": answer.body})
