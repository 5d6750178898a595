"""What the relay needs to know of an engine's way to speak."""

from __future__ import annotations

from typing import Protocol

from tgwui_k8s.gateway.call import Call
from tgwui_k8s.gateway.streams import Stream


class Dialect(Protocol):
    """Stateless; what a stream has to remember is in its `Stream`."""

    translates: bool
    """Answers are put into our words, so they must be whole; else they may flow through."""

    def serves(self, path: str) -> bool:
        """Whether its engines can answer a route of ours."""
        ...

    def new_stream(self, call: Call) -> Stream:
        """For a call that wants events."""
        ...

    def request(self, call: Call, stream: Stream | None) -> tuple[str, bytes]:
        """Target and body of the request, or of the one that goes on with `stream`.

        Raises `RequestError` for what the engine cannot do, `ExchangeError` where a stream cannot
        go on.
        """
        ...

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An error answer in our words."""
        ...

    def answer(self, call: Call, status: int, body: bytes) -> bytes:
        """A whole answer in our words."""
        ...
