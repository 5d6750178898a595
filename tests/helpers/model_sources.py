"""A server that imitates Hugging Face's hub, S3 and a plain web server, with faults to order.

Hub: https://huggingface.co/docs/hub/api, S3: ListObjectsV2, HeadObject and GetObject in path style.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 10_000
"""From this size on the hub stores a file in LFS, with a SHA-256."""


@dataclass
class ModelServer:
    """What it has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By file: what goes wrong with the next requests for its bytes, in order.

    `503`, `403`, `reset` and `truncate` (after half of the range), `corrupt` (one bit),
    `no-ranges`, `changed` (another ETag).
    """
    seconds_per_request: float = 0.0
    gated: bool = False
    etags: dict[str, str] = field(default_factory=dict)
    """S3's, where they are not the MD5."""
    part_bytes: int | None = None
    """S3: every object was uploaded in parts of so many bytes."""
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Method, file, Range and Authorization of every request for bytes."""
    url: str = ""

    def next_fault(self, path: str) -> str:
        """The fault of this request, or nothing."""
        queue = self.faults.get(path, [])
        return queue.pop(0) if queue else ""

    def etag(self, path: str) -> str:
        """As S3 makes it."""
        content = self.files[path]
        if self.part_bytes is None:
            return self.etags.get(path, hashlib.md5(content).hexdigest())
        size = self.part_bytes
        parts = [content[i : i + size] for i in range(0, len(content), size)]
        joined = b"".join(hashlib.md5(part).digest() for part in parts)
        return f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"

    def siblings(self) -> list[dict[str, Any]]:
        """The hub's list of files."""
        return [_sibling(path, content) for path, content in self.files.items()]


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
    if len(content) >= LARGE_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return entry


@contextmanager
def model_server(files: dict[str, bytes], **behaviour: Any) -> Iterator[ModelServer]:
    """Serve until the block ends."""
    server = ModelServer(files, **behaviour)

    class Handler(_Handler):
        model_server = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    model_server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        query = parse_qs(parts.query)
        if path.startswith("/api/models/"):
            self._hub_list(path)
        elif "/resolve/" in path:
            self._hub_redirect(path)
        elif "list-type" in query:
            self._s3_list(query)
        else:
            self._content(path)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    # -- the hub ---------------------------------------------------------------------------------

    def _hub_list(self, path: str) -> None:
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if self.model_server.gated and self.headers.get("Authorization") != "Bearer secret":
            self._error(403, {"X-Error-Code": "GatedRepo"})
        elif repository != "org/name":
            self._error(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", COMMIT):
            self._error(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = self.model_server.siblings()
            answer = {"id": "org/name", "sha": COMMIT, "siblings": siblings, "modelId": "org/name"}
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _hub_redirect(self, path: str) -> None:
        """To another host, as the hub does: there the token is nobody's business."""
        _, _, rest = path.partition("/resolve/")
        commit, _, file = rest.partition("/")
        assert commit == COMMIT
        port = self.server.server_address[1]
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{port}/cdn/{file}?signature=x")
        self.send_header("Content-Length", "0")
        self.end_headers()

    # -- S3 --------------------------------------------------------------------------------------

    def _s3_list(self, query: dict[str, list[str]]) -> None:
        """Two objects a page."""
        prefix = query.get("prefix", [""])[0]
        start = int(query.get("continuation-token", ["0"])[0])
        paths = sorted(self.model_server.files)
        entries = "".join(
            f"<Contents><Key>{escape(prefix + path)}</Key>"
            f"<Size>{len(self.model_server.files[path])}</Size>"
            f'<ETag>"{self.model_server.etag(path)}"</ETag></Contents>'
            for path in paths[start : start + 2]
        )
        is_cut = start + 2 < len(paths)
        token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if is_cut else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult>'
            f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._send(200, body.encode(), {"Content-Type": "application/xml"})

    # -- bytes -----------------------------------------------------------------------------------

    def _content(self, path: str) -> None:
        state = self.model_server
        file = next((name for name in state.files if path.endswith("/" + name)), None)
        if file is None:
            self._error(404, {})
            return
        content = state.files[file]
        headers = {"ETag": f'"{state.etag(file)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        state.requests.append((self.command, file, asked, self.headers.get("Authorization")))
        if self.command == "HEAD":
            is_part = "partNumber=1" in self.path and state.part_bytes is not None
            length = min(state.part_bytes or 0, len(content)) if is_part else len(content)
            self._send(200, b"", headers | {"Content-Length": str(length)})
            return
        time.sleep(state.seconds_per_request)
        self._send_range(content, asked, headers, state.next_fault(file))

    def _send_range(
        self, content: bytes, asked: str | None, headers: dict[str, str], fault: str
    ) -> None:
        if fault in ("403", "503"):
            self._error(int(fault), {})
            return
        status, body = 200, content
        if asked is not None and fault != "no-ranges":
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, body = 206, content[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "changed":
            headers["ETag"] = '"another"'
        headers["Content-Length"] = str(len(body))
        self._send(
            status, body[: len(body) // 2] if fault in ("reset", "truncate") else body, headers
        )
        if fault == "reset":
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if fault in ("reset", "truncate"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _error(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"{}", headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
