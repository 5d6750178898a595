"""The HTTP server: uvicorn, whose answers' bodies the application may write itself."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from tgwui_k8s.gateway.body_writer import BODY_WRITER, BodyWriter
from tgwui_k8s.limited_protocol import LimitedProtocol
from tgwui_k8s.uvicorn_server import SignallessServer, limited_config


class GatewayProtocol(LimitedProtocol):
    """Lets the application write its answers' bodies itself."""

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self.scope["extensions"] = {BODY_WRITER: {"writer": BodyWriter(self.transport, self.flow)}}


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


def make_server(app: ASGIApp, *, farewell_seconds: float) -> uvicorn.Server:
    """A server that closes connections within `farewell_seconds` when it is told to stop."""
    config = limited_config(
        app,
        farewell_seconds=farewell_seconds,
        protocol=GatewayProtocol,
        date_header=False,  # an engine's answer has one
    )
    return SignallessServer(config)
