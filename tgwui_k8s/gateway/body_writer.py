"""An answer's body straight to its connection: for streams, of which every piece costs.

ASGI's `send` is a coroutine and a dictionary per piece. This is what uvicorn's does with one, and
nothing else; the server offers it to the application as an extension of ASGI.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

BODY_WRITER = "tgwui_k8s.body_writer"
"""Its name among a scope's extensions."""


class BodyWriter:
    """Of one request, whose answer is chunked, and has begun when this is used."""

    __slots__ = ("_flow", "_transport")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow

    def write(self, data: bytes) -> bool:
        """Write some of the body. False: the client takes it slower than it comes; `send` waits."""
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused

    def cut(self) -> None:
        """Cut the connection, whatever was still to be written."""
        self._transport.abort()
