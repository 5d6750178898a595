"""`create_app`: the one place where routes, middleware and error handlers meet."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from tgwui_k8s import __version__
from tgwui_k8s.api import (
    adapters,
    chat,
    completions,
    docs,
    embeddings,
    health,
    internal,
    invocations,
    messages,
    models,
    recent_errors,
    responses,
    tokenize,
)
from tgwui_k8s.api.auth import Authentication
from tgwui_k8s.api.errors import HANDLED, handle_error
from tgwui_k8s.api.middleware import BodyLimit, RequestMiddleware
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.key_set import load_keys


def create_app(state: ServerState) -> FastAPI:
    """The whole HTTP interface on `state`. Raises `UsageError` for key files without keys.

    It starts nothing: the caller runs the server, the engine and `Metrics.watch_event_loop`.
    """
    app = FastAPI(
        title="tgwui-k8s",
        version=__version__,
        # `api.docs` has its own, which work without internet.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    state.metrics.set_source(state.backend)
    app.router.routes.extend((*health.create_routes(state), *docs.create_routes(app)))
    modules = (
        *(completions, chat, messages, responses, embeddings),
        *(models, tokenize, internal, adapters, recent_errors, invocations),
    )
    routers = [module.create_router(state) for module in modules]
    for router in routers:
        app.include_router(router)
    for error_class in HANDLED:
        app.add_exception_handler(error_class, handle_error)
    paths = (getattr(route, "path", "") for router in routers for route in router.routes)
    _add_middleware(app, state, frozenset(paths))
    return app


def _add_middleware(app: FastAPI, state: ServerState, paths: frozenset[str]) -> None:
    """The innermost first: Starlette puts what is added later around what is there."""
    server = state.settings.server
    api_keys, admin_keys = load_keys(server)
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes)
    app.add_middleware(Authentication, api_keys=api_keys, admin_keys=admin_keys)
    app.add_middleware(RequestMiddleware, state=state, routes=paths)
    if server.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.cors_origin),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
