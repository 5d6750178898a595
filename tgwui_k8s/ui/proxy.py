"""The page's way to the API of its pod: same origin for the browser, one request per interaction.

Gradio's queue splits an interaction into a request that joins and another that listens, which a
load balancer sends to different replicas. Here the answer to the request *is* the stream, so any
replica can serve any request. Bytes pass as they come; the browser's going away ends the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message

from tgwui_k8s.api.sse import unless_gone
from tgwui_k8s.ui.keys import Login

GET_PATHS = frozenset(
    {
        "/docs",
        "/health/ready",
        "/health/startup",
        "/metrics",
        "/openapi.json",
        "/v1/internal/lora/list",
        "/v1/internal/model/info",
        "/v1/internal/model/list",
        "/v1/models",
    }
)
POST_PATHS = frozenset(
    {
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/internal/lora/load",
        "/v1/internal/lora/unload",
        "/v1/internal/model/unload",
        "/v1/internal/token-count",
    }
)

SENT = ("accept", "content-length", "content-type")
RETURNED = ("content-security-policy", "content-type", "retry-after", "x-request-id")


def api_client(api_url: str) -> httpx.AsyncClient:
    """A client that waits for answers as long as the API lets requests take."""
    return httpx.AsyncClient(
        base_url=api_url,
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        trust_env=False,
    )


def authorization(login: Login) -> dict[str, str]:
    """The header with the key that the session stands for."""
    if login.key is None:
        return {}
    return {"authorization": f"Bearer {login.key}"}


class Proxy:
    """`/page/api/PATH` is the API's `PATH`, for the paths that the page uses."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, request: Request) -> Response:
        """The API's answer, or why there is none. Raises `ClientDisconnect`."""
        path = f"/{request.path_params['path']}"
        allowed = POST_PATHS if request.method == "POST" else GET_PATHS
        if path not in allowed:
            return error_answer(404, "not_found", "The page does not use this route.")
        body = _Body(request)
        headers = {name: request.headers[name] for name in SENT if name in request.headers}
        asked = self._client.build_request(
            request.method,
            httpx.URL(path=path, query=request.scope["query_string"]),
            headers={**headers, **authorization(request.scope["login"])},
            content=body.chunks() if request.method == "POST" else None,
        )
        try:
            answer = await self._send(asked, body)
        except httpx.TransportError:
            return api_unreachable()
        returned = {name: answer.headers[name] for name in RETURNED if name in answer.headers}
        return StreamingResponse(
            _body(answer),
            status_code=answer.status_code,
            headers={**returned, "cache-control": "no-store", "x-accel-buffering": "no"},
            background=BackgroundTask(answer.aclose),
        )

    async def _send(self, asked: httpx.Request, body: _Body) -> httpx.Response:
        """The API's answer as far as its headers. Raises `ClientDisconnect`, `TransportError`.

        A stream's headers come with its first token: who leaves the queue before must not keep
        a place in it.
        """
        answers: list[httpx.Response] = []

        async def send() -> None:
            answers.append(await self._client.send(asked, stream=True))

        await unless_gone(body.what_follows, send())
        if not answers:
            raise ClientDisconnect
        return answers[0]


class _Body:
    """A request's body on its way to the API, and what the server says after its end."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._has_ended = asyncio.Event()
        if request.method != "POST":
            self._has_ended.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises `ClientDisconnect`."""
        async for chunk in self._request.stream():
            yield chunk
        self._has_ended.set()

    async def what_follows(self) -> Message:
        """The next message of the server that is not of the body."""
        await self._has_ended.wait()
        return await self._request.receive()


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Bytes as they come; closed with the stream, whichever side ends it."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.TransportError:
        # The API died in mid-answer. An end without `[DONE]` is how the browser learns of it.
        return
    finally:
        await answer.aclose()


def error_answer(status: int, code: str, message: str) -> Response:
    """An error in the API's form."""
    return JSONResponse({"error": {"message": message, "code": code}}, status)


def api_unreachable() -> Response:
    """What is said where nobody answers."""
    return error_answer(502, "api_unreachable", "The API of this pod does not answer.")
