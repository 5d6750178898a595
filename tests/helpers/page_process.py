"""The web page: as `serve` starts it, as a process over any API, and behind a load balancer."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import httpx
import msgspec
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.helpers.server_process import ServerProcess, wait_until
from tgwui_k8s.listener import address_of, bind
from tgwui_k8s.ui.page_settings import PageSettings

PAGE_MODULE = "tgwui_k8s.ui.process"
START_SECONDS = 300.0
"""Generous: seconds of CPU time on a machine that may be busy."""


class PageServer(ServerProcess):
    """`tgwui-k8s serve` with its page on a free port."""

    def __init__(
        self,
        *flags: str,
        pod: str = "pod-a",
        variables: Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        """`pod` is the name that the page shows."""
        environment = {"HOSTNAME": pod, "OMP_NUM_THREADS": "1", **(variables or {})}
        super().__init__(
            *("--webui", "--webui-port", "0"),
            *flags,
            environment=environment,
            **options,  # type: ignore[arg-type]
        )

    @property
    def page_url(self) -> str:
        """Where the page is; waits until it serves."""
        wait_until(self._has_page, seconds=START_SECONDS)
        return str(self.wait_for_event("page_url")["page_url"])

    @property
    def page(self) -> psutil.Process:
        """The page's process."""
        (page,) = self._pages()
        return page

    def _pages(self) -> list[psutil.Process]:
        return [child for child in self.children() if PAGE_MODULE in child.cmdline()]

    def _has_page(self) -> bool:
        with contextlib.suppress(psutil.Error):
            for page in self._pages():
                hurry(page)
        return any(b'"page_url"' in line for line in self.lines)


def hurry(page: psutil.Process) -> None:
    """A page gives way to its engine; here it would give way to all other tests, too."""
    with contextlib.suppress(psutil.Error):
        page.nice(os.getpriority(os.PRIO_PROCESS, 0))


@contextlib.contextmanager
def page_over(api_url: str, **settings: object) -> Iterator[str]:
    """The page's own process over an API; gives the page's URL."""
    heart, beating = os.pipe()
    with bind("127.0.0.1", 0) as listener, os.fdopen(heart, "rb") as beats:
        told = PageSettings(
            api_url=api_url,
            listener=listener.fileno(),
            heartbeat=beating,
            **settings,  # type: ignore[arg-type]
        )
        process = subprocess.Popen(
            [sys.executable, "-m", PAGE_MODULE],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(), beating),
        )
        os.close(beating)
        assert process.stdin is not None
        with process:
            process.stdin.write(msgspec.json.encode(told) + b"\n")
            process.stdin.flush()
            wait_until(lambda: _beats(beats, process), seconds=START_SECONDS)
            try:
                yield address_of(listener)
            finally:
                process.stdin.close()
                assert process.wait(30) == 0


def _beats(beats: BinaryIO, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    hurry(psutil.Process(process.pid))
    return bool(select.select([beats], [], [], 0.1)[0])


@dataclass
class RoundRobin:
    """A load balancer that sends each request to the next replica, and strips a prefix."""

    replicas: Sequence[str]
    prefix: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Prefixes that are stripped, and the URL of what is below each."""
    served: list[tuple[str, str]] = field(default_factory=list)
    """Replica and path of every request."""

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(range(len(self.replicas)))
        self._client = httpx.AsyncClient(timeout=None, trust_env=False)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Run it; gives the URL of what is behind it."""
        app = Starlette(routes=[Route("/{path:path}", self._forward, methods=["GET", "POST"])])
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}{self.prefix}"
        finally:
            server.should_exit = True
            thread.join(10)

    async def _forward(self, request: Request) -> Response:
        path = request.url.path.removeprefix(self.prefix)
        body = await request.body()
        replicas: Iterable[str] = (self.replicas[next(self._turns)] for _ in self.replicas)
        for below, url in self.elsewhere.items():
            if path.startswith(f"{below}/"):
                path, replicas = path.removeprefix(below), [url]
        for replica in replicas:
            asked = self._client.build_request(
                request.method,
                httpx.URL(replica + path, query=request.url.query.encode()),
                headers=request.headers.raw,
                content=body,
            )
            try:
                answer = await self._client.send(asked, stream=True)
            except httpx.ConnectError:
                continue  # a pod that is gone gets no requests
            self.served.append((replica, path))
            response = StreamingResponse(_body(answer), answer.status_code)
            response.raw_headers = [
                (name, value) for name, value in answer.headers.raw if name != b"transfer-encoding"
            ]
            return response
        return Response(status_code=502)


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.TransportError:
        return
    finally:
        await answer.aclose()
