"""A fake engine that costs next to nothing: what is measured is what stands before it.

    python -m benchmarks.gateways.engine PORT

Speaks enough of the engine's API for the gateway to take it for one. A stream sends `max_tokens`
chunks, one every `user` milliseconds; each chunk's text is the time at which it was written, on the
clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import httptools
import msgspec
import uvloop

MODEL = "fake/model"
_CARD = {"id": MODEL, "object": "model", "created": 1, "owned_by": "tgwui-k8s"}
_TEXT = "x" * 40


def _answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


_MODELS = _answer(msgspec.json.encode({"object": "list", "data": [_CARD]}))
_READY = _answer(b'{"status":"ok"}')
_NONE = _answer(b"{}", b"404 Not Found")
_SHORT = _answer(
    msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _TEXT},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
        }
    )
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class EngineProtocol(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        """A client."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None

    def connection_lost(self, error: Exception | None) -> None:
        """It has gone."""
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._path, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self._path += url

    def on_body(self, data: bytes) -> None:
        """Its body."""
        self._body += data

    def on_message_complete(self) -> None:
        """Answer it."""
        if self._body:
            asked = msgspec.json.decode(self._body)
            if asked.get("stream"):
                self._task = asyncio.ensure_future(self._stream(asked))
            else:
                self._transport.write(_SHORT)
        elif self._path.startswith(b"/health"):
            self._transport.write(_READY)
        else:
            self._transport.write(_MODELS if self._path.startswith(b"/v1/models") else _NONE)

    async def _stream(self, asked: dict[str, Any]) -> None:
        seconds = float(asked.get("user", "0")) / 1000
        with_tokens = asked.get("return_token_ids")
        count, offset, due = asked["max_tokens"], 0, time.perf_counter()
        self._transport.write(_STREAM)
        for number in range(count):
            due += seconds
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            text = f"{time.perf_counter_ns()} "
            reason = "length" if number == count - 1 else None
            choice: dict[str, Any] = {
                "index": 0,
                "delta": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            if with_tokens:
                choice |= {"token_ids": [number], "text_offset": offset, "text_length": len(text)}
                offset += len(text)
            self._event(
                msgspec.json.encode(
                    {
                        "id": "chatcmpl-1",
                        "object": "chat.completion.chunk",
                        "created": 1,
                        "model": MODEL,
                        "system_fingerprint": "fp_0123456789abcdef",
                        "choices": [choice],
                    }
                )
            )
        self._event(b"[DONE]")
        self._transport.write(b"0\r\n\r\n")

    def _event(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EngineProtocol, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
