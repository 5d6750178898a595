"""How much memory the KV cache may take.

    limit (cgroup, device or --memory-limit)
    ├── held already: weights, libraries, other processes of the container
    ├── workspace: activations of the largest step, logits, the sampler's copies
    └── the rest: KV cache

Where no limit is set on a CPU, the memory is shared with whatever else runs on the machine: the
cache takes at most half of what is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.contract import LoadRequest
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.limits import available_memory

_BASE_WORKSPACE = 256 << 20
"""Allocator slack, attention masks, library buffers."""
_FLOAT_BYTES = 4
_LOGIT_COPIES = 6
"""Logits, sorted values, sort indices (twice as wide), probabilities, one spare."""
_MIN_LOGIT_ROWS = 256
"""Prompt logprobs are computed for so many tokens at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """The largest step, and the sizes of the model that decide how much room it needs."""

    num_tokens: int
    num_sequences: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    element_bytes: int

    @property
    def workspace_bytes(self) -> int:
        """Memory that the step takes for a moment: an upper estimate.

        Per token: residual, its norm, queries, keys, values and attention output (8 × hidden) and
        the feed-forward layer's parts (3 × intermediate); per row of logits several float32
        copies.
        """
        per_token = (8 * self.hidden_size + 3 * self.intermediate_size) * self.element_bytes
        num_rows = max(self.num_sequences, _MIN_LOGIT_ROWS)
        logits = num_rows * self.vocab_size * _FLOAT_BYTES * _LOGIT_COPIES
        return _BASE_WORKSPACE + self.num_tokens * per_token + logits


def check_weights_fit(num_bytes: int, request: LoadRequest, device: torch.device) -> None:
    """Before reading them: raise `NotEnoughMemoryError` when the weights alone are too much."""
    num_free, _ = _free_bytes(request, device)
    if num_bytes > num_free:
        raise NotEnoughMemoryError(
            f"the weights take {format_byte_size(num_bytes)}, but {format_byte_size(num_free)} are "
            "free; raise the memory limit or take a smaller or quantized model"
        )


def kv_cache_budget(request: LoadRequest, device: torch.device, workspace: int) -> int:
    """Bytes for the KV cache, once the weights are loaded; may be negative.

    Raises `NotEnoughMemoryError` when the size that was asked for is not there.
    """
    num_free, is_limited = _free_bytes(request, device)
    num_left = num_free - workspace
    if request.kv_cache_bytes is not None:
        if request.kv_cache_bytes > num_left:
            raise NotEnoughMemoryError(
                f"a KV cache of {format_byte_size(request.kv_cache_bytes)} was asked for, but "
                f"{format_byte_size(max(0, num_left))} are left beside weights and workspace; "
                "lower --kv-cache-memory"
            )
        return request.kv_cache_bytes
    return num_left if is_limited else num_left // 2


def _free_bytes(request: LoadRequest, device: torch.device) -> tuple[int, bool]:
    """Memory that can be taken on the device, and whether a limit was set for us alone."""
    if device.type == "cpu":
        available = available_memory(request.memory_limit_bytes)
        return available.num_bytes, available.is_limited
    num_free, _ = torch.cuda.mem_get_info(device)
    num_free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if request.memory_limit_bytes is not None:
        num_free = min(num_free, request.memory_limit_bytes - torch.cuda.memory_allocated(device))
    return max(0, num_free), True
