"""A pod, and the part of the kubelet that gives birth and death to it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from tests.helpers.cluster.network import Namespace
from tests.helpers.cluster.numbers import Numbers
from tests.helpers.server_process import PYTHON

PORT = 5000
_PROBE_TIMEOUT_SECONDS = 5.0


@dataclass
class Pod:
    """`on_change` is called when it becomes ready, or is so no more."""

    name: str
    node: str
    version: str
    namespace: Namespace
    numbers: Numbers
    flags: tuple[str, ...]
    on_change: Callable[[], None]
    is_ready: bool = False
    is_available: bool = False
    """Ready for `minReadySeconds`."""
    is_terminating: bool = False
    was_killed: bool = False
    """Its grace was over and it was still there."""
    exit_code: int | None = None
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    _probing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where its server listens."""
        return f"http://{self.namespace.address}:{PORT}"

    @property
    def has_died(self) -> bool:
        """Its server has ended although nobody told it to."""
        ended = self._process is not None and self._process.returncode is not None
        return ended and not self.is_terminating

    async def start(self) -> None:
        """Start the server; probes go on in the background."""
        limits = {
            "--drain-timeout": self.numbers.drain_timeout,
            "--max-request-seconds": self.numbers.longest_answer,
        }
        self._process = await asyncio.create_subprocess_exec(
            *self.namespace.prefix,
            *(PYTHON, "-m", "tgwui_k8s", "serve", "--loader", "fake", "--model", "fake"),
            "--no-webui",
            *("--host", self.namespace.address, "--port", str(PORT), "--no-webui"),
            *(word for flag, value in limits.items() for word in (flag, str(value))),
            *self.flags,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._probing = asyncio.create_task(self._probe())

    async def delete(self, at_signal: Callable[[Pod], None]) -> None:
        """As the kubelet does: leave the endpoints, preStop, SIGTERM, and SIGKILL when time is up.

        `at_signal` is called right before SIGTERM. Returns when the process has ended.
        """
        assert self._process is not None
        self.is_terminating = True
        self.on_change()
        deadline = asyncio.get_running_loop().time() + self.numbers.grace
        await asyncio.sleep(self.numbers.pre_stop)
        await self._stop_probing()
        at_signal(self)
        self._process.send_signal(signal.SIGTERM)
        left = deadline - asyncio.get_running_loop().time()
        try:
            self.exit_code = await asyncio.wait_for(self._process.wait(), max(left, 0.0))
        except asyncio.TimeoutError:
            self.was_killed = True
            await self.kill()

    async def kill(self) -> None:
        """At once; for the end of a test, too. Its engine dies with it."""
        await self._stop_probing()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self.exit_code = await self._process.wait()

    async def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing

    async def _probe(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            is_started, num_failures = False, 0
            while not self.has_died:
                if not is_started:
                    is_started = await self._answers(session, "/health/startup")
                elif await self._answers(session, "/health/ready"):
                    num_failures = 0
                    self._set_ready(True)
                else:
                    num_failures += 1
                    if num_failures >= self.numbers.readiness_failures:
                        self._set_ready(False)
                await asyncio.sleep(self.numbers.readiness_period)
        self.on_change()

    async def _answers(self, session: aiohttp.ClientSession, path: str) -> bool:
        try:
            async with session.get(self.url + path) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return False

    def _set_ready(self, is_ready: bool) -> None:
        if is_ready == self.is_ready:
            return
        self.is_ready = is_ready
        self.is_available = False
        if is_ready:
            loop = asyncio.get_running_loop()
            loop.call_later(self.numbers.min_ready, self._set_available)
        self.on_change()

    def _set_available(self) -> None:
        self.is_available = self.is_ready
        self.on_change()
