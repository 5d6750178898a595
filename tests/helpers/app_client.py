"""An HTTP client that talks to the whole application without a network."""

from __future__ import annotations

import httpx

from tgwui_k8s.api.app import create_app
from tgwui_k8s.api.state import ServerState


def app_client(state: ServerState, **headers: str) -> httpx.AsyncClient:
    """A client of `create_app(state)`; `headers` go with every request, `_` for `-`."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=create_app(state)),
        base_url="http://test",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
