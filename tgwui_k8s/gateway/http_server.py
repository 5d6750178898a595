"""The HTTP server: uvicorn, with limits for heads that it does not have itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tgwui_k8s.gateway.body_writer import BODY_WRITER, BodyWriter

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0
"""A client that has not sent its head by then is cut off."""

_KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep idle connections, so that they close them and not we."""


class HeadTooLargeError(Exception):
    """Stops the parser."""


class LimitedProtocol(HttpToolsProtocol):
    """Refuses heads that are too large or too slow; nothing of them reaches the application."""

    _is_in_head = False
    _head_bytes = 0
    """Of the head's lines that are complete."""
    _fed_bytes = 0
    """Of the head so far, unfinished lines included."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client connects: its first head is due."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or of a body, which the application counts."""
        super().data_received(data)
        if self._is_in_head:
            self._fed_bytes += len(data)
            if self._fed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        self._head_bytes = self._fed_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {BODY_WRITER: {"writer": BodyWriter(self.transport, self.flow)}}
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_url(self, url: bytes) -> None:
        """A part of the first line."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Raises `HeadTooLargeError`, which ends the connection."""
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
            raise HeadTooLargeError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """For what cannot be parsed, unless it has been answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
            b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


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
            http=LimitedProtocol,
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
