"""LoRA adapters at run time, by text-generation-webui's routes below `/v1/internal/lora`.

Upstream applies what is loaded to every request; here a request names its adapter as `model`.
`load` and `unload` need an admin key, and nothing is kept: a server that starts again has the
adapters of its `--lora` flags.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request

from tgwui_k8s.api.body import describe_body, read_body
from tgwui_k8s.api.schemas.internal import LoadAdaptersRequest, UnloadAdaptersRequest
from tgwui_k8s.api.state import ModelControl, ServerState
from tgwui_k8s.errors import UnsupportedParameterError
from tgwui_k8s.storage.adapter_dir import list_adapters


def create_router(state: ServerState) -> APIRouter:
    """All routes below `/v1/internal/lora`."""
    router = APIRouter(prefix="/v1/internal/lora", tags=["text-generation-webui"])

    @router.get("/list", summary="Adapters that can be loaded")
    async def list_all() -> dict[str, list[str]]:
        """Names for `lora/load`: the folders of `--lora-dir`."""
        return {"lora_names": await run_sync(list_adapters, state.settings.model.lora_dir)}

    @router.post("/load", summary="Load adapters", openapi_extra=describe_body(LoadAdaptersRequest))
    async def load(request: Request) -> str:
        """Makes adapters available as `model`; one that is loaded is read again. Admin key."""
        asked = await read_body(request, LoadAdaptersRequest)
        control = _control(state)
        state.require_model()
        await control.load_adapters(asked.lora_names)
        return "OK"

    @router.post(
        "/unload", summary="Unload adapters", openapi_extra=describe_body(UnloadAdaptersRequest)
    )
    async def unload(request: Request) -> str:
        """Takes adapters away, all without a body; running requests keep theirs. Admin key."""
        has_body = bool(await request.body())
        asked = await read_body(request, UnloadAdaptersRequest) if has_body else None
        control = _control(state)
        state.require_model()
        await control.unload_adapters(asked.lora_names if asked is not None else None)
        return "OK"

    return router


def _control(state: ServerState) -> ModelControl:
    if state.model_control is None:
        raise UnsupportedParameterError("This server cannot change its adapters.")
    return state.model_control
