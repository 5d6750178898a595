"""Parts of files read straight into the memory of a device, by many streams at once.

A network file system gives one stream a fraction of what it gives a client in total. Every stream
has one page-locked buffer, which the device copies from by itself while the other streams read, so
a model of any size takes `NUM_STREAMS` buffers of host memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime.transfers import is_host

NUM_STREAMS = 16
PIECE_BYTES = 8 << 20

OnRead = Callable[[int], None]
"""Gets the number of bytes just read, from any thread."""


def read_into(
    buffer: memoryview, descriptor: int, offset: int, file: Path, on_read: OnRead
) -> None:
    """Fill a buffer from an open file; raises `BrokenModelError` where the file ends too early."""
    position = 0
    while position < len(buffer):
        piece = buffer[position : position + PIECE_BYTES]
        num_bytes = os.preadv(descriptor, [piece], offset + position)
        if num_bytes == 0:
            raise BrokenModelError(f"{file} became shorter while it was read")
        position += num_bytes
        on_read(num_bytes)


class StagedReads:
    """The streams to one device. Call `close` when all is read."""

    def __init__(self, device: torch.device, on_read: OnRead) -> None:
        self._device = device
        self._on_read = on_read
        self._buffers = threading.local()
        self._streams = ThreadPoolExecutor(NUM_STREAMS, thread_name_prefix="weights")

    def read(self, descriptor: int, offset: int, num_bytes: int, file: Path) -> torch.Tensor:
        """These bytes of an open file, uint8 [num_bytes], on the device; from any thread.

        Raises `BrokenModelError` where the file ends too early, `OSError` where it cannot be read.
        """
        target = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

        def read_piece(begin: int) -> None:
            piece = target[begin : begin + PIECE_BYTES]
            buffer = self._buffer()[: len(piece)]
            read_into(buffer.numpy().data, descriptor, offset + begin, file, self._on_read)
            self._upload(buffer, piece)

        for _ in self._streams.map(read_piece, range(0, num_bytes, PIECE_BYTES)):
            pass
        return target

    def close(self) -> None:
        """Give back threads and buffers; what was not begun is not read any more."""
        self._streams.shutdown(cancel_futures=True)

    def _upload(self, buffer: torch.Tensor, piece: torch.Tensor) -> None:
        """Copy, and wait until the buffer may be filled again.

        On the stream that everything else of the loading uses: memory that was given back there,
        and came to us, may still be read by what it was told before.
        """
        piece.copy_(buffer, non_blocking=True)
        if not is_host(self._device):
            with torch.cuda.device(self._device):
                copied = torch.cuda.Event()
                copied.record()
                copied.synchronize()

    def _buffer(self) -> torch.Tensor:
        """This thread's buffer."""
        if not hasattr(self._buffers, "own"):
            self._buffers.own = torch.empty(
                PIECE_BYTES, dtype=torch.uint8, pin_memory=not is_host(self._device)
            )
        own: torch.Tensor = self._buffers.own
        return own
