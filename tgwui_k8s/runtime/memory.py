"""How much memory the KV cache may take: arithmetic, no torch.

    limit (cgroup, device or --memory-limit)
    ├── held already: weights, libraries, other processes of the container
    ├── workspace: activations of the largest step, logits, the sampler's copies
    └── the rest: KV cache

Where no limit is set on a CPU, the memory is shared with whatever else runs on the machine: the
cache takes at most half of what is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.contract import MAX_SCORED_ROWS, LoadRequest
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.limits import AvailableMemory

_BASE_WORKSPACE = 256 << 20
"""Allocator slack, attention masks, library buffers."""
_FLOAT_BYTES = 4
_LOGIT_COPIES = 6
"""Logits, sorted values, sort indices (twice as wide), probabilities, one spare."""


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

        Per row of logits it has several float32 copies.
        """
        num_rows = self.num_sequences + MAX_SCORED_ROWS
        logits = num_rows * self.vocab_size * _FLOAT_BYTES * _LOGIT_COPIES
        return _BASE_WORKSPACE + self.num_tokens * self.bytes_per_token + logits

    @property
    def bytes_per_token(self) -> int:
        """Of activations: residual, its norm, queries, keys, values and attention output
        (8 × hidden), and the feed-forward layer's parts (3 × intermediate)."""
        return (8 * self.hidden_size + 3 * self.intermediate_size) * self.element_bytes


def check_weights_fit(num_bytes: int, free: AvailableMemory) -> None:
    """Before reading them: raise `NotEnoughMemoryError` when the weights alone are too much."""
    if num_bytes > free.num_bytes:
        raise NotEnoughMemoryError(
            f"the weights take {format_byte_size(num_bytes)}, but "
            f"{format_byte_size(free.num_bytes)} are free; raise the memory limit or take a "
            "smaller or quantized model"
        )


def kv_cache_budget(request: LoadRequest, free: AvailableMemory, num_reserved: int) -> int:
    """Bytes for the KV cache out of what is free; may be negative.

    `num_reserved` is kept for the step's workspace, and for weights that are still to be loaded.
    Raises `NotEnoughMemoryError` when the size that was asked for is not there.
    """
    num_left = free.num_bytes - num_reserved
    if request.kv_cache_bytes is not None:
        if request.kv_cache_bytes > num_left:
            raise NotEnoughMemoryError(
                f"a KV cache of {format_byte_size(request.kv_cache_bytes)} was asked for, but "
                f"{format_byte_size(max(0, num_left))} are left beside weights and workspace; "
                "lower --kv-cache-memory"
            )
        return request.kv_cache_bytes
    return num_left if free.is_limited else num_left // 2
