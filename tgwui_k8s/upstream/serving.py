"""Hooks for the server's life: port first, upstream's application on it, drain on SIGTERM.

In both of upstream's modes uvicorn runs in a thread of its own, so that the main thread keeps the
signals: with `--nowebui` it waits here, with the web page it stays in upstream's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, ModuleType
from typing import Any

from tgwui_k8s.upstream.front import Application, Front
from tgwui_k8s.upstream.service import Service, drain_seconds, service_of
from tgwui_k8s.upstream.starting import PortTaken, StartServer, addresses, bind

_ATTRIBUTE = "tgwui_k8s_start"
_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 5.0
_END = object()

MAX_STREAMS = 256
"""How many may wait for upstream's lock, where upstream itself has let one in."""

logger = logging.getLogger("tgwui_k8s")


class Start:
    """What `begin` leaves for `run`."""

    def __init__(self, server: StartServer) -> None:
        self.server = server
        self.uvicorn_server: Any = None


def begin(shared: ModuleType) -> None:
    """First thing in the main block: bind the API's port, answer probes on it, own SIGTERM.

    Does nothing without `--api`. Ends the process with code 3 where the port is taken.
    """
    args: Any = shared.args
    wants_api = args.api or args.public_api or "openai" in (args.extensions or ())
    if wants_api:
        _own_sigterm(service_of(shared), _open(shared))


def run(shared: ModuleType, uvicorn: Any, app: Application, **options: Any) -> None:
    """Instead of `uvicorn.run`: serve on the sockets that are already bound. Returns at the end.

    host and port of `options` are those of `begin`; the rest is uvicorn's.
    """
    # A settings file may have asked for the API after `begin`.
    start: Start = getattr(shared, _ATTRIBUTE, None) or _open(shared)
    service = service_of(shared)
    options.pop("host", None)
    options.pop("port", None)
    config = uvicorn.Config(Front(app, service), **options)
    start.uvicorn_server = uvicorn.Server(config)
    sockets = start.server.hand_over()
    service.started()
    thread = threading.Thread(
        target=start.uvicorn_server.run, args=(sockets,), name="api", daemon=True
    )
    thread.start()
    # A plain join() would keep the main thread from running signal handlers on some platforms.
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
    if not service.is_draining:
        logger.error("the API server ended by itself")
        _exit(1)
    if threading.current_thread() is threading.main_thread():
        signal.pause()  # the drain ends the process


def _open(shared: ModuleType) -> Start:
    try:
        sockets = bind(addresses(shared.args, os.environ))
    except PortTaken as error:
        logger.error("%s", error.message)
        raise
    start = Start(StartServer(sockets, service_of(shared)))
    setattr(shared, _ATTRIBUTE, start)
    return start


def fixed_port(find: Callable[[int], int]) -> Callable[[int], int]:
    """Decorator of upstream's search for a free port: the configured one, or none at all."""

    @functools.wraps(find)
    def same(starting_port: int) -> int:
        return starting_port

    return same


def off_loop(
    handler: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Decorator of an `async def` route that computes in its body: run it in a thread.

    The event loop stays free for probes, streams and everybody else.
    """

    @functools.wraps(handler)
    async def threaded(*args: Any, **kwargs: Any) -> Any:
        return await in_thread(lambda: asyncio.run(handler(*args, **kwargs)))

    return threaded


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Instead of a blocking call in a route: its result, computed in a thread of its own."""
    with _own_thread() as run_there:
        return await run_there(functools.partial(function, *args, **kwargs))


async def iterate(items: Iterator[Any]) -> AsyncIterator[Any]:
    """A blocking iterator's items, each waited for in one thread; closed there at the end.

    A thread for every stream, because most of them wait for upstream's one lock: in a pool, forty
    that wait take the last thread from the one that holds it, and nobody ever goes on.
    """
    with _own_thread() as run_there:
        try:
            while (item := await run_there(lambda: next(items, _END))) is not _END:
                yield item
        finally:
            # Not awaited: who cancels a stream cancels what is awaited here as well.
            run_there(getattr(items, "close", _nothing))


@contextlib.contextmanager
def _own_thread() -> Iterator[Callable[[Callable[[], Any]], asyncio.Future[Any]]]:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="request")
    try:
        yield functools.partial(asyncio.get_running_loop().run_in_executor, executor)
    finally:
        executor.shutdown(wait=False)


def _nothing() -> None:
    """An iterator that is not a generator needs no end."""


# ------------------------------------------------------------------------------------------ end


def _own_sigterm(service: Service, start: Start) -> None:
    """First SIGTERM: drain, then upstream's own handler, then exit code 0. A second exits now."""
    upstreams = signal.getsignal(signal.SIGTERM)
    is_over = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if is_over.is_set() or service.is_draining:
            _clean_up(upstreams, number, frame)
            _exit(0 if is_over.is_set() else 1)
        service.drain()
        threading.Thread(target=finish, name="drain", daemon=True).start()

    def finish() -> None:
        logger.info("draining: %d requests in flight", service.num_requests)
        if not service.wait_until_idle(drain_seconds()):
            logger.warning("%d requests did not end in time", service.num_requests)
        server = start.uvicorn_server
        if server is not None:
            server.should_exit = True
        is_over.set()
        # Handlers run in the main thread alone.
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)


def _clean_up(handler: Any, number: int, frame: FrameType | None) -> None:
    """Let upstream stop what it started, such as its llama-server."""
    if callable(handler):
        try:
            handler(number, frame)
        except SystemExit:
            pass
        except Exception:
            logger.exception("upstream's own clean-up failed")


def _exit(code: int) -> None:
    """End now: `sys.exit` would wait for threads that compute, or be caught on its way."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
