"""Who may call what."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol

from tgwui_k8s.errors import AuthenticationError, PermissionDeniedError

OPEN_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/ping"}
)
ADMIN_PATHS = frozenset({"/gateway", "/gateway/endpoints"})


class Keys(Protocol):
    """What the application asks."""

    def check_route(self, path: str, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key that a request came with; empty where none is needed.

        Raises `AuthenticationError` or `PermissionDeniedError`.
        """
        ...


class AdminKeysOnly:
    """Calls need no key; the pages about endpoints need an admin's."""

    def __init__(self, admin_keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key.encode()) for key in admin_keys]

    def check_route(self, path: str, headers: Mapping[bytes, bytes]) -> str:
        """See `Keys`."""
        if path not in ADMIN_PATHS:
            return ""
        if not self._digests:
            raise PermissionDeniedError(
                "This route needs an admin key, and the gateway has none. Start it with "
                "--admin-key-file, TGWUI_ADMIN_KEY_FILE or TGWUI_ADMIN_KEY."
            )
        offered = offered_key(headers)
        if offered is None:
            raise AuthenticationError(
                "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'."
            )
        digest = _digest(offered)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise AuthenticationError("Incorrect API key provided.")
        return ""


def offered_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request carries, as `Authorization: Bearer` or `X-Api-Key`."""
    authorization = headers.get(b"authorization", b"")
    if authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return headers.get(b"x-api-key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
