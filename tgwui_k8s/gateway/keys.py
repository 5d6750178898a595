"""Who may call what.

| configured | calls, `/v1/models`  | pages about endpoints                             |
|------------|----------------------|---------------------------------------------------|
| nothing    | open                 | 403: they name addresses, which is not everybody's |
| API key    | API key              | 403                                               |
| admin key  | open                 | admin key                                         |
| both       | API key or admin key | admin key                                         |

A client's key ends here: endpoints get the gateway's own, or none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

from tgwui_k8s.errors import PermissionDeniedError
from tgwui_k8s.key_set import KeySet, offered_keys, wrong_key

OPEN_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/ping"}
)
"""Probes and metrics: no key, whatever is configured."""

ADMIN_PATHS = frozenset({"/gateway", "/gateway/endpoints"})


class Keys(Protocol):
    """What the application asks."""

    def check_route(self, path: str, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key that a request came with; empty where none is needed.

        Raises `AuthenticationError` or `PermissionDeniedError`.
        """
        ...


class PlainKeys:
    """Keys without limits of their own."""

    def __init__(self, api_keys: KeySet, admin_keys: KeySet) -> None:
        self._api_keys = api_keys
        self._admin_keys = admin_keys

    def check_route(self, path: str, headers: Mapping[bytes, bytes]) -> str:
        """See `Keys`."""
        if path in OPEN_PATHS:
            return ""
        offered = offered_keys(headers.items())
        accepted = next((key for key in offered if self._accepts(key, path)), None)
        if accepted is not None:
            return name_of(accepted)
        if path in ADMIN_PATHS:
            if not self._admin_keys.is_configured:
                raise PermissionDeniedError(
                    "This route needs an admin key, and the gateway has none. Start it with "
                    "--admin-key-file, TGWUI_ADMIN_KEY_FILE or TGWUI_ADMIN_KEY."
                )
            if any(self._api_keys.accepts(key) for key in offered):
                raise PermissionDeniedError("This route needs an admin key.")
            raise wrong_key(offered)
        if self._api_keys.is_configured:
            raise wrong_key(offered)
        return ""

    def _accepts(self, key: bytes, path: str) -> bool:
        if self._admin_keys.accepts(key):
            return True
        return path not in ADMIN_PATHS and self._api_keys.accepts(key)


def name_of(key: bytes) -> str:
    """A name for log lines and fair shares that does not tell the key."""
    return hashlib.sha256(key).hexdigest()[:12]
