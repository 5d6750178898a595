"""How attention is cut into tiles for the programs of a GPU: arithmetic, no torch.

A tile is a few neighbouring queries of one sequence with all query heads that share a key head:
row q * group + h of the tile is query q under head h, so that keys are read once for the group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tgwui_k8s.runtime.kv_layout import LayerShape

_LEAST_ROWS = 16
"""Tensor cores take no fewer, and no narrower."""
_CHUNK_ROWS = 128
_QUERY_BYTES = 32 << 10
"""Queries that a tile of a chunk keeps at hand, and twice as many bytes of sums in registers."""
_TARGET_PROGRAMS = 512
"""Enough for every multiprocessor of a large GPU to have several."""
_KEY_BYTES = 16 << 10
"""Keys, and as many values, that a program holds in shared memory at once."""
_MOST_POSITIONS = 64


@dataclass(frozen=True, slots=True)
class Tiling:
    """For the layers of one KV group."""

    window: int | None
    chunk_queries: int
    """Queries of a tile where a chunk has many: keys are read once for all of them."""
    num_spans: int
    """Parts that decodes are divided into beyond one each, for a GPU that they do not fill."""

    @classmethod
    def of(cls, shapes: Iterable[LayerShape], window: int | None, element_bytes: int) -> Tiling:
        """What suits the largest of these layers; correct for all of them."""
        group = num_kv_heads = width = 1
        for shape in shapes:
            group = max(group, shape.queries_per_key)
            num_kv_heads = max(num_kv_heads, shape.num_kv_heads)
            width = max(width, padded_width(max(shape.key_dim, shape.value_dim)))
        num_rows = max(_LEAST_ROWS, min(_CHUNK_ROWS, _QUERY_BYTES // (width * element_bytes)))
        return cls(window, max(1, num_rows // group), -(-_TARGET_PROGRAMS // num_kv_heads))


def tile_rows(num_queries: int, group: int) -> int:
    """Rows of a tile with so many queries and heads a key head."""
    return max(_LEAST_ROWS, power_of_two(num_queries * group))


def padded_width(dim: int) -> int:
    """Elements of a head with those that are left empty."""
    return max(_LEAST_ROWS, power_of_two(dim))


def positions_per_pass(width: int, element_bytes: int) -> int:
    """Keys of `width` elements that a program works on at once."""
    return max(16, min(_MOST_POSITIONS, _KEY_BYTES // (width * element_bytes)))


def power_of_two(number: int) -> int:
    """The smallest one that is not below `number`."""
    return 1 << (number - 1).bit_length()
