"""The HTTP server around our application: uvicorn, without what the life cycle does itself.

The web framework takes longest to import of all the server has: `life_cycle` imports this beside
the event loop, after the engine is on its way.
"""

from __future__ import annotations

import logging

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgwui_k8s.api.app import create_app
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.uvicorn_server import SignallessServer, limited_config


def make_server(state: ServerState, *, farewell_seconds: float) -> uvicorn.Server:
    """A server to be served on a listening socket; connections left at its end get so long.

    Raises `UsageError` for key files without keys.
    """
    # What uvicorn says of an orderly life is said by us.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    app = CloseWhileDraining(create_app(state), state)
    return SignallessServer(limited_config(app, farewell_seconds=farewell_seconds))


class CloseWhileDraining:
    """Adds `Connection: close` to every answer that begins while the server drains."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Plain ASGI."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._state.draining:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_and_close)
