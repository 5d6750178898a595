"""Server-sent events out of bytes that arrive in pieces of any size."""

from __future__ import annotations

DONE = b"[DONE]"
"""What OpenAI's servers send last."""


class EventSplitter:
    """Feed what the socket gives; get the `data` of every event that is complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`; comments and events without data are left out."""
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            # A carriage return at the very end stays, and meets its line feed the next time.
            buffer = buffer.replace(b"\r\n", b"\n")
        *blocks, self._rest = buffer.split(b"\n\n")
        return [payload for block in blocks if (payload := _payload(block)) is not None]


def _payload(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:] for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines) if lines else None
