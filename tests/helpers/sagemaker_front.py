"""What SageMaker does between boto3 and a container: two URLs, and AWS's event stream around bytes.

Event stream encoding: https://smithy.io/2.0/aws/amazon-eventstream.html
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import boto3
import httpx

_PART = {":message-type": "event", ":event-type": "PayloadPart"}


@contextmanager
def sagemaker_client(container_url: str) -> Iterator[Any]:
    """boto3's client of an endpoint whose one container is at `container_url`."""

    class Front(_Front):
        url = container_url

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield boto3.client(
            "sagemaker-runtime",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            region_name="eu-central-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
    finally:
        server.shutdown()
        server.server_close()


class _Front(BaseHTTPRequestHandler):
    url: ClassVar[str]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {"content-type": self.headers["content-type"]}
        with (
            httpx.Client(timeout=30, trust_env=False) as client,
            client.stream(
                "POST", f"{self.url}/invocations", content=body, headers=headers
            ) as answer,
        ):
            if answer.status_code != 200:
                self._fail(answer.status_code, answer.read())
            elif self.path.endswith("/invocations-response-stream"):
                self._stream(answer)
            else:
                self._answer(200, answer.read(), answer.headers["content-type"])

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _stream(self, answer: httpx.Response) -> None:
        self.send_response(200)
        self.send_header("x-amzn-sagemaker-content-type", answer.headers["content-type"])
        self.send_header("content-type", "application/vnd.amazon.eventstream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in answer.iter_bytes():
            # SageMaker cuts where it likes, never mind the lines.
            for start in range(0, len(chunk), 50):
                self.wfile.write(event_message(_PART, chunk[start : start + 50]))

    def _fail(self, status: int, body: bytes) -> None:
        self.send_response(424)
        self.send_header("x-amzn-errortype", "ModelError")
        envelope = httpx.Response(
            424, json={"OriginalStatusCode": status, "OriginalMessage": body.decode()}
        ).content
        self.send_header("content-length", str(len(envelope)))
        self.end_headers()
        self.wfile.write(envelope)

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def event_message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message: lengths, their checksum, headers, payload, checksum of it all."""
    encoded = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value))
        + value.encode()
        for name, value in headers.items()
    )  # fmt: skip
    prelude = struct.pack("!II", 16 + len(encoded) + len(payload), len(encoded))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))
