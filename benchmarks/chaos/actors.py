"""Engines and gateways as processes that can be killed, frozen, drained and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tgwui_k8s.gateway.failures import ExchangeError
from tgwui_k8s.gateway.http_client import HttpClient, parse_origin, request_bytes

_READY_SECONDS = 120.0


class Actor:
    """A server process on a port of its own, for as many lives as it takes."""

    def __init__(self, name: str, arguments: tuple[str, ...], log_dir: Path) -> None:
        """`arguments` follow `tgwui-k8s`; `{port}` in them is the port."""
        self.name = name
        self.port = _free_port()
        self.is_wanted = True
        """False while a Service would not send anybody here: it is being stopped."""
        self._arguments = tuple(part.format(port=self.port) for part in arguments)
        self._log = (log_dir / f"{name}.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

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
        environment = {n: v for n, v in os.environ.items() if not n.startswith("TGWUI_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tgwui_k8s", *self._arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
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
            origin, request_bytes("GET", path, origin), connect_seconds=2, fresh=True
        )
        try:
            await asyncio.wait_for(exchange.head(), 5)
            body = await asyncio.wait_for(exchange.read_all(1 << 24), 5)
            return body if exchange.status == 200 else None
        finally:
            exchange.abort()
    except (ExchangeError, asyncio.TimeoutError):
        return None


def engine(name: str, tokens_per_second: float, log_dir: Path) -> Actor:
    """An engine with the fake loader."""
    arguments = (
        *("serve", "--loader", "fake", "--model", "fake", "--port", "{port}", "--no-webui"),
        *("--loader-option", f"tokens_per_second={tokens_per_second}", "--drain-timeout", "3"),
        *("--max-num-seqs", "256"),
    )
    return Actor(name, arguments, log_dir)


def gateway(name: str, endpoint_file: Path, log_dir: Path) -> Actor:
    """A gateway over the engines in a file."""
    arguments = (
        *("gateway", "--gateway-port", "{port}", "--endpoint-file", str(endpoint_file)),
        *("--endpoint-silent-seconds", "3", "--drain-timeout", "120"),
    )
    return Actor(name, arguments, log_dir)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def scratch() -> Path:
    """A folder for logs and the endpoint file."""
    return Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
