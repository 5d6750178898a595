"""Who may call what: API keys, admin keys, and the routes that need none.

| configured | API routes                | admin routes (load and unload a model)       |
|------------|---------------------------|----------------------------------------------|
| nothing    | open                      | 403: an open server must not be emptied by   |
|            |                           | whoever can reach it                         |
| API key    | API key                   | 403                                          |
| admin key  | open                      | admin key                                    |
| both       | API key or admin key      | admin key                                    |

Every route is protected unless it is listed here, so that a new one cannot be open by mistake.
"""

from __future__ import annotations

from collections.abc import Container

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tgwui_k8s.errors import PermissionDeniedError
from tgwui_k8s.key_set import KeySet, offered_keys, wrong_key

OPEN_PATHS = frozenset(
    {
        "/docs",
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
        "/metrics",
        "/openapi.json",
        "/ping",
        "/v1/internal/health",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
"""Probes, metrics and the documentation: no key, whatever is configured."""

ADMIN_PATHS = frozenset(
    f"/v1/internal/{what}/{change}" for what in ("model", "lora") for change in ("load", "unload")
)


class Authentication:
    """ASGI middleware: lets a request through or raises the 401 or 403 it deserves."""

    def __init__(self, app: ASGIApp, api_keys: KeySet, admin_keys: KeySet) -> None:
        self._app = app
        self._api_keys = api_keys
        self._admin_keys = admin_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `AuthenticationError` or `PermissionDeniedError`."""
        if scope["type"] == "http" and not is_open(scope["path"]):
            self._check(scope["path"], offered_keys(scope["headers"]))
        await self._app(scope, receive, send)

    def _check(self, path: str, offered: list[bytes]) -> None:
        if any(self._admin_keys.accepts(key) for key in offered):
            return
        has_api_key = any(self._api_keys.accepts(key) for key in offered)
        if path in ADMIN_PATHS:
            if not self._admin_keys.is_configured:
                raise PermissionDeniedError(
                    "This route needs an admin key, and the server has none. Start it with "
                    "--admin-key-file, TGWUI_ADMIN_KEY_FILE or TGWUI_ADMIN_KEY."
                )
            if has_api_key:
                raise PermissionDeniedError("This route needs an admin key.")
            raise wrong_key(offered)
        if self._api_keys.is_configured and not has_api_key:
            raise wrong_key(offered)


def is_open(path: str) -> bool:
    """Whether a route needs no key."""
    return path in OPEN_PATHS or (path.startswith("/v2/models/") and path.endswith("/ready"))


def refuse_other_sites(request: Request, origins: Container[str]) -> None:
    """Raise `PermissionDeniedError` for a request by another site's page that is none of `origins`.

    For routes that read no body: what has one needs a content type that other sites' pages may
    not send without asking. Programs send none of these headers.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin in origins or "*" in origins:
        return
    if site is not None:
        is_other = site in ("cross-site", "same-site")
    else:
        # No page can make a browser send the second without asking.
        hosts = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
        is_other = origin is not None and origin.partition("://")[2] not in hosts
    if is_other:
        raise PermissionDeniedError(
            "Web pages may not ask for this: their site is none of --cors-origin."
        )
