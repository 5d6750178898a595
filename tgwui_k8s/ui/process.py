"""The page's process: `python -m tgwui_k8s.ui.process`, started by `supervisor`.

It takes its settings from the first line of stdin and ends when stdin does: whatever becomes of
the API process, no page is left behind. It gives way to the engine's threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

import msgspec
import uvicorn

from tgwui_k8s.config import ObservabilitySettings
from tgwui_k8s.observability.log import setup_logging
from tgwui_k8s.ui.heartbeat import beat
from tgwui_k8s.ui.page_settings import PageSettings
from tgwui_k8s.uvicorn_server import limited_config

_NICENESS = 10
_FAREWELL_SECONDS = 1
_STUCK_SECONDS = 15
"""A page that takes longer to end hangs; on a busy machine the farewell alone takes seconds."""


def main(stdin: BinaryIO) -> int:
    """Serve the page until `stdin` ends; returns the process's exit code."""
    os.nice(_NICENESS)
    line = stdin.readline()
    if not line.endswith(b"\n"):
        return 0  # whoever started us is gone
    settings = msgspec.json.decode(line, type=PageSettings)
    setup_logging(ObservabilitySettings(log_level=settings.log_level, log_format="json"))
    # uvicorn's own words about an orderly life say nothing new.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    server = _make_server(settings)
    _when_it_ends(stdin, lambda: setattr(server, "should_exit", True))
    listener = socket.socket(fileno=settings.listener)
    listener.set_inheritable(False)
    asyncio.run(server.serve(sockets=[listener]))
    return 0


class _Server(uvicorn.Server):
    """uvicorn, and a heartbeat from the moment it accepts connections."""

    def __init__(self, config: uvicorn.Config, heartbeat: int) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat
        self._beating: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._beating = asyncio.create_task(beat(self._heartbeat))


def _make_server(settings: PageSettings) -> uvicorn.Server:
    from tgwui_k8s.ui.app import create_page

    config = limited_config(
        create_page(settings), farewell_seconds=_FAREWELL_SECONDS, lifespan="on"
    )
    return _Server(config, settings.heartbeat)


def _when_it_ends(stdin: BinaryIO, act: Callable[[], None]) -> None:
    def wait() -> None:
        stdin.read()
        act()
        # An event loop that hangs must not keep the process: nobody else would end it.
        threading.Event().wait(_STUCK_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
