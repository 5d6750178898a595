"""uvicorn's protocol with limits that it does not have itself, for every server of ours.

They hold before anybody has shown a key: a connection costs what its head may have, and not for
ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CUT = "tgwui_k8s.cut"
"""An extension of the scope: its `cut()` ends the connection, whatever was still to be written."""

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0
"""A client that has not sent its head by then is cut off."""
BODY_SECONDS = 60.0
"""... and so much later its body."""
UNSENT_SECONDS = 60.0
"""A client that takes nothing of the end of its answer for so long is cut off."""

_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_SLOW = b"408 Request Timeout"


class HeadTooLargeError(Exception):
    """Stops the parser."""


class LimitedProtocol(HttpToolsProtocol):
    """Refuses heads that are too large, and gives up clients that send or take too slowly.

    Nothing of such a head reaches the application. While the application writes, it waits for the
    client as long as it likes, and may `CUT` it off; what is left when it has done is waited for
    here.
    """

    _is_in_head = False
    _is_in_body = False
    _num_heads = 0
    _head_bytes = 0
    """Of the head's lines that are complete."""
    _fed_bytes = 0
    """Of the head so far, unfinished lines included."""
    _due_timer: asyncio.TimerHandle | None = None
    """For the head or the body that the client has to send."""
    _unsent_timer: asyncio.TimerHandle | None = None
    _num_unsent = 0

    def connection_made(self, transport: Any) -> None:
        """A client connects: its first head is due."""
        super().connection_made(transport)
        self._await_client(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: what hangs on it must not hold it."""
        self._stop_waiting()
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or of a body, which the application counts."""
        num_heads, was_in_body = self._num_heads, self._is_in_body
        super().data_received(data)
        # What stands before a head in these bytes, a body or another request, is none of it.
        if self._is_in_head and not was_in_body and self._num_heads <= num_heads + 1:
            self._fed_bytes += len(data)
            if self._fed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        self._num_heads += 1
        self._head_bytes = self._fed_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"cut": self.transport.abort}}
        if self._due_timer is None and self._is_idle:
            self._await_client(HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        """A part of the first line."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Raises `HeadTooLargeError`, which ends the connection."""
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
            raise HeadTooLargeError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole, its body is due."""
        self._is_in_head, self._is_in_body = False, True
        super().on_headers_complete()
        if self.pipeline:  # It waits for the answer before it, and so may its body.
            self._stop_waiting()
        else:
            self._await_client(BODY_SECONDS)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._is_in_body = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The application has done with one request."""
        super().on_response_complete()
        if self._is_in_head:
            self._await_client(HEAD_SECONDS)
        elif self.cycle.more_body and not self.pipeline:
            self._await_client(BODY_SECONDS)
        self._num_unsent = 0
        self._look_after_unsent()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """For what cannot be parsed, unless it has been answered."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse(self, status: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
        )
        self.transport.close()

    def _give_up(self) -> None:
        """The client has not sent what was due."""
        if self._is_in_head or self.cycle is None or self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(_TOO_SLOW)

    def _look_after_unsent(self) -> None:
        if self._unsent_timer is not None:
            self._unsent_timer.cancel()
        before, self._num_unsent = self._num_unsent, self.transport.get_write_buffer_size()
        if self._num_unsent and self._num_unsent == before:
            self.transport.abort()
        elif self._num_unsent:
            self._unsent_timer = self.loop.call_later(UNSENT_SECONDS, self._look_after_unsent)

    def _await_client(self, seconds: float) -> None:
        self._stop_waiting()
        self._due_timer = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
