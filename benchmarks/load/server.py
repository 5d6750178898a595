"""A server as a process to measure: its life, its processes, what they use."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TypeVar

import psutil

_ServerType = TypeVar("_ServerType", bound="AnyServer")

_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.005


class ServerFailedError(Exception):
    """The server ended, or did not become ready; says what it wrote last."""


class AnyServer:
    """Any server on a free port of this machine. A context manager that leaves nothing behind."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts it; `{port}` in the command is the port."""
        self.port = free_port()
        self.started = time.perf_counter()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            [part.format(port=self.port) for part in command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_process(self) -> psutil.Process:
        """The process that was started; it answers HTTP."""
        return psutil.Process(self._process.pid)

    def wait_until_listening(self, seconds: float = 60.0) -> float:
        """When the port first accepted a connection (`time.perf_counter`)."""
        self._wait(self._accepts, seconds, "listen")
        return time.perf_counter()

    def wait_for(self, path: str, seconds: float = 600.0) -> float:
        """When `path` first answered 200 (`time.perf_counter`)."""
        self._wait(lambda: self._answers(path), seconds, f"answer {path} with 200")
        return time.perf_counter()

    def log_lines(self) -> list[bytes]:
        """What it has written so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).splitlines()

    def __enter__(self: _ServerType) -> _ServerType:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.perf_counter() + seconds
        while not condition():
            if self._process.poll() is not None:
                raise ServerFailedError(f"the server has ended:\n{self._last_words()}")
            if time.perf_counter() > deadline:
                raise ServerFailedError(
                    f"the server did not {what} in {seconds:g} s:\n{self._last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 5.0).close()
        except ConnectionError:
            return False
        return True

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except ConnectionError:
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")


class Server(AnyServer):
    """`tgwui-k8s serve`."""

    def __init__(self, flags: Sequence[str]) -> None:
        """Starts it; `flags` are those of `serve`."""
        arguments = ("serve", "--port", "{port}", "--no-webui", *flags)
        environment = {n: v for n, v in os.environ.items() if not n.startswith("TGWUI_")}
        super().__init__([sys.executable, "-m", "tgwui_k8s", *arguments], environment)

    @property
    def engine_process(self) -> psutil.Process:
        """The process that computes."""
        for child in self.api_process.children(recursive=True):
            if any("engine.process" in part for part in child.cmdline()):
                return child
        raise ServerFailedError("the server has no engine process")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
