"""A lock that holds on NFS, whatever its mount options are, and outlives no crash for long.

A file that exactly one process can create. Its owner writes to it again and again; who waits and
sees it unchanged for long enough takes it away. Clocks are not compared: each process measures on
its own how long it has seen the same content.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from tgwui_k8s.errors import DownloadError

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(
    path: Path, *, beat_seconds: float = BEAT_SECONDS, stale_seconds: float = STALE_SECONDS
) -> Iterator[Lock]:
    """Wait until nobody else holds the lock, and hold it. Raises `OSError`."""
    lock = Lock(path)
    lock.wait(stale_seconds)
    beats = threading.Event()

    def beat() -> None:
        while not beats.wait(beat_seconds):
            lock.beat()

    threading.Thread(target=beat, name="lock-beat", daemon=True).start()
    try:
        yield lock
    finally:
        beats.set()
        lock.release()


class Lock:
    """One process's claim."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid4().hex}"
        self._num_beats = 0
        self._is_held = False
        self._writing = threading.Lock()

    def check(self) -> None:
        """Raise `DownloadError` when somebody has taken the lock away."""
        if not self._is_mine(_content(self._path)):
            raise DownloadError(
                f"the lock {self._path} was lost: this process stood still for too long; run again"
            )

    def wait(self, stale_seconds: float) -> None:
        """Take the lock as soon as it is free, or its owner silent for `stale_seconds`."""
        seen: str | None = None
        since = time.monotonic()
        while not self._create():
            content = _content(self._path)
            if content != seen:
                if seen is None:
                    logger.info("another process fetches it, waiting: %s", content)
                seen, since = content, time.monotonic()
            elif time.monotonic() - since > stale_seconds:
                self._take_away(content)
            else:
                time.sleep(_POLL_SECONDS)

    def beat(self) -> None:
        """Show that the owner lives."""
        with self._writing, suppress(OSError):
            if self._is_held and self._is_mine(_content(self._path)):
                self._num_beats += 1
                with self._path.open("r+") as file:  # never empty, whoever looks in between
                    file.write(f"{self._owner} {self._num_beats}")

    def release(self) -> None:
        """Free the lock, if it is still ours."""
        with self._writing, suppress(OSError):
            self._is_held = False
            if self._is_mine(_content(self._path)):
                self._path.unlink()

    def _create(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{self._owner} 0")
        self._is_held = True
        return True

    def _take_away(self, stale: str) -> None:
        """Remove a dead owner's file; of several who try, one succeeds."""
        logger.warning("taking the lock from an owner that is silent: %s", stale)
        aside = self._path.with_name(f"{self._path.name}.{uuid4().hex}")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if _content(aside) != stale:
                # A new owner was faster than we were: it gets its file back.
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _is_mine(self, content: str) -> bool:
        return content.startswith(self._owner)


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
