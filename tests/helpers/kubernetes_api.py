"""A Kubernetes API server that knows one thing, EndpointSlices, and tells it as it is told to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


def pod(address: str, uid: str, **conditions: bool) -> Object:
    """One endpoint of a slice."""
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False, **conditions},
        "targetRef": {"kind": "Pod", "name": f"engine-{uid}", "uid": uid},
    }


def endpoint_slice(name: str, *pods: Object, port: int = 5000, **labels: str) -> Object:
    """An EndpointSlice with two ports, as its controller writes it."""
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": labels},
        "addressType": "IPv4",
        "endpoints": list(pods) or None,
        "ports": [{"name": "metrics", "port": 9}, {"name": "api", "port": port}],
    }


@dataclass
class Watch:
    """One WATCH that is open."""

    query: dict[str, str]
    writer: asyncio.StreamWriter

    def send(self, kind: str, one: Object) -> None:
        """An event."""
        self.raw(json.dumps({"type": kind, "object": one}).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        """Some bytes of the stream."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Its time is over."""
        self.writer.write(b"0\r\n\r\n")

    def sever(self) -> None:
        """A reset."""
        self.writer.transport.abort()


@dataclass
class KubernetesApi:
    """Answers a LIST with `slices`; a WATCH is silent until the test sends something."""

    slices: list[Object] = field(default_factory=list)
    version: int = 1
    statuses: deque[int] = field(default_factory=deque)
    """Of the next answers; 200 when there are no more."""
    delay_seconds: float = 0.0
    lists: int = 0
    watches: list[Watch] = field(default_factory=list)
    """All there were."""
    heads: list[str] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[KubernetesApi]:
        """Listen until the context ends; on the same port when it is entered again."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for watch in self.watches:
                watch.sever()

    @property
    def watch(self) -> Watch:
        """The last."""
        return self.watches[-1]

    @property
    def open_watches(self) -> list[Watch]:
        """Those that somebody still listens to."""
        return [watch for watch in self.watches if not watch.writer.is_closing()]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            url = urlsplit(head.split(" ", 2)[1])
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            await asyncio.sleep(self.delay_seconds)
            status = self.statuses.popleft() if self.statuses else 200
            if status != 200:
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)
            elif query.get("watch") == "true":
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                self.watches.append(Watch(query, writer))
            else:
                self.lists += 1
                body = json.dumps(
                    {"metadata": {"resourceVersion": str(self.version)}, "items": self.slices}
                ).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
