"""Tensors of a checkpoint as the native decoder packs them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tgwui_k8s.runtime.tensor_reader import TensorReader
from tgwui_k8s.storage.safetensors_file import read_header


def reader_of(folder: Path, values: np.ndarray) -> TensorReader:
    path = folder / "model.safetensors"
    save_file({"it": values}, path)
    return TensorReader(read_header(path))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_are_rounded_to_the_nearest_bfloat16(tmp_path: Path, dtype: type) -> None:
    """As torch rounds them, infinities and subnormals included; NaN stays NaN."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    values = bits.view(np.float16).astype(dtype)
    if dtype is np.float32:
        with np.errstate(invalid="ignore"):
            values = values * np.float32(1.001)  # more digits than bfloat16 has
    rounded = reader_of(tmp_path, values).bfloat16("it")
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    got = (rounded.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rounding_takes_little_more_memory_than_its_result(tmp_path: Path, dtype: type) -> None:
    """Memory is planned for the weights, not for what a tensor is on its way there."""
    reader = reader_of(tmp_path, np.ones((4096, 2048), dtype))
    tracemalloc.start()
    try:
        rounded = reader.bfloat16("it")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * rounded.nbytes
