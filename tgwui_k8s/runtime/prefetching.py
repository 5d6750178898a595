"""Reading a model's weights ahead while a loader loads them, and telling how far that is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tgwui_k8s.contract import LoadProgress, LoadRequest, ProgressCallback
from tgwui_k8s.runtime.limits import available_memory
from tgwui_k8s.storage.mounts import network_file_system
from tgwui_k8s.storage.prefetch import is_kept, prefetch
from tgwui_k8s.storage.weights import WeightFiles

logger = logging.getLogger(__name__)


@contextmanager
def reading_ahead(
    request: LoadRequest, weights: WeightFiles, progress: ProgressCallback
) -> Iterator[ProgressCallback]:
    """Read the weights into the page cache while the context loads them.

    Does so where the request says so, or their disk is remote. Yields the callback for the loader's
    own progress: while reading is ahead of loading, that is what is told. Every byte comes from the
    disk once, whoever asks for it first. Reading ends with the context, however far it is.

    Raises `BrokenModelError` when a file cannot be read.
    """
    if not _is_wanted(request, weights):
        yield progress
        return
    ahead = _ReadAhead(request, weights, progress)
    ahead.start()
    try:
        yield ahead.note_loading
    finally:
        ahead.end()
    ahead.raise_error()


class _ReadAhead:
    """A thread that reads beside the one that loads; `progress` is called by one at a time."""

    def __init__(
        self, request: LoadRequest, weights: WeightFiles, progress: ProgressCallback
    ) -> None:
        self._weights = weights
        self._progress = progress
        self._limit = available_memory(request.memory_limit_bytes).num_bytes
        self._loading: LoadProgress | None = None
        self._error: Exception | None = None
        self._is_reading = True
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def end(self) -> None:
        """Read no further."""
        self._stop.set()
        self._thread.join()

    def note_loading(self, progress: LoadProgress) -> None:
        """How far the loader is: told once nothing is read ahead of it any more."""
        self.raise_error()
        with self._lock:
            self._loading = progress
            if self._is_reading:
                return
        self._progress(progress)

    def raise_error(self) -> None:
        """Raise what went wrong while reading, if anything."""
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            prefetch(
                self._weights,
                limit_bytes=self._limit,
                on_bytes=self._note_reading,
                stop=self._stop,
            )
            with self._lock:
                self._is_reading = False
                if self._loading is not None:
                    self._progress(self._loading)
        except Exception as error:  # noqa: BLE001 - raised again in the loader's thread
            self._error = error

    def _note_reading(self, num_bytes: int) -> None:
        self._progress(LoadProgress("prefetching", num_bytes, self._weights.num_bytes))


def _is_wanted(request: LoadRequest, weights: WeightFiles) -> bool:
    if request.prefetch != "auto":
        return request.prefetch == "on"
    file_system = network_file_system(request.path)
    if file_system is None or not weights.files:
        return False
    if not file_system.startswith("fuse") or is_kept(weights.files[0]):
        return True
    logger.info("%s keeps nothing of what is read: weights are not read ahead", file_system)
    return False
