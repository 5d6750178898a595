"""Read files into the page cache ahead of use: many sequential streams at once.

A network file system such as EFS gives one stream a fraction of what it gives a client in total,
and a mapped file is read page by page on top of that. So the weights are read first, in parallel
and in large pieces; mapping or reading them afterwards is a copy from memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tgwui_k8s.errors import BrokenModelError

NUM_STREAMS = 16
STRETCH_BYTES = 128 << 20
"""What one stream reads in one go: long enough that the server's read-ahead works."""
READ_BYTES = 4 << 20

PROBE_BYTES = 8 << 20
"""Enough to tell a file system's speed from that of memory."""

Stretch = tuple[Path, int, int]


def prefetch(
    files: Sequence[Path], *, limit_bytes: int | None, on_bytes: Callable[[int], None]
) -> int:
    """Read the files, at most `limit_bytes` of them, and return how many bytes were read.

    What does not fit the memory limit is left out: it would push the first files out again.
    `on_bytes` is called with the number of bytes read so far, from one thread at a time.
    Raises `BrokenModelError` when a file cannot be read.
    """
    num_read = 0
    lock = threading.Lock()
    stop = threading.Event()

    def read(stretch: Stretch) -> None:
        nonlocal num_read
        for num_bytes in _read_stretch(*stretch):
            with lock:
                num_read += num_bytes
                on_bytes(num_read)
            if stop.is_set():
                return

    with ThreadPoolExecutor(NUM_STREAMS, thread_name_prefix="prefetch") as pool:
        try:
            for _ in pool.map(read, _cut_into_stretches(files, limit_bytes)):
                pass
        finally:
            stop.set()
    return num_read


def is_kept(file: Path) -> bool:
    """Whether what is read of a file stays in memory until it is opened again.

    NFS keeps it; FUSE file systems do only if they say so, and all others would be read twice. The
    beginning is read twice here: if the second time is not much faster, it came from the same
    place, or is so fast that nothing is to be gained. Raises `BrokenModelError`.
    """
    length = min(PROBE_BYTES, file.stat().st_size)
    first, second = (_seconds_to_read(file, length) for _ in range(2))
    return second < first / 2


def _seconds_to_read(file: Path, length: int) -> float:
    started = time.perf_counter()
    for _ in _read_stretch(file, 0, length):
        pass
    return time.perf_counter() - started


def _cut_into_stretches(files: Iterable[Path], limit_bytes: int | None) -> list[Stretch]:
    stretches = []
    left = limit_bytes
    for file in files:
        size = file.stat().st_size
        if left is not None:
            size = min(size, left)
            left -= size
        stretches += [
            (file, start, min(STRETCH_BYTES, size - start))
            for start in range(0, size, STRETCH_BYTES)
        ]
    return stretches


def _read_stretch(path: Path, start: int, length: int) -> Iterator[int]:
    """Read a part of a file and drop it; yields the length of every piece."""
    buffer = memoryview(bytearray(min(READ_BYTES, length)))
    end = start + length
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while start < end:
                num_bytes = os.preadv(descriptor, [buffer[: end - start]], start)
                if num_bytes == 0:
                    raise BrokenModelError(f"{path} became shorter while it was read")
                start += num_bytes
                yield num_bytes
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror}") from error
