"""Reading weight files ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage import prefetch as module
from tgwui_k8s.storage.prefetch import prefetch


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of 1000, 0 and 2500 bytes."""
    paths = []
    for number, size in enumerate((1000, 0, 2500)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(bytes(size))
        paths.append(path)
    return paths


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many stretches of several reads each, from small files."""
    monkeypatch.setattr(module, "STRETCH_BYTES", 256)
    monkeypatch.setattr(module, "READ_BYTES", 100)


def test_reads_every_byte_and_says_so(files: list[Path]) -> None:
    """Progress only grows and ends at the total."""
    seen: list[int] = []
    assert prefetch(files, limit_bytes=None, on_bytes=seen.append) == 3500
    assert seen == sorted(seen)
    assert seen[-1] == 3500


def test_reads_no_more_than_the_memory_limit(files: list[Path]) -> None:
    """What would push earlier files out of the page cache again is left alone."""
    assert prefetch(files, limit_bytes=1200, on_bytes=lambda _: None) == 1200


def test_names_a_file_that_cannot_be_read(files: list[Path], tmp_path: Path) -> None:
    """A stale handle or a missing permission is one clear error."""
    target = tmp_path / "folder.safetensors"
    target.mkdir()
    with pytest.raises(BrokenModelError, match=r"cannot read .*folder\.safetensors"):
        prefetch([*files, target], limit_bytes=None, on_bytes=lambda _: None)


def test_an_error_of_the_listener_ends_the_reading(files: list[Path]) -> None:
    """Whoever watches the progress can stop it by raising."""

    def refuse(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prefetch(files, limit_bytes=None, on_bytes=refuse)
