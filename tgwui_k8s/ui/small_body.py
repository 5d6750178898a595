"""Bodies that are read whole, and are therefore small."""

from __future__ import annotations

from starlette.requests import Request


async def small_body(request: Request, max_bytes: int) -> bytes | None:
    """All of it; None for more than `max_bytes`. Raises `ClientDisconnect`."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            return None
    return content
