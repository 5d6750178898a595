"""The choice of what writes and reads the KV cache.

CUDA with Triton, Ampere and later    kernels of ours, decode steps as CUDA graphs (`cuda`)
else                                  PyTorch's operators (`paged_attention`)
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

_LEAST_CAPABILITY = (8, 0)

Forward = Callable[[ModelStep], torch.Tensor]


def choose_backend(
    kv: KVTensors, layout: KVLayout, forward: Forward
) -> tuple[PagedBackend, DecodeGraphs | None]:
    """What plans the steps, and what may replay some of them; says so where a GPU gets less."""
    windows = [group.window for group in layout.groups]
    if not uses_kernels(kv.device):
        if kv.device.type == "cuda":
            logger.warning(
                "attention runs without Triton's kernels and CUDA graphs, which is slower: they "
                "need the package triton and a GPU of compute capability 8.0"
            )
        return PagedAttention(kv, windows, layout.block_size), None
    from tgwui_k8s.runtime.cuda.attention import TritonAttention
    from tgwui_k8s.runtime.cuda.recorder import CudaRecorder

    backend = NumberedBackend(kv, windows, layout.block_size, TritonAttention)
    return backend, DecodeGraphs(backend, forward, CudaRecorder(kv.device))


def uses_kernels(device: torch.device) -> bool:
    """Whether the kernels run there: with Triton, on tensor cores of Ampere and later.

    ROCm calls its devices CUDA and has not been tried.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY and _has_triton()


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
