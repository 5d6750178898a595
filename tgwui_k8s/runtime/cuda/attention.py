"""A step's attention by the kernels: one to write, one for chunks, two for single queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tgwui_k8s.runtime.attention import Scoring
from tgwui_k8s.runtime.cuda import launches
from tgwui_k8s.runtime.cuda.step_numbers import Sections
from tgwui_k8s.runtime.cuda.tiling import Tiling
from tgwui_k8s.runtime.kv_tensors import KVTensors


class TritonAttention:
    """One step's attention, over numbers on the device. See `AttentionBackend`."""

    def __init__(
        self,
        kv: KVTensors,
        tilings: Sequence[Tiling],
        numbers: torch.Tensor,
        sections: Sections,
    ) -> None:
        self._kv = kv
        self._tilings = tilings
        self._blocks = numbers[sections.blocks :]
        self._works = [
            (
                numbers[group.slots],
                numbers[group.chunk_items],
                numbers[group.short_items],
                numbers[group.rows],
            )
            for group in sections.groups
        ]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """See `PagedAttention.attend`."""
        group = self._kv.group_of_layer[layer]
        tiling = self._tilings[group]
        slots, chunk_items, short_items, rows = self._works[group]
        cache = launches.Cache(self._kv.keys[layer], self._kv.values[layer])
        launches.write(cache, _in_order(key), _in_order(value), slots)
        attention = launches.Attention(
            query=_in_order(query).to(self._kv.dtype),
            cache=cache,
            output=query.new_empty(query.shape[0], query.shape[1], value.shape[2]),
            blocks=self._blocks,
            scoring=Scoring.from_options(options, query.shape[2]),
            window=tiling.window,
        )
        if len(chunk_items):
            attention.chunks(chunk_items, tiling.chunk_queries)
        if len(rows):
            attention.queries(short_items, rows)
        return attention.output


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """With the numbers of a head side by side, as kernels expect; mostly they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
