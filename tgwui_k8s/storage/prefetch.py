"""Read weights into the page cache ahead of use: many sequential streams at once.

A network file system such as EFS gives one stream a fraction of what it gives a client in total,
and a mapped file is read page by page on top of that. So the weights are read in parallel and in
large pieces, in the order in which loaders want them; mapping or reading them closely behind is a
copy from memory.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage.safetensors_file import TensorEntry
from tgwui_k8s.storage.weights import WeightFiles

NUM_STREAMS = 16
STRETCH_BYTES = 16 << 20
"""What one stream reads in one go: long enough for the server's read-ahead, and short enough that
all streams together are never far from where the loader is."""
READ_BYTES = 4 << 20

PROBE_BYTES = 8 << 20
"""Enough to tell a file system's speed from that of memory."""

Stretch = tuple[Path, int, int]
"""A file, where to begin, and how many bytes."""


def prefetch(
    weights: WeightFiles,
    *,
    limit_bytes: int | None,
    on_bytes: Callable[[int], None],
    stop: threading.Event,
) -> int:
    """Read the weights, at most `limit_bytes` of them, and return how many bytes were read.

    What does not fit the memory limit is left out: it would push the first ones out again.
    `on_bytes` is called with the number of bytes read so far, from one thread at a time; an error
    of it ends the reading, and so does `stop`. Raises `BrokenModelError` when a file cannot be
    read.
    """
    num_read = 0
    lock = threading.Lock()

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
            for _ in pool.map(read, _within(limit_bytes, stretches(weights))):
                pass
        finally:
            stop.set()
    return num_read


def stretches(weights: WeightFiles) -> Iterator[Stretch]:
    """All bytes of the files once: layer after layer, where the tensors' names are known."""
    for file, begin, length in _runs(weights):
        for offset in range(0, length, STRETCH_BYTES):
            yield file, begin + offset, min(STRETCH_BYTES, length - offset)


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


def _runs(weights: WeightFiles) -> list[Stretch]:
    """Contiguous bytes that are wanted together, in order; neighbours are one run."""
    if not weights.tensors:
        return [(file, 0, file.stat().st_size) for file in weights.files]
    runs: list[Stretch] = []
    entries = sorted(weights.tensors.values(), key=_layer_order)
    header_bytes = {e.file: e.offset for e in sorted(entries, key=lambda e: -e.offset)}
    for entry in entries:
        is_first = entry.offset == header_bytes[entry.file]
        begin, end = 0 if is_first else entry.offset, entry.offset + entry.num_bytes
        if runs and runs[-1][0] == entry.file and sum(runs[-1][1:]) == begin:
            begin = runs.pop()[1]
        runs.append((entry.file, begin, end - begin))
    return runs


def _layer_order(entry: TensorEntry) -> list[str | int]:
    """Layer 2 comes before layer 10: text and numbers of the name in turn."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", entry.name)]


def _within(limit_bytes: int | None, wanted: Iterable[Stretch]) -> Iterator[Stretch]:
    left = limit_bytes
    for file, begin, length in wanted:
        if left is not None:
            length = min(length, left)
            left -= length
        if length:
            yield file, begin, length


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
