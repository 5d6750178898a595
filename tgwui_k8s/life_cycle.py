"""Birth and death of the server: load beside serving, drain on a signal, leave in time.

    start ─► port answers ─► model loaded: ready ─► signal: drain ─► stop
                  │                                    │
                  └─ cannot load: exit 3               └─ second signal: stop now

Draining: not ready, new requests are refused, running ones finish. Those that do not within
`--drain-timeout` get an error instead of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import uvloop

from tgwui_k8s.api.state import ServerState
from tgwui_k8s.config import Settings
from tgwui_k8s.daemon_thread import in_daemon_thread
from tgwui_k8s.engine.client import EngineClient
from tgwui_k8s.errors import DrainingError, StartupError, UsageError
from tgwui_k8s.garbage_collection import keep_what_is_there
from tgwui_k8s.model_control import ModelController
from tgwui_k8s.observability.log import event
from tgwui_k8s.observability.metrics import Metrics
from tgwui_k8s.orphans import reap_orphans
from tgwui_k8s.ui.supervisor import PageSupervisor

if TYPE_CHECKING:
    import uvicorn

EXIT_STOPPED, EXIT_FAULT, EXIT_USAGE, EXIT_STARTUP = 0, 1, 2, 3

_FAREWELL_SECONDS = 2.0
"""For errors to reach clients whose requests could not finish, and connections to close."""

_STOP_SECONDS = 3.0
"""Then whatever does not close is left behind; the engine dies with us."""

_POLL_SECONDS = 0.02

logger = logging.getLogger(__name__)


def run_until_stopped(settings: Settings, listener: socket.socket) -> int:
    """Serve on `listener` until a signal comes or the start fails; returns the exit code."""
    return uvloop.run(LifeCycle(settings, listener).run())


class LifeCycle:
    """One run of the server."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._engine = EngineClient(
            watchdog_seconds=settings.engine.watchdog_seconds,
            max_restarts=settings.engine.restart_engine,
            log_level=settings.observability.log_level,
        )
        self._state = ServerState(settings, self._engine, Metrics(settings.observability))
        self._models = ModelController(self._state, self._engine)
        self._state.model_control = self._models
        self._page = PageSupervisor(settings, listener)
        self._told_to_stop = asyncio.Event()
        self._told_to_hurry = asyncio.Event()

    async def run(self) -> int:
        """The whole life; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loading = asyncio.create_task(self._models.start())
        background = (
            asyncio.create_task(reap_orphans(self._own_children)),
            asyncio.create_task(self._state.metrics.watch_event_loop()),
            asyncio.create_task(self._page.run(loading)),
        )
        try:
            # Takes long to import; signals and the engine are answered meanwhile.
            server = await in_daemon_thread(lambda: _make_server(self._state))
            keep_what_is_there()
            serving = asyncio.create_task(server.serve(sockets=[self._listener]))
            code = await self._until_told(loading, serving)
            if code == EXIT_STOPPED:
                await _either(self._drain(), self._told_to_hurry.wait())
            server.should_exit = True
            await _either(
                self._stop(serving, loading),
                self._told_to_hurry.wait(),
                asyncio.sleep(_STOP_SECONDS),
            )
        except UsageError as error:
            logger.error("%s", error)
            code = EXIT_USAGE
        finally:
            await _cancel(loading, *background)
            await self._engine.kill()
        logger.info("stopped", extra=event(exit_code=code))
        return code

    def _own_children(self) -> set[int]:
        return {pid for pid in (self._engine.pid, self._page.pid) if pid is not None}

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._told_to_stop.is_set():
            logger.warning("%s again: exiting now", name)
            self._told_to_hurry.set()
        else:
            logger.info("%s: stopping", name)
            self._told_to_stop.set()

    async def _until_told(self, loading: asyncio.Task[None], serving: asyncio.Task[None]) -> int:
        """Wait for a signal, or for a reason to give up; returns the exit code."""
        told = asyncio.create_task(self._told_to_stop.wait())
        await asyncio.wait((told, loading, serving), return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not told.done() and not serving.done():
            try:
                await loading
            except (StartupError, UsageError) as error:
                logger.error("%s", error)
                return EXIT_USAGE if isinstance(error, UsageError) else EXIT_STARTUP
            except Exception:  # the boundary of the process
                logger.critical("loading the model failed", exc_info=True)
                return EXIT_FAULT
            await asyncio.wait((told, serving), return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            return EXIT_STOPPED
        told.cancel()
        logger.critical("the HTTP server ended by itself")
        return EXIT_FAULT

    async def _drain(self) -> None:
        """Take nothing new; let running requests finish, or end them when time is up."""
        seconds = self._settings.server.drain_timeout
        self._state.draining = True
        num_requests = self._state.num_active_requests
        facts = event(num_requests=num_requests, drain_timeout_s=seconds)
        logger.info("draining", extra=facts)
        if not await self._is_idle_within(seconds):
            logger.warning(
                "drain time is up: %d requests are ended", self._state.num_active_requests
            )
            self._engine.abort_all(
                DrainingError("The server is shutting down and could not finish this request.")
            )
            await self._is_idle_within(_FAREWELL_SECONDS)

    async def _is_idle_within(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._state.num_active_requests:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def _stop(self, serving: asyncio.Task[None], loading: asyncio.Task[None]) -> None:
        """Close connections and stop the engine and the page, all within two seconds or so."""
        await _cancel(loading)
        await asyncio.gather(
            serving, self._engine.close(), self._page.close(), return_exceptions=True
        )


def _make_server(state: ServerState) -> uvicorn.Server:
    from tgwui_k8s.http_server import make_server

    return make_server(state, farewell_seconds=_FAREWELL_SECONDS)


async def _either(*awaitables: Awaitable[object]) -> None:
    """Return when one of them has ended; the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _cancel(*tasks)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
