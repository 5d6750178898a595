"""How many KV blocks of which kind fit the memory: pure arithmetic, no torch.

Layers that look back equally far form a group; all groups share the budget. A group without a
window grows with the context, one with a window never holds more than the window and one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tgwui_k8s.byte_size import format_byte_size
from tgwui_k8s.contract import KVGroup, KVLayout
from tgwui_k8s.errors import NotEnoughMemoryError


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps of every token. `window` as in `contract.KVGroup`.

    `queries_per_key` heads of the query share a key head, and are best computed together.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    queries_per_key: int = 1

    @property
    def num_elements(self) -> int:
        """Numbers per token: keys and values of all heads."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers, by their index in the model, whose blocks are managed together."""

    layers: tuple[int, ...]
    window: int | None
    block_bytes: int
    """Memory of one block id: `block_size` tokens in every layer of the group."""


@dataclass(frozen=True, slots=True)
class KVDemand:
    """What the cache should be able to hold."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int

    def blocks_per_sequence(self, group: LayerGroup, num_tokens: int) -> int:
        """Blocks of one sequence of `num_tokens`."""
        # A step may exceed its budget of tokens to let every running sequence decode.
        num_new_tokens = max(self.max_num_batched_tokens, self.max_num_seqs)
        return num_blocks_to_hold(num_tokens, num_new_tokens, group.window, self.block_size)


def num_blocks_to_hold(
    num_tokens: int, num_new_tokens: int, window: int | None, block_size: int
) -> int:
    """Blocks that a sequence of `num_tokens`, computed `num_new_tokens` a step, takes in a group.

    With a window, never more than the window and one step's tokens.
    """
    if window is not None and window + num_new_tokens < num_tokens:
        # One more: the window may begin in the middle of a block.
        return -(-(window + num_new_tokens) // block_size) + 1
    return -(-num_tokens // block_size)


def group_layers(
    layers: Mapping[int, LayerShape], *, block_size: int, element_bytes: int
) -> tuple[LayerGroup, ...]:
    """Groups by window: the one without a window first, then the widest."""
    windows = {layer.window for layer in layers.values()}
    groups = []
    for window in sorted(windows, key=lambda window: (window is not None, -(window or 0))):
        indices = tuple(sorted(index for index in layers if layers[index].window == window))
        num_elements = sum(layers[index].num_elements for index in indices)
        groups.append(LayerGroup(indices, window, num_elements * block_size * element_bytes))
    return tuple(groups)


def plan_kv_cache(
    groups: Sequence[LayerGroup], demand: KVDemand, budget_bytes: int, *, is_capped: bool = True
) -> KVLayout:
    """Divide the budget among the groups.

    `is_capped`: no group gets more than `max_num_seqs` sequences of full length could use; False
    spends the whole budget, which leaves more to the prefix cache.
    Raises `NotEnoughMemoryError` when not even one sequence of full length fits, and says which
    length would.
    """
    needed = [demand.blocks_per_sequence(group, demand.max_model_len) for group in groups]
    least = [count * group.block_bytes for count, group in zip(needed, groups, strict=True)]
    if sum(least) > budget_bytes:
        raise NotEnoughMemoryError(_too_little(groups, demand, sum(least), budget_bytes))
    most = [size * demand.max_num_seqs if is_capped else budget_bytes for size in least]
    shares = share_out(budget_bytes, least, most)
    return KVLayout(
        block_size=demand.block_size,
        groups=tuple(
            KVGroup(num_blocks=share // group.block_bytes, window=group.window)
            for share, group in zip(shares, groups, strict=True)
        ),
    )


def share_out(budget: int, least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Give everyone its least, then equal parts of the rest, until it has its most."""
    shares = list(least)
    hungry = [index for index in range(len(shares)) if shares[index] < most[index]]
    rest = budget - sum(shares)
    while hungry and rest >= len(hungry):
        part = rest // len(hungry)
        for index in hungry:
            given = min(part, most[index] - shares[index])
            shares[index] += given
            rest -= given
        hungry = [index for index in hungry if shares[index] < most[index]]
    return shares


def _too_little(
    groups: Sequence[LayerGroup], demand: KVDemand, needed: int, budget_bytes: int
) -> str:
    def fits(num_tokens: int) -> bool:
        return budget_bytes >= sum(
            demand.blocks_per_sequence(group, num_tokens) * group.block_bytes for group in groups
        )

    text = (
        f"the KV cache of one sequence of {demand.max_model_len} tokens takes "
        f"{format_byte_size(needed)}, but {format_byte_size(max(0, budget_bytes))} are left for it"
    )
    longest = _largest(fits, demand.max_model_len)
    if longest >= demand.block_size:
        return f"{text}; --max-model-len {longest} would fit, or give it more memory"
    return f"{text}; give it more memory or take a smaller model"


def _largest(fits: Callable[[int], bool], below: int) -> int:
    """The largest number up to `below` that fits, by bisection; 0 when none does."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
