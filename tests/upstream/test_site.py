"""What asks a server for an answer comes back, whatever the server does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tgwui_k8s.patching import site
from tgwui_k8s.patching.site import Server


class Answers(BaseHTTPRequestHandler):
    """`/pings`: an event stream with nothing but pings; `/cut`: less than was announced."""

    def do_GET(self) -> None:
        """Answer until the client is gone."""
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("content-length", "100")
        self.end_headers()
        if self.path == "/cut":
            self.wfile.write(b"the first half")
            return
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b": ping\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(name="server")
def _server() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listener:
        threading.Thread(target=listener.serve_forever).start()
        nothing = [sys.executable, "-c", "pass"]
        with subprocess.Popen(nothing, stdout=subprocess.PIPE) as process:
            yield Server(process, listener.server_port)
        listener.shutdown()


def test_an_answer_without_an_end_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an unpatched server's streams are that wait for one another: pings, and no text."""
    monkeypatch.setattr(site, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="no end of the answer"):
        server.request("GET", "/pings")


def test_an_answer_that_is_cut_says_so(server: Server) -> None:
    """A text that is not whole is never taken for one that is."""
    assert server.request("GET", "/cut").text == "the first half\n(cut)"
