"""`GET /v1/models`: which models are served, under which names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tgwui_k8s.api.state import ServedModel, ServerState


def create_router(state: ServerState) -> APIRouter:
    """Routes for the models that requests may name."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="List the served models")
    async def list_models() -> dict[str, Any]:
        """Every name of the loaded model, and its adapters; 503 while none is loaded."""
        model = state.loaded_model()
        names = [*model.names, *model.adapters]
        return {"object": "list", "data": [_card(model, name) for name in names]}

    @router.get("/v1/models/{model_id:path}", summary="Look up one served model")
    async def get_model(model_id: str) -> dict[str, Any]:
        """One served model; ids may hold slashes. 404 for a name that is not served."""
        state.loaded_model(model_id)
        return _card(state.loaded_model(), model_id)

    return router


def _card(model: ServedModel, name: str) -> dict[str, Any]:
    """One name of the model, or of one of its adapters, whose `parent` is the model."""
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "tgwui-k8s",
        "root": model.names[0],
        "parent": model.names[0] if name in model.adapters else None,
        "max_model_len": model.info.max_model_len,
    }
