"""The choice of what writes and reads the KV cache.

CUDA with Triton    kernels of ours, and decode steps as CUDA graphs (`cuda`)
else                PyTorch's operators (`paged_attention`)
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from tgwui_k8s.contract import KVLayout
from tgwui_k8s.runtime.cuda.backend import NumberedBackend
from tgwui_k8s.runtime.cuda.decode_graphs import DecodeGraphs
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.model_step import ModelStep, PagedBackend
from tgwui_k8s.runtime.paged_attention import PagedAttention

logger = logging.getLogger(__name__)

Forward = Callable[[ModelStep], torch.Tensor]


def choose_backend(
    kv: KVTensors, layout: KVLayout, forward: Forward
) -> tuple[PagedBackend, DecodeGraphs | None]:
    """What plans the steps, and what may replay some of them; says so where Triton is missing."""
    windows = [group.window for group in layout.groups]
    if not uses_kernels(kv.device):
        if kv.device.type == "cuda":
            logger.warning("attention runs without Triton, which is slower: it cannot be imported")
        return PagedAttention(kv, windows, layout.block_size), None
    from tgwui_k8s.runtime.cuda.attention import TritonAttention
    from tgwui_k8s.runtime.cuda.recorder import CudaRecorder

    backend = NumberedBackend(kv, windows, layout.block_size, TritonAttention)
    return backend, DecodeGraphs(backend, forward, CudaRecorder(kv.device))


def uses_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run there; ROCm calls its devices CUDA and is not tried."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
