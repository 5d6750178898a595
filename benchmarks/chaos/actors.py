"""Servers as processes that can be killed, frozen, drained and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tgwui_k8s.gateway.failures import ExchangeError
from tgwui_k8s.gateway.http_client import HttpClient, parse_origin, request_bytes

_READY_SECONDS = 300.0

TGWUI = (sys.executable, "-m", "tgwui_k8s")


class Actor:
    """A server process at an address, for as many lives as it takes."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        command: Sequence[str],
        log_dir: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to this process's, which loses its settings of tgwui-k8s."""
        self.name = name
        self.host = host
        self.url = f"http://{host}:{port}"
        self.is_wanted = True
        """False while a Service would not send anybody here: it is being stopped."""
        self._command = list(command)
        self._environment = environment or {}
        self._log = (log_dir / f"{name}.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        assert self._process is not None
        return float(psutil.Process(self._process.pid).memory_info().rss) / 1e6

    async def start(self, client: HttpClient) -> None:
        """A new life; returns when it is ready."""
        self._spawn()
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while await fetch(client, self.url, "/health/ready") is None:
            assert self.is_running, f"{self.name} ended: see {self._log.name}"
            assert asyncio.get_running_loop().time() < deadline, f"{self.name} is not ready"
            await asyncio.sleep(0.1)
        self.is_wanted = True

    def _spawn(self) -> None:
        mine = {name: text for name, text in os.environ.items() if not name.startswith("TGWUI_")}
        self._process = subprocess.Popen(
            self._command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**mine, **self._environment},
        )

    def kill(self) -> None:
        """No farewell: `kill -9`, of its engine process, too."""
        children = self._children()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def kill_engine(self) -> None:
        """Only the process that computes: the API process tells its clients."""
        for child in self._children():
            child.kill()

    def freeze(self) -> None:
        """Connections stay open, nothing moves."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self._signal_all(signal.SIGCONT)

    async def drain(self) -> int:
        """SIGTERM, and wait; the exit code."""
        assert self._process is not None
        self.is_wanted = False
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.get_running_loop().run_in_executor(None, self._process.wait, 300)

    def stop(self) -> None:
        """The end of all lives."""
        if self.is_running:
            self.thaw()
            self.kill()
        self._log.close()

    def _children(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _signal_all(self, number: int) -> None:
        assert self._process is not None
        for child in self._children():
            child.send_signal(number)
        self._process.send_signal(number)


async def fetch(client: HttpClient, url: str, path: str) -> bytes | None:
    """The body of a 200, else None."""
    origin = parse_origin(url)
    try:
        exchange = await client.start(
            origin, request_bytes("GET", path, origin), connect_seconds=5, fresh=True
        )
        try:
            await asyncio.wait_for(exchange.head(), 10)
            body = await asyncio.wait_for(exchange.read_all(1 << 24), 10)
            return body if exchange.status == 200 else None
        finally:
            exchange.abort()
    except (ExchangeError, asyncio.TimeoutError):
        return None


def free_port() -> int:
    """A port that nobody listens on, at any address."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        return int(listener.getsockname()[1])
