"""Dividing memory into KV blocks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgwui_k8s.contract import KVLayout
from tgwui_k8s.engine.kv_cache import KVCache
from tgwui_k8s.errors import NotEnoughMemoryError
from tgwui_k8s.runtime.kv_layout import (
    KVDemand,
    LayerGroup,
    LayerShape,
    group_layers,
    plan_kv_cache,
    share_out,
)

FULL = LayerGroup((0,), None, block_bytes=1024)
WINDOWED = LayerGroup((1,), 32, block_bytes=512)
DEMAND = KVDemand(max_model_len=256, max_num_seqs=4, max_num_batched_tokens=16, block_size=16)


def test_layers_with_one_window_form_one_group() -> None:
    """Full attention comes first; a block's bytes are those of all the group's layers."""
    layers = {
        0: LayerShape(num_kv_heads=2, key_dim=8, value_dim=8, window=32),
        1: LayerShape(num_kv_heads=2, key_dim=8, value_dim=4),
        2: LayerShape(num_kv_heads=1, key_dim=8, value_dim=8, window=32),
        3: LayerShape(num_kv_heads=1, key_dim=8, value_dim=8, window=64),
    }
    groups = group_layers(layers, block_size=16, element_bytes=2)
    assert [(group.layers, group.window) for group in groups] == [
        ((1,), None),
        ((3,), 64),
        ((0, 2), 32),
    ]
    assert groups[0].block_bytes == 2 * 12 * 16 * 2
    assert groups[2].block_bytes == (2 * 16 + 16) * 16 * 2


def test_plenty_of_memory_is_capped_at_what_all_sequences_can_use() -> None:
    """More blocks than max_num_seqs sequences of full length need are not taken."""
    layout = plan_kv_cache([FULL, WINDOWED], DEMAND, 1 << 30)
    assert layout.groups[0].num_blocks == 4 * 16
    assert layout.groups[1].num_blocks == 4 * 4  # window 32 and one step of 16, not aligned
    assert layout.groups[1].window == 32


def test_a_cache_of_given_size_is_used_whole() -> None:
    """Uncapped, what sequences do not need serves the prefix cache."""
    layout = plan_kv_cache([FULL], DEMAND, 1 << 20, is_capped=False)
    assert layout.groups[0].num_blocks == 1024


def test_too_little_memory_names_a_length_that_would_fit() -> None:
    """Following the advice works, and one token more does not."""
    budget = 5 * 1024 + 2 * 1024
    with pytest.raises(NotEnoughMemoryError, match="--max-model-len") as caught:
        plan_kv_cache([FULL, WINDOWED], DEMAND, budget)
    match = re.search(r"--max-model-len (\d+)", str(caught.value))
    assert match is not None
    longest = int(match[1])
    plan_kv_cache([FULL, WINDOWED], _with_length(longest), budget)
    with pytest.raises(NotEnoughMemoryError):
        plan_kv_cache([FULL, WINDOWED], _with_length(longest + 1), budget)


def test_no_memory_at_all_has_another_remedy() -> None:
    """No length is proposed where none would fit."""
    with pytest.raises(NotEnoughMemoryError, match="smaller model"):
        plan_kv_cache([FULL], DEMAND, -5)


@given(
    budget=st.integers(0, 10_000),
    bounds=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3000)), min_size=1, max_size=5),
)
def test_sharing_out_is_fair_and_complete(budget: int, bounds: list[tuple[int, int]]) -> None:
    """Nobody gets less than its least or more than its most, and only crumbs are left over."""
    least = [low for low, _ in bounds]
    most = [low + more for low, more in bounds]
    budget += sum(least)
    shares = share_out(budget, least, most)
    assert all(low <= share <= high for low, share, high in zip(least, shares, most, strict=True))
    assert sum(shares) <= budget
    if any(share < high for share, high in zip(shares, most, strict=True)):
        assert budget - sum(shares) < len(bounds)


@given(num_tokens=st.integers(1, 500), num_new=st.integers(1, 100), window=st.integers(1, 300))
def test_blocks_per_sequence_agree_with_the_scheduler(
    num_tokens: int, num_new: int, window: int
) -> None:
    """The plan never promises a sequence that the scheduler would then refuse."""
    groups = [LayerGroup((0,), None, 64), LayerGroup((1,), window, 64)]
    demand = KVDemand(num_tokens, 1, num_new, block_size=16)
    layout = plan_kv_cache(groups, demand, 1 << 20)
    assert isinstance(layout, KVLayout)
    cache = KVCache(layout)
    assert cache.can_hold(cache.num_blocks_to_hold(num_tokens, num_new))


def _with_length(max_model_len: int) -> KVDemand:
    return KVDemand(max_model_len, 4, 16, 16)
