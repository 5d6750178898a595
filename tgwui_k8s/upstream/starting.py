"""The port, open from the first second, and a little server on it until upstream's is there.

Upstream opens its port when the model is loaded, which may be minutes later, and takes another
one if it is busy. Here the sockets are bound first, a thread answers probes on them, and when
upstream's server begins it is given the very same sockets: who connects meanwhile waits in the
backlog and is not refused.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tgwui_k8s.upstream.answers import PROBES, Answer, not_now, probe
from tgwui_k8s.upstream.service import Service

_BACKLOG = 2048
_POLL_SECONDS = 0.05
_SOCKET_SECONDS = 5.0
_MAX_BODY_BYTES = 1 << 20


def addresses(args: Any, environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Where upstream's API listens, by its own flags and variables."""
    port = int(environ.get("OPENEDAI_PORT") or args.api_port)
    if args.listen and args.listen_host:
        return [(args.listen_host, port)]
    hosts = []
    if environ.get("OPENEDAI_ENABLE_IPV6") or getattr(args, "api_enable_ipv6", False):
        hosts.append("::" if args.listen else "::1")
    if not (environ.get("OPENEDAI_DISABLE_IPV4") or getattr(args, "api_disable_ipv4", False)):
        hosts.append("0.0.0.0" if args.listen else "127.0.0.1")  # noqa: S104 - --listen says so
    return [(host, port) for host in hosts]


def bind(wanted: list[tuple[str, int]]) -> list[socket.socket]:
    """Listening sockets. Raises SystemExit (code 3) where a port is taken: it is never moved."""
    return [_listen(host, port) for host, port in wanted]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PortTaken(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


class PortTaken(SystemExit):
    """Ends the process with code 3, and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(3)
        self.message = message


class StartServer:
    """Answers probes with the truth and everything else with 503, until `hand_over`."""

    def __init__(self, sockets: list[socket.socket], service: Service) -> None:
        self.sockets = sockets
        self._servers = [_server(listener, service) for listener in sockets]
        self._threads = [
            threading.Thread(
                target=server.serve_forever, args=(_POLL_SECONDS,), name="start-server", daemon=True
            )
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def hand_over(self) -> list[socket.socket]:
        """Stop answering; the sockets stay open, and belong to the caller."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
        return self.sockets


def _server(listener: socket.socket, service: Service) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SOCKET_SECONDS

        def do_GET(self) -> None:
            self._send(self._answer())

        do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_GET  # noqa: N815

        def _answer(self) -> Answer:
            path = self.path.partition("?")[0]
            if path in PROBES:
                return probe(path, service)
            # The start may end between the question and this line: then the client asks again.
            return not_now(service) or Answer(503, b"", {"retry-after": "1"})

        def _send(self, answer: Answer) -> None:
            with contextlib.suppress(OSError, ValueError):
                # Unread bytes would turn our close into a reset that eats the answer.
                self.rfile.read(min(int(self.headers.get("content-length", 0)), _MAX_BODY_BYTES))
                self.send_response(answer.status)
                for name, value in answer.all_headers:
                    self.send_header(name.decode(), value.decode())
                self.send_header("connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """A probe is no news."""

    server = ThreadingHTTPServer(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server
