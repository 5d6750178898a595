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

from collections.abc import Iterable, Mapping

from tgwui_k8s.config import ServerSettings
from tgwui_k8s.errors import PermissionDeniedError
from tgwui_k8s.gateway.key_file import ApiKey, digest_of, read_keys, unnamed_keys
from tgwui_k8s.key_set import KeySet, WatchedKeys, offered_keys, wrong_key

OPEN_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/ping"}
)
"""Probes and metrics: no key, whatever is configured."""

ADMIN_PATHS = frozenset({"/gateway", "/gateway/endpoints"})

NOBODY = ApiKey("")
"""Who calls where no key is needed: every model, no limits."""
ADMIN = ApiKey("admin")


class Keys:
    """API keys, each with its limits, and admin keys, which have none."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises `UsageError` for a key file that is of no use."""
        self._fixed = unnamed_keys(digest_of(key.encode()) for key in settings.api_key)
        file = settings.api_key_file
        self._file = WatchedKeys(file, read_keys) if file is not None else None
        self._admin = KeySet(settings.admin_key, settings.admin_key_file)

    @property
    def are_limited(self) -> bool:
        """Whether there is anything to count."""
        keys = self._file.keys().values() if self._file is not None else ()
        return any(key.quota.is_limited for key in keys)

    def check_route(self, path: str, headers: Mapping[bytes, bytes]) -> ApiKey:
        """The key that a request came with.

        Raises `AuthenticationError` or `PermissionDeniedError`.
        """
        if path in OPEN_PATHS:
            return NOBODY
        offered = offered_keys(headers.items())
        if any(self._admin.accepts(key) for key in offered):
            return ADMIN
        key = self._find(offered)
        if path in ADMIN_PATHS:
            if not self._admin.is_configured:
                raise PermissionDeniedError(
                    "This route needs an admin key, and the gateway has none. Start it with "
                    "--admin-key-file, TGWUI_ADMIN_KEY_FILE or TGWUI_ADMIN_KEY."
                )
            if key is not None:
                raise PermissionDeniedError("This route needs an admin key.")
            raise wrong_key(offered)
        if key is not None:
            return key
        if self._fixed or self._file is not None:
            raise wrong_key(offered)
        return NOBODY

    def _find(self, offered: Iterable[bytes]) -> ApiKey | None:
        """The first that is known. Looked up by digest: how long that takes tells nothing."""
        from_file = self._file.keys() if self._file is not None else {}
        for digest in map(digest_of, offered):
            if (key := self._fixed.get(digest) or from_file.get(digest)) is not None:
                return key
        return None


def check_model(key: ApiKey, model: str | None) -> None:
    """Raises `PermissionDeniedError` where the key is not good for the model."""
    if key.models is None:
        return
    if model is None:
        raise PermissionDeniedError(
            "This key is good for some models only: name one in 'model'.", param="model"
        )
    if not key.may_use(model):
        raise PermissionDeniedError(
            f"This key is not good for the model '{model[:100]}'.",
            param="model",
            code="model_not_allowed",
        )
