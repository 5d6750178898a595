"""Ray Serve's way to the engine in the same pod: requests and streams pass through unchanged."""

from collections.abc import AsyncIterator

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

ENGINE = "http://127.0.0.1:5000"
OURS = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
"""Headers that belong to one connection, not to the request."""


@serve.deployment(
    # As many as one engine's --max-num-seqs and some to wait.
    max_ongoing_requests=128,
    graceful_shutdown_timeout_s=600,
    health_check_period_s=10,
)
class EngineRoute:
    """One per Ray worker."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    async def check_health(self) -> None:
        """Ray asks this; raises where the engine is not ready."""
        async with self._session.get(f"{ENGINE}/health/ready") as answer:
            answer.raise_for_status()

    async def __call__(self, request: Request) -> StreamingResponse:
        """Pass the request on; a client that goes away closes the stream, which aborts it there."""
        answer = await self._session.request(
            request.method,
            f"{ENGINE}{request.url.path}",
            params=request.query_params,
            data=await request.body(),
            headers=_forwarded(request.headers.items()),
        )
        return StreamingResponse(
            _chunks(answer),
            status_code=answer.status,
            headers=_forwarded(answer.headers.items()),
        )


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for chunk in answer.content.iter_any():
            yield chunk


def _forwarded(headers) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in OURS}


app = EngineRoute.bind()
