"""Reading weight files ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tgwui_k8s.errors import BrokenModelError
from tgwui_k8s.storage import prefetch as module
from tgwui_k8s.storage.prefetch import prefetch, stretches
from tgwui_k8s.storage.safetensors_file import TensorEntry
from tgwui_k8s.storage.weights import WeightFiles

HEADER_BYTES = 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many stretches of several reads each, from small files."""
    monkeypatch.setattr(module, "STRETCH_BYTES", 256)
    monkeypatch.setattr(module, "READ_BYTES", 100)


@pytest.fixture
def pickles(tmp_path: Path) -> WeightFiles:
    """Three files of 1000, 0 and 2500 bytes that do not tell what is in them."""
    return _files(tmp_path, {f"{number}.bin": size for number, size in enumerate((1000, 0, 2500))})


def read(
    weights: WeightFiles,
    on_bytes: Callable[[int], None] = lambda _: None,
    limit_bytes: int | None = None,
) -> int:
    """Read ahead to the end."""
    return prefetch(weights, limit_bytes=limit_bytes, on_bytes=on_bytes, stop=threading.Event())


def test_reads_every_byte_and_says_so(pickles: WeightFiles) -> None:
    """Progress only grows and ends at the total."""
    seen: list[int] = []
    assert read(pickles, seen.append) == 3500
    assert seen == sorted(seen)
    assert seen[-1] == 3500


def test_layers_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Files hold them by name, layer 10 before layer 2; all bytes are read once, headers too."""
    names = ["head", "layers.0.a", "layers.0.b", "layers.10.a", "layers.2.a"]
    weights = _files(tmp_path, {"model.safetensors": HEADER_BYTES + 100 * len(names)})
    (file,) = weights.files
    tensors = {
        name: TensorEntry(name, "U8", (100,), file, HEADER_BYTES + 100 * number, 100)
        for number, name in enumerate(names)
    }
    found = list(stretches(WeightFiles("safetensors", (file,), tensors, weights.num_bytes)))
    assert [(begin, length) for _, begin, length in found] == [
        (0, 256),  # the header, the head and most of layer 0
        (256, HEADER_BYTES + 300 - 256),
        (HEADER_BYTES + 400, 100),
        (HEADER_BYTES + 300, 100),
    ]


def test_reads_no_more_than_the_memory_limit(pickles: WeightFiles) -> None:
    """What would push earlier files out of the page cache again is left alone."""
    assert read(pickles, limit_bytes=1200) == 1200


def test_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A stale handle or a missing permission is one clear error."""
    target = tmp_path / "folder.safetensors"
    target.mkdir()
    with pytest.raises(BrokenModelError, match=r"cannot read .*folder\.safetensors"):
        read(WeightFiles("bin", (target,), {}, 1))


def test_an_error_of_the_listener_ends_the_reading(pickles: WeightFiles) -> None:
    """Whoever watches the progress can stop it by raising."""

    def refuse(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        read(pickles, refuse)


def test_reading_ends_when_it_is_told_to(pickles: WeightFiles) -> None:
    """A loader that has finished, or failed, waits for no more than the pieces under way."""
    stop = threading.Event()
    num_bytes = prefetch(pickles, limit_bytes=None, on_bytes=lambda _: stop.set(), stop=stop)
    assert num_bytes < 3500


def _files(folder: Path, sizes: dict[str, int]) -> WeightFiles:
    paths = []
    for name, size in sizes.items():
        paths.append(folder / name)
        paths[-1].write_bytes(bytes(size))
    return WeightFiles("bin", tuple(paths), {}, sum(sizes.values()))
