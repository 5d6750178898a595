"""Loading a model with its true progress, as one request whose answer is a stream of events.

The API answers a load when the model is ready. Beside it this pod's `/health/startup` says how
far it is: phase, bytes read, bytes to read. Asking for that in requests of the browser's own would
ask some other replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tgwui_k8s.ui.keys import Login
from tgwui_k8s.ui.proxy import authorization, error_answer
from tgwui_k8s.ui.small_body import small_body

LOAD_ROUTE = "/v1/internal/model/load"
INTERVAL_SECONDS = 0.25
MAX_BODY_BYTES = 64 * 1024

_UNREACHABLE = {"message": "The API of this pod does not answer.", "code": "api_unreachable"}


class ModelLoad:
    """`POST /page/load` with the body of the API's load route."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, request: Request) -> Response:
        """Server-sent events: `progress` until `done` or `error`. Raises `ClientDisconnect`."""
        body = await small_body(request, MAX_BODY_BYTES)
        if body is None:
            return error_answer(413, "payload_too_large", "The settings are too long.")
        events = self._events(body, request.scope["login"])
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(self, body: bytes, login: Login) -> AsyncIterator[bytes]:
        loading = asyncio.create_task(self._load(body, login))
        try:
            while not loading.done():
                yield _event("progress", await self._progress())
                await asyncio.wait((loading,), timeout=INTERVAL_SECONDS)
            yield loading.result()
        finally:
            # A load that has begun goes on in the API when the browser leaves.
            loading.cancel()

    async def _load(self, body: bytes, login: Login) -> bytes:
        headers = {"content-type": "application/json", **authorization(login)}
        try:
            answer = await self._client.post(LOAD_ROUTE, content=body, headers=headers)
        except httpx.TransportError:
            return _event("error", _UNREACHABLE)
        if answer.is_success:
            return _event("done", {})
        return _event("error", _error_of(answer))

    async def _progress(self) -> dict[str, Any]:
        """Phase and bytes; nothing where the API has no answer right now."""
        try:
            answer = await self._client.get("/health/startup", timeout=2.0)
            told = answer.json()
        except (httpx.TransportError, ValueError):
            return {}
        return {name: told.get(name) for name in ("phase", "bytes_read", "bytes_total")}


def _error_of(answer: httpx.Response) -> dict[str, Any]:
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": f"The API answered {answer.status_code}.", "code": None}
    return {"message": error.get("message"), "code": error.get("code")}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
