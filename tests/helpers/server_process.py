"""`tgwui-k8s serve` as a process of its own, on the fake loader and a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

PYTHON = os.environ.get("TEST_SERVER_PYTHON", sys.executable)
"""Another interpreter than ours where the tests run in an environment of their own."""

TIMEOUT_SECONDS = 30.0
"""Generous: nothing here measures time."""


class ServerProcess:
    """A server, what it writes, and how to talk to it. A context manager that leaves nothing."""

    def __init__(
        self,
        *flags: str,
        options: Mapping[str, object] | None = None,
        prefix: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> None:
        """`options` are the fake loader's, `prefix` a command to run the server under."""
        command = [*prefix, *self.command_line(*flags, options=options)]
        self.lines: list[bytes] = []
        self.errors = b""
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment() | dict(environment or {}),
            **popen,
        )
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.http = httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False)

    @staticmethod
    def command_line(*flags: str, options: Mapping[str, object] | None = None) -> list[str]:
        """The command that serves the fake model on a free port."""
        pairs = [f"{name}={value}" for name, value in (options or {}).items()]
        return [
            *(PYTHON, "-m", "tgwui_k8s", "serve"),
            *("--loader", "fake", "--model", "fake", "--port", "0", "--no-webui"),
            *(part for pair in pairs for part in ("--loader-option", pair)),
            *flags,
        ]

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            for child in self.children():
                child.kill()
            self.process.kill()
        self.wait()

    # -- talking to it ------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        return str(self.wait_for_event("url")["url"])

    def get(self, path: str, **options: Any) -> httpx.Response:
        """A GET request."""
        return self.http.get(self.url + path, **options)

    def complete(self, prompt: str = "Hello", **fields: Any) -> httpx.Response:
        """A greedy completion."""
        return self.http.post(self.url + "/v1/completions", json=completion(prompt, **fields))

    @contextmanager
    def stream(self, prompt: str = "Hello", **fields: Any) -> Iterator[Iterator[str]]:
        """The `data:` lines of a streamed completion."""
        body = completion(prompt, stream=True, **fields)
        with (
            httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as client,
            client.stream("POST", self.url + "/v1/completions", json=body) as response,
        ):
            assert response.status_code == 200
            lines = response.iter_lines()
            yield (line.removeprefix("data: ") for line in lines if line.startswith("data: "))

    def wait_until_ready(self) -> ServerProcess:
        """Wait for `/health/ready`."""
        wait_until(lambda: self.get("/health/ready").status_code == 200)
        return self

    # -- life and death -----------------------------------------------------------------------

    def children(self) -> list[psutil.Process]:
        """Everything it has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @property
    def engine(self) -> psutil.Process:
        """Its engine process; waits until there is one."""

        def engines() -> list[psutil.Process]:
            return [p for p in self.children() if "tgwui_k8s.engine.process" in p.cmdline()]

        wait_until(engines)
        return engines()[0]

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; its exit code. Everything it wrote is in `lines` then."""
        code = self.process.wait(TIMEOUT_SECONDS)
        for reader in self._readers:
            reader.join(TIMEOUT_SECONDS)
        return code

    # -- what it wrote ------------------------------------------------------------------------

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every line of stdout; fails for one that is not a JSON object."""
        entries = [json.loads(line) for line in list(self.lines)]
        assert all(isinstance(entry, dict) for entry in entries)
        return entries

    def wait_for_event(self, field: str) -> dict[str, Any]:
        """The first log line with this field."""
        found: list[dict[str, Any]] = []

        def search() -> bool:
            found[:] = [entry for entry in self.log if field in entry]
            assert found or self.process.poll() is None, f"it has ended: {self.lines}"
            return bool(found)

        wait_until(search)
        return found[0]

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.errors = stream.read()


def completion(prompt: str, **fields: Any) -> dict[str, Any]:
    """The body of a greedy completion."""
    return {"prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}


def wait_until(condition: Callable[[], object], *, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait for something that must come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """Ours without settings and home: a server needs neither."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TGWUI_") and name != "HOME"
    }
