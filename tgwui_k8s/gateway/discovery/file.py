"""Endpoints from a file with one URL a line, read again when it changes (a ConfigMap)."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.discovery import Publish
from tgwui_k8s.gateway.endpoint import Endpoint, parse_endpoint

RECHECK_SECONDS = 1.0

_MAX_FILE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class FileDiscovery:
    """The last good content outlives a bad one."""

    def __init__(self, path: str, *, recheck_seconds: float = RECHECK_SECONDS) -> None:
        """Raises `UsageError` where the file cannot be read or understood."""
        self.name = f"file {path}"
        self._path = Path(path)
        self._recheck_seconds = recheck_seconds
        self._version = _version(self._path)
        self._endpoints = read_endpoints(self._path)

    async def run(self, publish: Publish) -> None:
        """See `Discovery`."""
        publish(self._endpoints)
        while True:
            await asyncio.sleep(self._recheck_seconds)
            version = _version(self._path)
            if version == self._version:
                continue
            self._version = version
            try:
                self._endpoints = read_endpoints(self._path)
            except UsageError as error:
                logger.error("%s The endpoints read before stay.", error)
            else:
                logger.info("read %d endpoints from the changed file", len(self._endpoints))
                publish(self._endpoints)


def read_endpoints(path: Path) -> list[Endpoint]:
    """One URL a line; `#` begins a comment. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The endpoint file {path} cannot be read: {error}.") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [parse_endpoint(line) for line in lines if line]


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does: a ConfigMap changes by a swap of symbolic links."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
