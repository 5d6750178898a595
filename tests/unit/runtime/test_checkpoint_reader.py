"""Reading tensors from files on demand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime import checkpoint_reader, staged_reads
from tgwui_k8s.runtime.checkpoint_reader import LazyTensor, open_checkpoint
from tgwui_k8s.storage.weights import find_weights

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "vector": torch.linspace(0, 1, 7),
    "number": torch.tensor(3.5, dtype=torch.float16),
    "nothing": torch.zeros(0, 5),
    "flags": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file with tensors of many kinds."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("is_host", [True, False])
def test_every_tensor_is_read_as_it_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_host: bool
) -> None:
    """Types, shapes and bytes, in pieces of any size, staged or not; the count ends at the sum."""
    monkeypatch.setattr(checkpoint_reader, "is_host", lambda _: is_host)
    monkeypatch.setattr(staged_reads, "PIECE_BYTES", 5)
    seen: list[int] = []
    with open_checkpoint(find_weights(folder), seen.append) as tensors:
        assert set(tensors) == set(TENSORS)
        assert seen == []
        for name, expected in TENSORS.items():
            actual = tensors[name][...]
            assert actual.dtype == expected.dtype
            assert torch.equal(actual, expected)
    assert seen[-1] == sum(tensor.nbytes for tensor in TENSORS.values())


def test_pickled_tensors_are_copied_out_of_their_file(tmp_path: Path) -> None:
    """What was read stays when the file goes."""
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file)
    with open_checkpoint(find_weights(tmp_path), lambda _: None) as tensors:
        matrix = tensors["matrix"][...]
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(matrix, TENSORS["matrix"])


def test_files_are_closed_again(folder: Path) -> None:
    """Whether loading succeeds or not."""
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(find_weights(folder), lambda _: None):
        pass
    with pytest.raises(KeyError), open_checkpoint(find_weights(folder), lambda _: None):
        raise KeyError
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("is_host", [True, False])
def test_the_first_error_of_a_tensor_is_the_one_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_host: bool
) -> None:
    """Even where the library that asked for it reports something vaguer."""
    monkeypatch.setattr(checkpoint_reader, "is_host", lambda _: is_host)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)

    def report_vaguely(tensors: dict[str, LazyTensor]) -> None:
        try:
            tensors["matrix"][...]
        except BrokenModelError as error:
            raise RuntimeError("something about conversions") from error

    with (
        pytest.raises(BrokenModelError, match="became shorter"),
        open_checkpoint(find_weights(folder), lambda _: None) as tensors,
    ):
        report_vaguely(tensors)


def test_a_disk_error_names_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale NFS handle, for instance."""

    def fail(*_: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "preadv", fail)
    with (
        pytest.raises(BrokenModelError, match="Stale file handle"),
        open_checkpoint(find_weights(folder), lambda _: None) as tensors,
    ):
        tensors["matrix"][...]


def test_an_exotic_type_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of reading something else."""
    monkeypatch.delitem(checkpoint_reader._TORCH_DTYPES, "BF16")
    with (
        pytest.raises(UnsupportedModelError, match=r"'matrix' .* BF16"),
        open_checkpoint(find_weights(folder), lambda _: None) as tensors,
    ):
        tensors["matrix"][...]


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    """A list, or an empty checkpoint."""
    for content in ([1, 2], {}, {"epoch": 3}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with (
            pytest.raises(BrokenModelError, match="state dict"),
            open_checkpoint(find_weights(tmp_path), lambda _: None),
        ):
            pass
