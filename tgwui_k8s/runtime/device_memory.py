"""Memory that can still be taken on the device a model runs on, and the limit that is kept.

Several engines share a GPU when each has a limit: a share of the card (`--gpu-memory-fraction`) or
a size (`--memory-limit`). The plan stays below it, and PyTorch's allocator refuses to go beyond.
"""

from __future__ import annotations

import torch

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import StartupError, UnsupportedModelError
from tgwui_k8s.runtime.limits import AvailableMemory, available_memory

GPU_MEMORY_FRACTION = "gpu_memory_fraction"
"""The option of loaders that use this module."""

CONTEXT_BYTES = 512 << 20
"""What a process takes of a GPU beside PyTorch's tensors: the driver's context and libraries."""


def free_memory(request: LoadRequest, device: torch.device) -> AvailableMemory:
    """What is free on the device, within the limit that was set for us.

    Raises `UnsupportedModelError` for a share of a GPU where none is used.
    """
    if device.type == "cpu":
        if GPU_MEMORY_FRACTION in request.options:
            raise UnsupportedModelError(
                "--gpu-memory-fraction needs a GPU, and the model runs on the CPU; limit its "
                "memory with --memory-limit"
            )
        return available_memory(request.memory_limit_bytes)
    num_free, _ = torch.cuda.mem_get_info(device)
    num_free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limit = _tensor_limit(request, device)
    if limit is not None:
        num_free = min(num_free, limit - torch.cuda.memory_allocated(device))
    return AvailableMemory(max(0, num_free), is_limited=True)


def keep_within_limit(request: LoadRequest, device: torch.device) -> None:
    """Let the allocator of a GPU fail rather than take what belongs to another engine."""
    if device.type == "cpu":
        return
    limit = _tensor_limit(request, device)
    if limit is not None:
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit) / total), device)


def _tensor_limit(request: LoadRequest, device: torch.device) -> int | None:
    """Bytes that tensors may take; None without a limit."""
    _, total = torch.cuda.mem_get_info(device)
    limits = [] if request.memory_limit_bytes is None else [request.memory_limit_bytes]
    if share := request.options.get(GPU_MEMORY_FRACTION):
        limits.append(int(total * _fraction(share)))
    return min(limits) - CONTEXT_BYTES if limits else None


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise StartupError(f"{GPU_MEMORY_FRACTION}={text[:100]} is no number above 0 and up to 1")
    return fraction
