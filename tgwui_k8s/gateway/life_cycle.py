"""Birth and death of the gateway: serve, drain on a signal, leave in time.

Draining: not ready, new calls are refused, those under way finish. Those that do not within
`--drain-timeout` get an error instead of the rest; a gateway in front of this one goes on with
their streams elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

from tgwui_k8s.config import Settings
from tgwui_k8s.garbage_collection import collect_seldom, keep_what_is_there
from tgwui_k8s.gateway.gateway import Gateway
from tgwui_k8s.gateway.http_server import make_server, with_cors
from tgwui_k8s.observability.log import event

EXIT_STOPPED, EXIT_FAULT = 0, 1

_FAREWELL_SECONDS = 2.0
"""For errors to reach clients whose calls could not finish, and connections to close."""

_STOP_SECONDS = 3.0
_POLL_SECONDS = 0.02

logger = logging.getLogger(__name__)


class LifeCycle:
    """One run of the gateway."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._told_to_stop = asyncio.Event()
        self._told_to_hurry = asyncio.Event()

    async def run(self) -> int:
        """The whole life; returns the exit code. Raises `UsageError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        gateway = Gateway(self._settings)
        background = asyncio.ensure_future(gateway.run_background())
        app = with_cors(gateway.app, self._settings.server.cors_origin)
        server = make_server(app, farewell_seconds=_FAREWELL_SECONDS)
        serving = asyncio.ensure_future(server.serve(sockets=[self._listener]))
        collect_seldom()
        keep_what_is_there()
        told = asyncio.ensure_future(self._told_to_stop.wait())
        await asyncio.wait((told, serving, background), return_when=asyncio.FIRST_COMPLETED)
        code = EXIT_STOPPED if told.done() else EXIT_FAULT
        if code == EXIT_FAULT:
            ended = serving if serving.done() else background
            logger.critical("the gateway ended by itself", exc_info=ended.exception())
        else:
            await self._drain(gateway)
        server.should_exit = True
        await asyncio.wait((serving,), timeout=_STOP_SECONDS)
        for task in (told, serving, background):
            task.cancel()
        await asyncio.gather(told, serving, background, return_exceptions=True)
        logger.info("stopped", extra=event(exit_code=code))
        return code

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._told_to_stop.is_set():
            logger.warning("%s again: exiting now", name)
            self._told_to_hurry.set()
        else:
            logger.info("%s: stopping", name)
            self._told_to_stop.set()

    async def _drain(self, gateway: Gateway) -> None:
        """Take nothing new; let calls finish, or end them when time is up."""
        app, seconds = gateway.app, self._settings.server.drain_timeout
        app.is_draining = True
        facts = event(num_requests=app.num_calls, drain_timeout_s=seconds)
        logger.info("draining", extra=facts)
        if not await self._is_idle_within(gateway, seconds):
            logger.warning("drain time is up: %d requests are ended", app.num_calls)
            app.end_calls()
            await self._is_idle_within(gateway, _FAREWELL_SECONDS)

    async def _is_idle_within(self, gateway: Gateway, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while gateway.app.num_calls:
            if asyncio.get_running_loop().time() >= deadline or self._told_to_hurry.is_set():
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True
