"""Probes and `/metrics`: plain routes on what is already known, so that they answer at once.

Kubernetes restarts what is not live, waits for what has not started, and sends no requests to
what is not ready. Being busy is none of the three: a full queue answers 503 with `Retry-After` to
the request that does not fit, and shows in the metrics.

A probe that fails answers 503 with OpenAI's error envelope and, beside it, its own fields.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from tgwui_k8s.api.errors import error_body
from tgwui_k8s.api.plain_route import PlainRoute
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.error_envelope import error_headers, status_of
from tgwui_k8s.errors import (
    EngineUnavailableError,
    ModelNotReadyError,
    NotFoundError,
    RequestError,
)


def create_routes(state: ServerState) -> list[BaseRoute]:
    """Routes for Kubernetes, KServe and Prometheus; none needs a key."""

    async def live(request: Request) -> Response:
        """The event loop answers and the engine is alive; 503 asks for a restart."""
        return _answer("live", why_not_live(state))

    async def startup(request: Request) -> Response:
        """Loading is over; until then 503 with the phase and the bytes read."""
        progress = state.load_progress
        return _answer(
            "started",
            None if progress.phase == "ready" else _still_loading(state),
            phase=progress.phase,
            bytes_read=progress.bytes_read,
            bytes_total=progress.bytes_total,
        )

    async def ready(request: Request) -> Response:
        """A model is loaded and takes requests; 503 while loading, draining or restarting."""
        return _answer("ready", why_not_ready(state))

    async def model_ready(request: Request) -> Response:
        """The same for one served model."""
        name = request.path_params["model"]
        error = why_not_ready(state) or _not_served(state, name)
        return _answer("ready", error, name=name[:200])

    async def ping(request: Request) -> Response:
        """The same for SageMaker."""
        return _answer("ready", why_not_ready(state))

    async def upstream_health(request: Request) -> Response:
        """The same under text-generation-webui's name and in its words."""
        return _answer("ok", why_not_ready(state))

    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus."""
        # A scrape takes milliseconds, and streams must not wait for it.
        accept = request.headers.get("accept", "")
        content, content_type = await run_sync(state.metrics.exposition, accept)
        return Response(content, headers={"content-type": content_type})

    return [
        PlainRoute("/health/live", live),
        PlainRoute("/health/ready", ready),
        PlainRoute("/health/startup", startup),
        PlainRoute("/health", ready),
        PlainRoute("/metrics", metrics),
        PlainRoute("/ping", ping),
        PlainRoute("/v1/internal/health", upstream_health),
        PlainRoute("/v2/health/live", live),
        PlainRoute("/v2/health/ready", ready),
        PlainRoute("/v2/models/{model:path}/ready", model_ready),
    ]


def why_not_live(state: ServerState) -> RequestError | None:
    """What makes a restart necessary; None while the engine is alive."""
    health = state.backend.health
    return None if health.alive else EngineUnavailableError(health.reason)


def why_not_ready(state: ServerState) -> RequestError | None:
    """Why new requests should go elsewhere: what one that came now would be refused with."""
    try:
        state.require_model()
    except RequestError as error:
        return error
    return why_not_live(state)


def _still_loading(state: ServerState) -> RequestError:
    return ModelNotReadyError(f"No model is ready (phase: {state.load_progress.phase}).")


def _not_served(state: ServerState, name: str) -> RequestError | None:
    if state.model is not None and state.model.named(name) is not None:
        return None
    return NotFoundError("The model does not exist.", code="model_not_found")


def _answer(status: str, error: RequestError | None, **fields: object) -> Response:
    if error is None:
        return JSONResponse({"status": status, **fields})
    body = {"status": f"not {status}", **fields, **error_body(error)}
    return JSONResponse(body, status_code=status_of(error), headers=error_headers(error))
