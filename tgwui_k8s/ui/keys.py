"""The keys people log in with, and the cookie that stands for one afterwards.

The cookie names no key. It holds when the session ends and a signature made *with the key itself*:

    <expiry>.<HMAC-SHA256(SHA-256("tgwui-k8s page" + key), expiry)>

So every replica that knows the key accepts the session without sharing a secret or remembering
anything, a key that leaves the key file takes its sessions along, and a stolen cookie is worth
nothing after its expiry and does not show the key.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from tgwui_k8s.key_set import KeyFile
from tgwui_k8s.ui.page_settings import PageSettings

COOKIE = "tgwui_session"
SESSION_SECONDS = 12 * 3600

_CONTEXT = b"tgwui-k8s page"

Role = Literal["user", "admin"]


@dataclass(frozen=True)
class Login:
    """Who somebody is: the key that speaks for them to the API, and what it may do."""

    key: str | None
    role: Role


ANONYMOUS = Login(None, "user")
"""Everybody, where the API needs no key."""


class Keyring:
    """All keys by role. Files are read again when they change."""

    def __init__(self, settings: PageSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Raises `UsageError` for a key file that cannot be read or holds no key."""
        self._clock = clock
        self._sources: tuple[tuple[Role, tuple[str, ...], KeyFile | None], ...] = (
            ("admin", settings.admin_keys, _file(settings.admin_key_file)),
            ("user", settings.api_keys, _file(settings.api_key_file)),
        )

    @property
    def is_open(self) -> bool:
        """True where no API key is configured: then nobody has to log in."""
        return not any(keys or file for role, keys, file in self._sources if role == "user")

    @property
    def has_admin(self) -> bool:
        """True where somebody could log in as an admin."""
        return any(keys or file for role, keys, file in self._sources if role == "admin")

    def login(self, key: str) -> Login | None:
        """Who sends this key; None where it is not one of ours."""
        digest = _digest(key)
        matches = [
            Login(known, role)
            for role, known in self._known()
            if hmac.compare_digest(digest, _digest(known))
        ]
        return matches[0] if matches else None

    def cookie(self, login: Login) -> str:
        """A session's cookie. The login must have a key."""
        expiry = str(int(self._clock()) + SESSION_SECONDS)
        return f"{expiry}.{_signature(login.key or '', expiry)}"

    def session(self, cookie: str | None) -> Login | None:
        """Whose session the cookie is: nobody's, or one that has not expired."""
        expiry, _, signed = (cookie or "").partition(".")
        if len(expiry) > 12 or not expiry.isdecimal() or int(expiry) <= self._clock():
            return None
        signature = signed.encode("utf-8", "replace")
        matches = [
            Login(known, role)
            for role, known in self._known()
            if hmac.compare_digest(signature, _signature(known, expiry).encode())
        ]
        return matches[0] if matches else None

    def _known(self) -> Iterable[tuple[Role, str]]:
        for role, keys, file in self._sources:
            for key in keys:
                yield role, key
            for line in () if file is None else file.keys():
                yield role, line.decode("utf-8", "surrogateescape")


def _file(path: str | None) -> KeyFile | None:
    return None if path is None else KeyFile(path)


def _digest(key: str) -> bytes:
    return hashlib.sha256(_CONTEXT + key.encode("utf-8", "surrogateescape")).digest()


def _signature(key: str, expiry: str) -> str:
    return hmac.new(_digest(key), expiry.encode(), hashlib.sha256).hexdigest()
