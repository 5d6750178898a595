"""`GET /v1/internal/errors`: the last errors, for whoever may ask the API anything."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter

from tgwui_k8s.api.state import ServerState


def create_router(state: ServerState) -> APIRouter:
    """The one route."""
    router = APIRouter(prefix="/v1/internal", tags=["operations"])

    @router.get("/errors", summary="The last errors")
    async def errors() -> dict[str, Any]:
        """What clients of this pod got: each kind once with its count, the newest first.

        Nothing that a client wrote is kept but request ids, by which the log is found.
        """
        return {"errors": msgspec.to_builtins(state.recent_errors.newest_first())}

    return router
