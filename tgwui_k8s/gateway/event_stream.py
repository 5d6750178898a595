"""Server-sent events out of bytes: whole blocks only, whatever the pieces they come in."""

from __future__ import annotations

import msgspec

from tgwui_k8s.gateway.failures import BrokenFramingError

MAX_EVENT_BYTES = 8 * 1024 * 1024
DONE = b"[DONE]"

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for data that is no JSON, or not JSON of the type that is wanted."""

_DATA = b"data:"


class EventSplitter:
    """Feed what comes; get the blocks that are complete, each without the empty line at its end."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def has_rest(self) -> bool:
        """True while a block has begun and not ended."""
        return bool(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """Raises `BrokenFramingError` for a block without end."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            held = b"\r" if data.endswith(b"\r") else b""  # its line feed is still to come
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n") + held
        blocks = data.split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BrokenFramingError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return list(filter(None, blocks))


def is_comment(block: bytes) -> bool:
    """True for a keep-alive: it shows that the connection lives, not that the engine works."""
    return block.startswith(b":") and b"\ndata" not in block and b"\nevent" not in block


def data_of(block: bytes) -> bytes:
    """The block's data; several data lines are joined."""
    if block.startswith(_DATA) and b"\n" not in block:
        return block[len(_DATA) :].lstrip(b" ")
    lines = (line for line in block.split(b"\n") if line.startswith(_DATA))
    return b"\n".join(line[len(_DATA) :].removeprefix(b" ") for line in lines)


def frame(data: bytes) -> bytes:
    """One event."""
    return b"data: " + data + b"\n\n"
