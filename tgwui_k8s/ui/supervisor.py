"""The page's process as the API process sees it: started late, watched, started again.

The API never waits for the page. Its port is bound at once, so that nobody is refused, also while
a page that died or hung is started again (`waiting_room`); the process itself, whose imports take
seconds of CPU time, starts when the engine is ready, or when loading takes long.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import aclosing, suppress

import msgspec

from tgwui_k8s.config import Settings
from tgwui_k8s.errors import BindError
from tgwui_k8s.listener import address_of, bind, local_address_of
from tgwui_k8s.observability.log import event
from tgwui_k8s.observability.relay import relay_lines
from tgwui_k8s.ui.heartbeat import beats
from tgwui_k8s.ui.page_settings import page_settings
from tgwui_k8s.ui.waiting_room import WaitingRoom

PAGE_COMMAND = (sys.executable, "-m", "tgwui_k8s.ui.process")

LOADING_PATIENCE_SECONDS = 15.0
"""A model that loads for longer is worth watching in the page."""

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0
"""A page that dies is started again after a delay that doubles, up to the longest."""

LONGEST_START_SECONDS, LONGEST_SILENCE_SECONDS = 600.0, 60.0
"""A page that does not get ready, or does not beat, is killed. Both are long: it runs at a low
priority, and on a busy machine it only is slow."""

_STOP_SECONDS = 2.0
"""For the last bytes of a stream to reach the browser."""

logger = logging.getLogger(__name__)


class PageSupervisor:
    """Runs the page beside the API, where it is wanted and its libraries are there."""

    def __init__(
        self, settings: Settings, api: socket.socket, command: Sequence[str] = PAGE_COMMAND
    ) -> None:
        """`api` is the listening socket of the API."""
        self._settings = settings
        self._api_url = local_address_of(api)
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The process id of the running page."""
        return None if self._process is None else self._process.pid

    async def run(self, loading: asyncio.Future[None]) -> None:
        """Keep the page running until `close` or cancellation; `loading` is the model's."""
        listener = self._listener()
        if listener is None:
            return
        with listener:
            room = WaitingRoom(listener)
            await room.open()
            try:
                await asyncio.wait((loading,), timeout=LOADING_PATIENCE_SECONDS)
                if not _has_failed(loading):
                    await self._keep_running(room)
            finally:
                room.close()

    async def close(self) -> None:
        """End the page: its stdin ends, and it does after its last bytes."""
        self._closing = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await _wait_a_little_for(self._process)

    def _listener(self) -> socket.socket | None:
        """The page's port; None where there will be no page, said in one line."""
        webui = self._settings.webui
        if not webui.webui:
            return None
        if importlib.util.find_spec("gradio") is None:
            logger.info("no web page: the extra 'ui' is not installed (pip install '.[ui]')")
            return None
        try:
            return bind(self._settings.server.host, webui.webui_port, port_flag="--webui-port")
        except BindError as error:
            logger.error("no web page: %s", error)
            return None

    async def _keep_running(self, room: WaitingRoom) -> None:
        clock = asyncio.get_running_loop().time
        delay = FIRST_DELAY_SECONDS
        while True:
            started = clock()
            code = await self._run_once(room)
            if self._closing:
                return
            await room.open()
            if clock() - started > LONGEST_DELAY_SECONDS:
                delay = FIRST_DELAY_SECONDS
            facts = event(exit_code=code)
            logger.error("the web page ended: starting it again in %.0f s", delay, extra=facts)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    async def _run_once(self, room: WaitingRoom) -> int | None:
        """Start a process and wait for its end; returns its exit code."""
        heart, beating = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(room.listener.fileno(), beating),
                # Ctrl-C on the terminal is for us to answer, not for it.
                start_new_session=True,
                env=_environment(),
            )
        except OSError as error:
            logger.error("cannot start the web page: %s", error)
            os.close(heart)
            return None
        finally:
            os.close(beating)
        self._process = process
        watching = asyncio.create_task(self._watch(process, heart, room))
        try:
            await self._talk(process, room.listener, beating)
            return process.returncode
        finally:
            watching.cancel()
            await _end(process)
            self._process = None

    async def _talk(
        self, process: asyncio.subprocess.Process, listener: socket.socket, beating: int
    ) -> None:
        """Tell the process its settings, and relay what it says until it has ended.

        Its stdin stays open: the end of it tells the page that we are gone.
        """
        told = page_settings(
            self._settings,
            api_url=self._api_url,
            listener=listener.fileno(),
            heartbeat=beating,
        )
        if process.stdin is not None:
            with suppress(ConnectionError):
                process.stdin.write(msgspec.json.encode(told) + b"\n")
                await process.stdin.drain()
        outputs = (stream for stream in (process.stdout, process.stderr) if stream is not None)
        await asyncio.gather(*(relay_lines(stream, "page") for stream in outputs), process.wait())

    async def _watch(
        self, process: asyncio.subprocess.Process, heart: int, room: WaitingRoom
    ) -> None:
        """Leave the port to the page when it beats; kill one that does not. Returns at its end."""
        patience = {"first_within": LONGEST_START_SECONDS, "then_within": LONGEST_SILENCE_SECONDS}
        try:
            async with aclosing(beats(heart, **patience)) as all_beats:
                async for _ in all_beats:
                    if room.is_open:
                        room.close()
                        self._announce(room.listener)
        except asyncio.TimeoutError:
            logger.error("the web page hangs: ending it")
            with suppress(ProcessLookupError):
                process.kill()

    def _announce(self, listener: socket.socket) -> None:
        address = address_of(listener) + self._settings.webui.webui_root_path
        logger.info("the web page is at %s", address, extra=event(page_url=address))


def _has_failed(loading: asyncio.Future[None]) -> bool:
    """True where the server is about to give up."""
    return loading.done() and (loading.cancelled() or loading.exception() is not None)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it where it still runs; one that is stuck in the kernel is given up."""
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await _wait_a_little_for(process)


async def _wait_a_little_for(process: asyncio.subprocess.Process) -> None:
    # Not `wait_for`, which forgets that it was cancelled when the process ends just then.
    await asyncio.wait((asyncio.ensure_future(process.wait()),), timeout=_STOP_SECONDS)


def _environment() -> dict[str, str]:
    """Ours, without our settings and their keys, and with nothing that asks other machines."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TGWUI_")}
    return {
        **ours,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
