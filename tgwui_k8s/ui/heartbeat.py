"""A page that lives says so: a byte a second through a pipe, from its event loop.

The first byte says that the page answers. Where none comes any more it hangs, though its process
is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress

BEAT_SECONDS = 1.0

_READ_BYTES = 1024


async def beat(descriptor: int) -> None:
    """The page's side: beat until nobody reads any more, or until cancellation."""
    os.set_blocking(descriptor, False)
    with suppress(BrokenPipeError):
        while True:
            with suppress(BlockingIOError):  # a reader that is behind has beats enough
                os.write(descriptor, b".")
            await asyncio.sleep(BEAT_SECONDS)


async def beats(
    descriptor: int, *, first_within: float, then_within: float
) -> AsyncGenerator[None, None]:
    """The supervisor's side: the beats that come, until the page has ended. Takes `descriptor`.

    Raises `asyncio.TimeoutError` where none comes within so many seconds.
    """
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", 0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        patience = first_within
        while await asyncio.wait_for(reader.read(_READ_BYTES), patience):
            patience = then_within
            yield
    finally:
        transport.close()
