"""Numbers between the host and a device, without waiting for what the device computes.

A copy from ordinary memory may wait until the device is idle, one from page-locked memory does
not. PyTorch keeps freed page-locked memory and gives it out again only when the copy is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def is_host(device: torch.device) -> bool:
    """True where a number is at hand when it has been computed, and asking for it costs nothing."""
    return device.type == "cpu"


def to_device(numbers: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host numbers (a list, a NumPy array) as a tensor on the device."""
    tensor = torch.as_tensor(numbers, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def to_host(arrays: Sequence[Tensor], device: torch.device) -> Callable[[], list[NDArray[Any]]]:
    """Begin to copy what the device has been told to compute; the result waits for it.

    Everything travels as float64, in which token ids and float32 values are exact.
    """
    parts = [array.double().flatten() for array in arrays]
    together = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=device)
    shapes = [array.shape for array in arrays]
    if device.type != "cuda":
        return lambda: _take_apart(together, shapes)
    landed = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
    landed.copy_(together, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[NDArray[Any]]:
        done.synchronize()
        return _take_apart(landed, shapes)

    return wait


def _take_apart(together: Tensor, shapes: Sequence[torch.Size]) -> list[NDArray[Any]]:
    numbers = together.cpu().numpy()
    ends = np.cumsum([shape.numel() for shape in shapes])
    return [
        numbers[end - shape.numel() : end].reshape(shape)
        for end, shape in zip(ends, shapes, strict=True)
    ]
