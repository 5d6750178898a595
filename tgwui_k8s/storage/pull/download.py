"""All parts of all files, several at a time, into a workspace; every whole file is checked."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tgwui_k8s.errors import DownloadError
from tgwui_k8s.storage.pull.checksum import matches
from tgwui_k8s.storage.pull.ranges import read_range
from tgwui_k8s.storage.pull.snapshot import RemoteFile, Source
from tgwui_k8s.storage.pull.workspace import Workspace, sync

_REPORT_SECONDS = 1.0

OnProgress = Callable[[int], None]
"""Called about once a second with the bytes that are there, those of earlier runs included."""


@dataclass(frozen=True, slots=True)
class _Part:
    file: RemoteFile
    start: int
    end: int


class Download:
    """One run; `run` may be called once."""

    def __init__(self, source: Source, workspace: Workspace, files: Sequence[RemoteFile]) -> None:
        self._source = source
        self._workspace = workspace
        self._files = files
        self._parts: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._num_bytes = 0
        self._error: BaseException | None = None

    def run(self, num_connections: int, on_progress: OnProgress) -> None:
        """Fetch what is missing. Raises `DownloadError`, or `OSError` for the disk's reasons.

        A file that is not what its checksum says is fetched once more, and then given up. Left by
        an exception, be it a signal's, it stops writing soon and waits for no connection.
        """
        for file in self._files:
            self._prepare(file)
        # Daemons: a signal must not wait for a connection that hangs.
        workers = [
            threading.Thread(target=self._work, name=f"download-{i}", daemon=True)
            for i in range(num_connections)
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(_REPORT_SECONDS)
                    on_progress(self._num_bytes)
        finally:
            self._stop.set()
        if self._error is not None:
            raise self._error
        for file in self._files:
            if not self._workspace.is_checked(file):
                self._fetch_again(file)
        on_progress(self._num_bytes)

    def _prepare(self, file: RemoteFile) -> None:
        """Make the file at its full length, and line up what is missing of it."""
        path = self._workspace.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            os.ftruncate(descriptor, file.num_bytes)
        finally:
            os.close(descriptor)
        missing = self._workspace.missing_parts(file)
        self._num_bytes += file.num_bytes - sum(end - start for start, end in missing)
        for start, end in missing:
            self._parts.put(_Part(file, start, end))
        if not missing and not self._workspace.is_checked(file):
            self._check(file)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._fetch(self._parts.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._error = self._error or error
            self._stop.set()

    def _fetch(self, part: _Part) -> None:
        file = part.file
        descriptor = os.open(self._workspace.path(file), os.O_WRONLY | os.O_CLOEXEC)
        try:

            def write(piece: bytes, offset: int) -> None:
                view = memoryview(piece)
                while view:
                    num_written = os.pwrite(descriptor, view, offset)
                    view, offset = view[num_written:], offset + num_written
                with self._counting:
                    self._num_bytes += len(piece)

            read_range(
                lambda: self._source.locate(file),
                part.start,
                part.end,
                etag=file.etag,
                on_bytes=write,
                stop=self._stop,
            )
        finally:
            # Network file systems report a full disk here at the latest.
            os.close(descriptor)
        if not self._stop.is_set() and self._workspace.note_part(file, part.start):
            self._check(file)

    def _check(self, file: RemoteFile) -> None:
        """Note a file that is right; one that is not begins anew, once the others are done."""
        path = self._workspace.path(file)
        if file.checksum is None or matches(path, file.checksum):
            sync(path)
            self._workspace.note_checked(file)
        else:
            self._workspace.forget(file)
            with self._counting:
                self._num_bytes -= file.num_bytes

    def _fetch_again(self, file: RemoteFile) -> None:
        """A second and last time, over one connection."""
        self._stop.clear()
        try:
            for start, end in self._workspace.missing_parts(file):
                self._fetch(_Part(file, start, end))
        finally:
            self._stop.set()
        if not self._workspace.is_checked(file):
            raise DownloadError(
                f"{file.path} is not what its checksum says, twice: the source or the way to it "
                "is broken"
            )
