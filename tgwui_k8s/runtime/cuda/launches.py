"""What the kernels are started with: sizes they are compiled for, strides, scratch memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tgwui_k8s.runtime.attention import Scoring
from tgwui_k8s.runtime.cuda import kernels
from tgwui_k8s.runtime.cuda.step_numbers import ITEM, ROW
from tgwui_k8s.runtime.cuda.tiling import (
    padded_width,
    positions_per_pass,
    power_of_two,
    tile_rows,
)

_SPANS_PER_PASS = 16


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer's keys and values [num_blocks, block_size, kv heads, dim], contiguous."""

    keys: torch.Tensor
    values: torch.Tensor

    def constants(self) -> dict[str, int]:
        """Sizes that kernels are compiled for."""
        return {
            "NUM_KV_HEADS": self.keys.shape[2],
            "KEY_DIM": self.keys.shape[3],
            "KEY_WIDTH": padded_width(self.keys.shape[3]),
            "VALUE_DIM": self.values.shape[3],
            "VALUE_WIDTH": padded_width(self.values.shape[3]),
        }


def write(cache: Cache, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Store keys and values [tokens, kv heads, dim] at `slots` [tokens]; none where that is -1."""
    kernel: Any = kernels.write
    kernel[(len(slots),)](
        *(key, value, cache.keys, cache.values, slots),
        *(key.stride(0), key.stride(1), value.stride(0), value.stride(1)),
        **cache.constants(),
        HEADS=power_of_two(cache.keys.shape[2]),
    )


@dataclass(frozen=True, slots=True)
class Attention:
    """Queries of one layer over its cache, through the block tables `blocks`.

    `query` [tokens, heads, key dim] has its last dimension in order; `output` [tokens, heads,
    value dim] is contiguous and gets the rows of the tokens that have work.
    """

    query: torch.Tensor
    cache: Cache
    output: torch.Tensor
    blocks: torch.Tensor
    scoring: Scoring
    window: int | None

    def chunks(self, items: torch.Tensor, num_queries: int) -> None:
        """Tiles of `num_queries` queries; `items` is flat."""
        num_rows = tile_rows(num_queries, self._group)
        self._attend(items, num_rows, self.output, self.output, is_span=False)

    def queries(self, items: torch.Tensor, rows: torch.Tensor) -> None:
        """Single queries in spans, and what their spans add up to; both are flat."""
        num_heads, value_dim = self.output.shape[1:]
        num_items, num_rows = len(items) // ITEM, tile_rows(1, self._group)
        tiles = (num_items, self.cache.keys.shape[2], num_rows)
        sums = self.output.new_empty((*tiles, value_dim), dtype=torch.float32)
        tops = self.output.new_empty((*tiles, 2), dtype=torch.float32)
        self._attend(items, num_rows, sums, tops, is_span=True)
        kernel: Any = kernels.merge
        kernel[(len(rows) // ROW, num_heads)](
            *(sums, tops, self._sinks, rows, self.output),
            NUM_KV_HEADS=self.cache.keys.shape[2],
            VALUE_DIM=value_dim,
            VALUE_WIDTH=padded_width(value_dim),
            GROUP=self._group,
            HAS_SINKS=self.scoring.sinks is not None,
            ROWS=num_rows,
            SPANS=_SPANS_PER_PASS,
        )

    @property
    def _group(self) -> int:
        return self.query.shape[1] // self.cache.keys.shape[2]

    @property
    def _sinks(self) -> torch.Tensor:
        """The sinks; another tensor where there are none, which nobody reads."""
        return self.output if self.scoring.sinks is None else self.scoring.sinks

    def _attend(
        self,
        items: torch.Tensor,
        num_rows: int,
        output: torch.Tensor,
        tops: torch.Tensor,
        *,
        is_span: bool,
    ) -> None:
        constants = self.cache.constants()
        width = max(constants["KEY_WIDTH"], constants["VALUE_WIDTH"])
        dtype = self.query.dtype
        kernel: Any = kernels.attend
        kernel[(len(items) // ITEM, constants["NUM_KV_HEADS"])](
            *(self.query, self.cache.keys, self.cache.values, self._sinks),
            *(items, self.blocks, output, tops),
            *(self.query.stride(0), self.query.stride(1)),
            *(self.scoring.scaling, self.scoring.softcap or 0.0),
            **constants,
            GROUP=self._group,
            BLOCK_SIZE=self.cache.keys.shape[1],
            WINDOW=self.window or 0,
            HAS_SOFTCAP=self.scoring.softcap is not None,
            HAS_SINKS=self.scoring.sinks is not None and not is_span,
            IS_SPAN=is_span,
            ROWS=num_rows,
            POSITIONS=positions_per_pass(width, dtype.itemsize),
            PRECISION="ieee" if dtype == torch.float32 else "tf32",
            num_warps=8 if num_rows * width > 8192 else 4,
            num_stages=2,
        )
