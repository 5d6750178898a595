"""What the tab Engine shows of this pod, in one answer.

Two requests of the browser's own might ask two replicas.
"""

from __future__ import annotations

import asyncio

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tgwui_k8s.ui.proxy import api_unreachable, authorization


class EngineState:
    """`GET /page/engine`: the pod's name, its metrics and its last errors."""

    def __init__(self, client: httpx.AsyncClient, pod: str) -> None:
        self._client = client
        self._pod = pod

    async def __call__(self, request: Request) -> Response:
        """Or why there is none."""
        headers = authorization(request.scope["login"])
        try:
            metrics, errors = await asyncio.gather(
                self._client.get("/metrics"),
                self._client.get("/v1/internal/errors", headers=headers),
            )
        except httpx.TransportError:
            return api_unreachable()
        if not errors.is_success:
            return Response(errors.content, errors.status_code, media_type="application/json")
        told = {"pod": self._pod, "metrics": metrics.text, **errors.json()}
        return JSONResponse(told, headers={"cache-control": "no-store"})
