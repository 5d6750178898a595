"""Memory that can still be taken on the device a model runs on."""

from __future__ import annotations

import torch

from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.runtime.limits import AvailableMemory, available_memory


def free_memory(request: LoadRequest, device: torch.device) -> AvailableMemory:
    """What is free on the device, within the limit that was set for us."""
    if device.type == "cpu":
        return available_memory(request.memory_limit_bytes)
    num_free, _ = torch.cuda.mem_get_info(device)
    num_free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if request.memory_limit_bytes is not None:
        num_free = min(num_free, request.memory_limit_bytes - torch.cuda.memory_allocated(device))
    return AvailableMemory(max(0, num_free), is_limited=True)
