"""Tensors of a checkpoint, read from its files when they are asked for and not before.

Transformers takes a state dict whose values it opens with `[...]` (that is how it reads
safetensors slices), from several threads. Reading into memory of our own instead of mapping the
files keeps inference independent of the page cache and of a network file system. For a GPU, the
tensors of safetensors files are read into its memory, not into the host's.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import torch

from tgwui_k8s.errors import BrokenModelError, UnsupportedModelError
from tgwui_k8s.runtime.staged_reads import OnRead, StagedReads, read_into
from tgwui_k8s.runtime.transfers import is_host
from tgwui_k8s.storage.safetensors_file import DOWNLOAD_AGAIN, TensorEntry
from tgwui_k8s.storage.weights import WeightFiles

HOST = torch.device("cpu")

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class LazyTensor(Protocol):
    """A tensor that is read when it is indexed with `...`."""

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        """Read it."""
        ...


@contextmanager
def open_checkpoint(
    weights: WeightFiles,
    on_bytes: Callable[[int], None],
    device: torch.device = HOST,
) -> Iterator[dict[str, LazyTensor]]:
    """The tensors by name; they can be read until the context ends.

    Those of safetensors files come on `device`, others on the host. `on_bytes` is called with the
    number of bytes read so far, from one thread at a time.
    Raises `BrokenModelError` for files that cannot be read.
    """
    readings = _Readings(on_bytes)
    descriptors: dict[Path, int] = {}
    try:
        if weights.format == "bin":
            yield {
                name: _LoadedTensor(tensor, readings)
                for file in weights.files
                for name, tensor in _load_pickle(file).items()
            }
        else:
            for file in weights.files:
                descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            with closing(_reads_to(device, readings.add)) as reads:
                yield {
                    name: _FileTensor(entry, descriptors[entry.file], reads, readings)
                    for name, entry in weights.tensors.items()
                }
    except Exception as error:
        # Transformers turns an error of a tensor into a report of its own; the cause matters.
        cause = readings.failure or error
        if isinstance(cause, OSError):
            raise BrokenModelError(f"cannot read the weights: {cause}") from error
        if cause is error:
            raise
        raise cause from error
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


class _Readings:
    """How much was read, and what went wrong first."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self.failure: Exception | None = None
        self._on_bytes = on_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes
            self._on_bytes(self._num_bytes)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the error of whoever reads in this context."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            raise


class _Reads(Protocol):
    """Reads parts of open files into memory; see `StagedReads`."""

    def read(self, descriptor: int, offset: int, num_bytes: int, file: Path) -> torch.Tensor:
        """These bytes, uint8 [num_bytes]."""
        ...

    def close(self) -> None:
        """Read no further."""
        ...


class _HostReads:
    """Reads into memory of the host, in the thread that asks."""

    def __init__(self, on_read: OnRead) -> None:
        self._on_read = on_read

    def read(self, descriptor: int, offset: int, num_bytes: int, file: Path) -> torch.Tensor:
        tensor = torch.empty(num_bytes, dtype=torch.uint8)
        read_into(tensor.numpy().data, descriptor, offset, file, self._on_read)
        return tensor

    def close(self) -> None:
        pass


def _reads_to(device: torch.device, on_read: OnRead) -> _Reads:
    return _HostReads(on_read) if is_host(device) else StagedReads(device, on_read)


class _FileTensor:
    """A tensor of a safetensors file."""

    def __init__(
        self, entry: TensorEntry, descriptor: int, reads: _Reads, readings: _Readings
    ) -> None:
        self._entry = entry
        self._descriptor = descriptor
        self._reads = reads
        self._readings = readings

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        with self._readings.watch():
            return self._read(self._entry)

    def _read(self, entry: TensorEntry) -> torch.Tensor:
        dtype = _TORCH_DTYPES.get(entry.dtype)
        if dtype is None:
            raise UnsupportedModelError(
                f"tensor '{entry.name}' of {entry.file.name} has type {entry.dtype}, which this "
                "loader cannot read"
            )
        tensor = self._reads.read(self._descriptor, entry.offset, entry.num_bytes, entry.file)
        return tensor.view(dtype).view(entry.shape)


class _LoadedTensor:
    """A tensor of a pickled checkpoint, mapped; copied so that the mapping can go."""

    def __init__(self, tensor: torch.Tensor, readings: _Readings) -> None:
        self._tensor = tensor
        self._readings = readings

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        self._readings.add(self._tensor.nbytes)
        return self._tensor.clone()


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors only: a checkpoint cannot run code here."""
    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BrokenModelError(
            f"{path.name} is no checkpoint that can be loaded safely ({reason}); convert it to "
            f"safetensors, or {DOWNLOAD_AGAIN} ({path})"
        ) from error
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise BrokenModelError(f"{path.name} holds no state dict; {DOWNLOAD_AGAIN} ({path})")
    return tensors
