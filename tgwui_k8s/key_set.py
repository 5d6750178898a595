"""Keys that clients may send: from the settings, and from files that may change at any time.

Keys are compared as digests, in constant time, with all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Generic, TypeVar

from tgwui_k8s.config import ServerSettings
from tgwui_k8s.errors import AuthenticationError, UsageError

RECHECK_SECONDS = 1.0
MAX_FILE_BYTES = 1 << 20

FileVersion = tuple[int, int, int]
"""Modification time, inode, size: a Kubernetes Secret changes by a swap of symbolic links."""

_FORM_OF_THE_GATEWAY = re.compile(rb"\A\s*\{|^keys\s*:|^\s*sha256:", re.MULTILINE)
"""It says who may use what, or has keys' hashes: see `gateway.key_file`."""

Keys = TypeVar("Keys", bound=Sized)

logger = logging.getLogger(__name__)


class WatchedKeys(Generic[Keys]):
    """Keys of a file that may change at any time, in a form that `read` knows."""

    def __init__(
        self,
        path: str,
        read: Callable[[Path], Keys],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read` gives the keys of a file or raises `UsageError`, and so does this."""
        self._path = Path(path)
        self._read = read
        self._clock = clock
        self._version = _version(self._path)
        self._keys = read(self._path)
        self._next_check = clock() + RECHECK_SECONDS

    def keys(self) -> Keys:
        """The file's keys, read again where it has changed; good keys outlive a bad file."""
        now = self._clock()
        if now < self._next_check:
            return self._keys
        self._next_check = now + RECHECK_SECONDS
        version = _version(self._path)
        if version != self._version:
            self._version = version
            self._read_again()
        return self._keys

    def _read_again(self) -> None:
        try:
            self._keys = self._read(self._path)
        except UsageError as error:
            logger.error("%s The keys read before stay valid.", error)
        else:
            logger.info("read %d keys from the changed key file", len(self._keys))


class KeyFile(WatchedKeys[tuple[bytes, ...]]):
    """One key a line."""

    def __init__(self, path: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `UsageError` where the file cannot be read or holds no key."""
        super().__init__(path, _read_keys, clock=clock)


class KeySet:
    """Some keys from the settings and some from a file."""

    def __init__(
        self,
        keys: Iterable[str],
        file: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `UsageError` where the file cannot be read or holds no key."""
        self._fixed = tuple(_digest(key.encode()) for key in keys)
        self._file = KeyFile(file, clock=clock) if file is not None else None
        self._digests: tuple[bytes, ...] = ()
        self._digested: tuple[bytes, ...] = ()

    @property
    def is_configured(self) -> bool:
        """True where a key is needed at all; never changes while the server runs."""
        return bool(self._fixed) or self._file is not None

    def accepts(self, candidate: bytes) -> bool:
        """Whether the candidate is one of the keys; takes as long whichever it is."""
        digest = _digest(candidate)
        known = (*self._fixed, *self._from_file())
        matches = [hmac.compare_digest(digest, key) for key in known]
        return any(matches)

    def _from_file(self) -> tuple[bytes, ...]:
        """Digests of the file's keys, made once per content."""
        keys = () if self._file is None else self._file.keys()
        if keys is not self._digested:
            self._digested, self._digests = keys, tuple(map(_digest, keys))
        return self._digests


def load_keys(settings: ServerSettings) -> tuple[KeySet, KeySet]:
    """The API keys and the admin keys. Raises `UsageError` for a file without a key."""
    return (
        KeySet(settings.api_key, settings.api_key_file),
        KeySet(settings.admin_key, settings.admin_key_file),
    )


def offered_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys a request carries, as `Authorization: Bearer` or `X-Api-Key`."""
    offered = []
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            offered.append(value[7:].strip())
        elif name == b"x-api-key":
            offered.append(value.strip())
    return offered[:2]


def wrong_key(offered: list[bytes]) -> AuthenticationError:
    """What to answer to a request with these keys, none of which is right."""
    if offered:
        return AuthenticationError("Incorrect API key provided.")
    return AuthenticationError(
        "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _version(file: Path) -> FileVersion | None:
    """What changes when the file does; None where it cannot be reached."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def _read_keys(file: Path) -> tuple[bytes, ...]:
    """One key a line. Raises `UsageError`."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"The key file {file} cannot be read: {error.strerror}.") from error
    if _FORM_OF_THE_GATEWAY.search(content):
        raise UsageError(
            f"The key file {file} is one for the gateway (--api-key-file there); here it must hold "
            "plain keys, one a line."
        )
    keys = [line.strip() for line in content.splitlines() if line.strip()]
    if not keys:
        raise UsageError(f"The key file {file} holds no key; it needs one a line.")
    return tuple(keys)
