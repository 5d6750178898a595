"""The processes of ranks 1 and up, as the engine sees them: started, told, watched, ended."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import StartupError
from tgwui_k8s.runtime.tensor_parallel.messages import Load, Message, encode

_MODULE = "tgwui_k8s.runtime.tensor_parallel.worker"
_GRACE_SECONDS = 10.0

logger = logging.getLogger(__name__)


def end_engine(rank: int, returncode: int) -> None:
    """End this process: without one of its ranks a model is no model.

    At once, and from whatever thread: the main one may wait for the dead rank inside a kernel.
    """
    logger.critical(
        "the process of tensor-parallel rank %d ended (%s), and the engine with it",
        rank,
        f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}",
    )
    os._exit(1)


class Workers:
    """Ranks 1 and up of one model. They end with this process, however it ends."""

    def __init__(self, size: int, on_death: Callable[[int, int], None] = end_engine) -> None:
        """Start `size - 1` processes; they wait for `load`. Raises `StartupError`.

        `on_death` is called, from another thread, with rank and exit code of one that ends untold.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="tgwui-ranks-")
        self._on_death = on_death
        self._is_closing = False
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                self.processes.append(_start(rank))
        except OSError as error:
            self.close()
            raise StartupError(f"cannot start a process for another GPU: {error}") from error
        for rank, process in enumerate(self.processes, 1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    @property
    def meeting_file(self) -> Path:
        """Where all ranks meet; nobody else may look into its folder."""
        return Path(self._folder.name) / "ranks"

    def load(self, request: LoadRequest, loader: str, device_type: str) -> None:
        """Have every rank load its share."""
        size = len(self.processes) + 1
        for rank, process in enumerate(self.processes, 1):
            message = Load(request, loader, device_type, rank, size, str(self.meeting_file))
            _write(process, encode(message))

    def tell(self, message: Message) -> None:
        """Have every rank do what this one is about to do."""
        content = encode(message)
        for process in self.processes:
            _write(process, content)

    def close(self, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        """End the processes, by force where they take longer, and wait for them."""
        self._is_closing = True
        for process in self.processes:
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for process in self.processes:
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        returncode = process.wait()
        if not self._is_closing:
            self._on_death(rank, returncode)


def _start(rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        # Transformers finds the GPU of a rank by this variable.
        env={**os.environ, "LOCAL_RANK": str(rank)},
    )


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    """Whether the process still reads is for its watcher to say."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.write(content)
            process.stdin.flush()
