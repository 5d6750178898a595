"""The HTTP server: uvicorn, with what it lacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tgwui_k8s.gateway.body_writer import BODY_WRITER, BodyWriter
from tgwui_k8s.limited_protocol import LimitedProtocol

_KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep idle connections, so that they close them and not we."""


class GatewayProtocol(LimitedProtocol):
    """Lets the application write its answers' bodies itself."""

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self.scope["extensions"] = {BODY_WRITER: {"writer": BodyWriter(self.transport, self.flow)}}


class GatewayServer(uvicorn.Server):
    """uvicorn, but signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install nothing."""
        yield


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, callable by web pages from these origins."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-gateway-endpoint"],
    )


def make_server(app: ASGIApp, *, farewell_seconds: float) -> GatewayServer:
    """A server that closes connections within `farewell_seconds` when it is told to stop."""
    return GatewayServer(
        uvicorn.Config(
            app,
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(farewell_seconds),
        )
    )
