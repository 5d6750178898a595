"""Tensors of safetensors files as NumPy arrays, without torch."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.storage.safetensors_file import TensorEntry

ITEM_TYPES = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32}
"""By safetensors' names; bf16 as its bits."""

_NUM_ROUNDED = 1 << 16
"""Numbers rounded at a time: what that takes beside them stays in the processor's caches."""


class TensorReader:
    """Tensors of safetensors files by name, read through memory maps."""

    def __init__(self, tensors: Mapping[str, TensorEntry]) -> None:
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def bfloat16(self, name: str) -> npt.NDArray[np.uint16]:
        """A tensor as bf16 bits; a view of the file where it is stored so."""
        values = self._read(name)
        if values.dtype == np.uint16:
            return values
        rounded = np.empty(values.shape, np.uint16)
        source, target = values.reshape(-1), rounded.reshape(-1)
        for first in range(0, len(source), _NUM_ROUNDED):
            part = slice(first, first + _NUM_ROUNDED)
            target[part] = round_to_bfloat16(source[part].astype(np.float32))
        return rounded

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32; always a copy."""
        values = self._read(name)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(np.float32)

    def int32(self, name: str) -> npt.NDArray[np.int32]:
        """A tensor of integers; a view of the file."""
        return self._read(name)

    def num_bytes(self, name: str) -> int:
        """Size of a tensor in its file."""
        return self._tensors[name].num_bytes

    def _read(self, name: str) -> npt.NDArray[Any]:
        entry = self._tensors[name]
        if entry.file not in self._maps:
            with entry.file.open("rb") as file:
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        item_type = np.dtype(ITEM_TYPES[entry.dtype])
        count = entry.num_bytes // item_type.itemsize
        values = np.frombuffer(self._maps[entry.file], item_type, count, entry.offset)
        return values.reshape(entry.shape)


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
