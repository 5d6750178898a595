"""The memory behind block ids: keys and values of every layer, block by block."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping

import torch

from tgwui_k8s.contract import KVLayout
from tgwui_k8s.runtime.kv_layout import LayerGroup, LayerShape


class KVTensors:
    """Keys and values per layer: [num_blocks, block_size, num_kv_heads, head_dim].

    A block's tokens lie together, so gathering a context copies long runs of memory. Pages of the
    host are taken when they are first written.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerShape],
        groups: tuple[LayerGroup, ...],
        layout: KVLayout,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.shapes = layers
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.group_of_layer: dict[int, int] = {}
        for index, (group, blocks) in enumerate(zip(groups, layout.groups, strict=True)):
            for layer in group.layers:
                shape = layers[layer]
                size = (blocks.num_blocks, layout.block_size, shape.num_kv_heads)
                self.keys[layer] = _zeros((*size, shape.key_dim), dtype, device)
                self.values[layer] = _zeros((*size, shape.value_dim), dtype, device)
                self.group_of_layer[layer] = index

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store keys and values [num_tokens, num_kv_heads, head_dim] at `slots` [num_tokens]."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)

    def clear(self, layer: int, slots: torch.Tensor) -> None:
        """Set keys and values at `slots` to zero: a mask does not hide a NaN."""
        self.keys[layer].flatten(0, 1).index_fill_(0, slots, 0)
        self.values[layer].flatten(0, 1).index_fill_(0, slots, 0)

    def gather(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of blocks in order, each [num_blocks * block_size, num_kv_heads, dim]."""
        keys = self.keys[layer].index_select(0, blocks).flatten(0, 1)
        values = self.values[layer].index_select(0, blocks).flatten(0, 1)
        return keys, values


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, not garbage: a hidden value is multiplied by zero, and a NaN would survive that.

    On the host they are pages that the kernel zeroes when they are first touched (`torch.zeros`
    would touch them all): a cache that stays half empty takes half the memory.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(size)
