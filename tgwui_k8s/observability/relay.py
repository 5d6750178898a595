"""What a child process writes to stdout and stderr becomes lines of our log."""

from __future__ import annotations

import asyncio

from tgwui_k8s.observability.log import relay_line

_READ_BYTES = 64 * 1024
_MAX_LINE_BYTES = 1024 * 1024


async def relay_lines(stream: asyncio.StreamReader, name: str) -> None:
    """Log every line that comes out of `stream` under the child's `name`, until it ends."""
    rest = b""
    while data := await stream.read(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            relay_line(line, name)
        if len(rest) > _MAX_LINE_BYTES:
            relay_line(rest, name)
            rest = b""
    if rest:
        relay_line(rest, name)
