"""Where a checkout's server runs for a question: models, a port, a user who may write little."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgwui_k8s.upstream.stub_server import LOAD_SECONDS, STEP_SECONDS, write_model

KEY = "sk-a-key-that-no-log-may-show"
MODEL = "stub.gguf"
BROKEN_MODEL = "broken.gguf"

_NOBODY = 65534
_START_SECONDS = 300.0
"""Upstream of 2023 imports for minutes where the machine is busy."""
_REQUEST_SECONDS = 30.0
"""Between two bytes of an answer."""
_ANSWER_SECONDS = 180.0
"""For the whole of an answer, and for an exit: a stream of nothing but pings has no end."""
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


class MissingDependencyError(Exception):
    """Upstream cannot start in this environment: the name of a package."""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    text: str

    def json(self) -> Any:
        """The body; None where it is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    def error_message(self) -> str:
        """OpenAI's error message; empty where the body is something else."""
        body = self.json()
        error = body.get("error") if isinstance(body, dict) else None
        return str(error.get("message", "")) if isinstance(error, dict) else ""


class Server:
    """One run of upstream's server.py."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def request(
        self, method: str, path: str, body: Any = None, *, key: str | None = KEY, host: str = ""
    ) -> Reply:
        """One request on a connection of its own. Raises OSError where nobody listens."""
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if host:
            headers["host"] = host
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return Reply(response.status, _read(response))

    def begin_stream(self, prompt: str) -> Callable[[], str]:
        """POST /v1/completions with its answer begun; call the result for all of its text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        body = json.dumps({"prompt": prompt, "stream": True})
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()

        def finish() -> str:
            with contextlib.closing(connection):
                return _read(response)

        return finish

    def complete(self, prompt: str, **fields: Any) -> Reply:
        """POST /v1/completions."""
        return self.request("POST", "/v1/completions", {"prompt": prompt, **fields})

    def wait(self, path: str, status: int | None = None) -> Reply:
        """Ask until there is an answer, with this status if one is given.

        Raises `MissingDependencyError`, AssertionError where the process ended or time is up.
        """
        deadline = time.monotonic() + _START_SECONDS
        last = "no answer"
        while time.monotonic() < deadline:
            try:
                reply = self.request("GET", path)
                if status in (None, reply.status):
                    return reply
                if reply.status == 404:  # upstream's own answer: this route will never be there
                    raise AssertionError(f"GET {path}: 404")
                last = str(reply.status)
            except OSError as error:
                last = str(error)
            if self.process.poll() is not None:
                self._reader.join()
                self._raise_missing()
                raise AssertionError(f"the server ended: {' '.join(self.lines[-3:])[-500:]}")
            time.sleep(0.05)
        raise AssertionError(f"the server never answered GET {path}: {last}")

    def end(self) -> int:
        """SIGTERM and the exit code; killed where it does not end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit()

    def wait_exit(self) -> int:
        """The exit code."""
        try:
            code = self.process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server does not end") from None
        self._reader.join(timeout=5)
        return code

    def _raise_missing(self) -> None:
        for found in map(_MISSING.search, self.lines):
            if found is not None and not found[1].startswith("tgwui_k8s"):
                raise MissingDependencyError(found[1])

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self.process.stdout:
            self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))


class Site:
    """What the runs of one checkout share."""

    def __init__(self, root: Path, python: str) -> None:
        self.root = root.resolve()
        self._python = python
        self._folder = Path(tempfile.mkdtemp(prefix="tgwui-k8s-verify-"))
        self.models = self._folder / "models"
        self.models.mkdir()
        for name in (MODEL, BROKEN_MODEL):
            write_model(self.models / name)
        self.state = self._folder / "state"
        self.state.mkdir(mode=0o777)
        self._folder.chmod(0o755)
        self.state.chmod(0o777)
        self._running: list[Server] = []

    def close(self) -> None:
        """End what still runs, and leave nothing behind."""
        for server in self._running:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def serving(
        self,
        *flags: str,
        load_seconds: float = 0.0,
        step_seconds: float = 0.1,
        port: int = 0,
        page: bool = False,
    ) -> Iterator[Server]:
        """A server with these flags, ended at the end; `page`: with upstream's web page beside."""
        port = port or free_port()
        command = [self._python, "-m", "tgwui_k8s.upstream.stub_server", str(self.root)]
        command += ["--api", "--api-port", str(port), "--api-key", KEY]
        command += [] if page else ["--nowebui"]
        command += ["--model-dir", str(self.models), *flags]
        environment = {
            **os.environ,
            "TGWUI_STATE_DIR": str(self.state),
            "TMPDIR": str(self.state),
            "HOME": "/nonexistent",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            LOAD_SECONDS: str(load_seconds),
            STEP_SECONDS: str(step_seconds),
        }
        user: dict[str, Any] = {}
        if os.geteuid() == 0 and _is_open_to_all(self.root, Path(self._python)):
            user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self._folder,
            **user,
        )
        server = Server(process, port)
        self._running.append(server)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file, and the folders, of checkout and model directory."""
        found = {}
        for folder in (self.root, self.models):
            for path in folder.rglob("*"):
                if not {".git", "__pycache__"} & set(path.parts):
                    facts = path.stat()
                    is_folder = path.is_dir()
                    found[str(path)] = (0, 0) if is_folder else (facts.st_size, facts.st_mtime_ns)
        return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(response: http.client.HTTPResponse) -> str:
    """The body; where the server cut it, what came and a word about it.

    Raises TimeoutError for one that does not end.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    body = b""
    try:
        while part := response.read1():
            body += part
            if time.monotonic() > deadline:
                raise TimeoutError(f"no end of the answer after {_ANSWER_SECONDS:.0f} s")
    except http.client.IncompleteRead:
        is_cut = True
    else:
        is_cut = bool(response.length)  # fewer bytes than announced
    return body.decode("utf-8", "replace") + ("\n(cut)" if is_cut else "")


def _is_open_to_all(*paths: Path) -> bool:
    """Whether another user can come this far."""
    return all(
        parent.stat().st_mode & stat.S_IXOTH for path in paths for parent in path.resolve().parents
    )
