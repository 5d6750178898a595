"""Reading files into a device's memory, with the host's in its place."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.runtime import staged_reads
from tgwui_k8s.runtime.staged_reads import NUM_STREAMS, StagedReads

CONTENT = os.urandom(10_000)
HOST = torch.device("cpu")


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_reads, "PIECE_BYTES", 64)


def test_parts_of_any_size_arrive_whole(file: Path) -> None:
    """From several threads at once, through as many buffers as there are streams."""
    threads: set[str] = set()
    read: list[int] = []

    def note(num_bytes: int) -> None:
        threads.add(threading.current_thread().name)
        read.append(num_bytes)

    parts = [(0, 0), (0, 1), (1, 64), (63, 65), (100, 6000), (0, 10_000), (9_999, 1)]
    with file.open("rb") as opened, ThreadPoolExecutor(4) as pool:
        reads = StagedReads(HOST, note)
        found = pool.map(lambda part: reads.read(opened.fileno(), *part, file), parts)
        contents = [bytes(tensor.tolist()) for tensor in found]
        reads.close()
    assert contents == [CONTENT[offset : offset + size] for offset, size in parts]
    assert sum(read) == sum(size for _, size in parts)
    assert 1 <= len(threads) <= NUM_STREAMS
    assert all(name.startswith("weights") for name in threads)


def test_short_reads_are_gone_on_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give fewer bytes than were asked for."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, offset: preadv(fd, [parts[0][:7]], offset))
    with file.open("rb") as opened:
        reads = StagedReads(HOST, lambda _: None)
        tensor = reads.read(opened.fileno(), 5, 300, file)
        reads.close()
    assert bytes(tensor.tolist()) == CONTENT[5:305]


def test_a_file_that_became_shorter_is_named(file: Path) -> None:
    """Instead of leaving the rest of the weights as it was in memory."""
    with file.open("rb") as opened:
        reads = StagedReads(HOST, lambda _: None)
        with pytest.raises(BrokenModelError, match=r"weights became shorter"):
            reads.read(opened.fileno(), 9_000, 2_000, file)
        reads.close()
