"""Tests of engine/kv_cache.py."""

from __future__ import annotations

import pytest

from tgwui_k8s.contract import KVGroup, KVLayout
from tgwui_k8s.engine.kv_cache import KVCache
from tgwui_k8s.engine.request import Lane
from tgwui_k8s.errors import IntegrityError


def make_cache(*windows: int | None, num_blocks: int = 8, **layout: bool) -> KVCache:
    groups = tuple(KVGroup(num_blocks=num_blocks, window=window) for window in windows)
    return KVCache(KVLayout(block_size=4, groups=groups, **layout))


def compute(cache: KVCache, lane: Lane, num_tokens: int) -> None:
    assert cache.extend(lane, num_tokens)
    cache.advance(lane, num_tokens)


def test_a_computed_prefix_is_found_by_an_equal_lane():
    """Full blocks are shared; the last token is always left to compute."""
    cache = make_cache(None)
    first = Lane(list(range(12)), 1)
    compute(cache, first, 12)
    second = Lane(list(range(12)), 1)
    assert cache.find_prefix(second) == 2
    cache.adopt_prefix(second, 2)
    assert second.num_computed == 8
    assert second.block_tables[0] == first.block_tables[0][:2]
    cache.check_integrity([first, second])


def test_other_tokens_before_a_block_make_it_another_block():
    """A block is only found behind the same prefix."""
    cache = make_cache(None)
    compute(cache, Lane([1, 2, 3, 4, 5, 6, 7, 8, 9], 1), 9)
    assert cache.find_prefix(Lane([9, 2, 3, 4, 5, 6, 7, 8, 9], 1)) == 0
    assert cache.find_prefix(Lane([1, 2, 3, 4, 0, 6, 7, 8, 9], 1)) == 1


def test_adapters_keep_lanes_apart():
    """Lanes with other salts (adapters) never share."""
    cache = make_cache(None)
    compute(cache, Lane(list(range(9)), 1, "adapter"), 9)
    assert cache.find_prefix(Lane(list(range(9)), 1)) == 0
    assert cache.find_prefix(Lane(list(range(9)), 1, "adapter")) == 2


def test_extend_gives_all_groups_their_blocks_or_none():
    """A lane that cannot grow keeps what it had."""
    cache = make_cache(None, None, num_blocks=2)
    lane = Lane(list(range(20)), 2)
    assert cache.extend(lane, 8)
    assert not cache.extend(lane, 9)
    assert [len(table) for table in lane.block_tables] == [2, 2]
    cache.release(lane)
    cache.check_integrity([])


def test_a_window_slides_and_gives_blocks_back():
    """Blocks before the window become -1 and free; usage stays bounded."""
    cache = make_cache(4, num_blocks=3)
    lane = Lane(list(range(40)), 1)
    for num_tokens in range(1, 41):
        compute(cache, lane, num_tokens)
        cache.check_integrity([lane])
        assert sum(block >= 0 for block in lane.block_tables[0]) <= 2
    assert lane.block_tables[0][:9] == [-1] * 9
    cache.release(lane)
    assert cache.usage == 0.0


def test_a_windowed_prefix_needs_only_the_window():
    """A hit in a windowed group needs the blocks that the next token can see, no more."""
    cache = make_cache(4, num_blocks=16)
    lane = Lane(list(range(17)), 1)
    for num_tokens in range(1, 18):
        compute(cache, lane, num_tokens)
    other = Lane(list(range(17)), 1)
    assert cache.find_prefix(other) == 4
    cache.adopt_prefix(other, 4)
    assert other.block_tables[0][:3] == [-1, -1, -1]
    assert other.block_tables[0][3] >= 0
    cache.check_integrity([lane, other])


def test_a_hybrid_prefix_is_as_long_as_every_group_can_serve():
    """A block evicted from a windowed group shortens the hit only where it would be seen."""
    cache = make_cache(None, 8, num_blocks=8)
    lane = Lane(list(range(13)), 2)
    compute(cache, lane, 13)
    cache.release(lane)
    other = Lane(list(range(13)), 2)
    for _ in range(6):  # five that hold nothing, then block 0, which token 12 cannot see
        cache.pools[1].allocate()
    assert cache.find_prefix(other) == 3
    cache.pools[1].allocate()  # block 2: now a hit would have to end at 2, which sees block 0
    assert cache.find_prefix(other) == 0


def test_blocks_to_take_counts_free_cached_blocks_but_not_used_ones():
    """Sharing with a running lane is free; reviving a free block costs one."""
    cache = make_cache(None)
    first = Lane(list(range(9)), 1)
    compute(cache, first, 9)
    second = Lane(list(range(9)), 1)
    assert cache.find_prefix(second) == 2
    assert cache.num_blocks_to_take(second, 2, [3]) == [1]
    cache.release(first)
    assert cache.num_blocks_to_take(second, 2, [3]) == [3]


def test_blocks_to_hold_is_bounded_by_the_window():
    """A windowed group needs room for its window and one step, whatever the length."""
    cache = make_cache(None, 8)
    assert cache.num_blocks_to_hold(100, 4) == [25, 4]
    assert cache.num_blocks_to_hold(5, 4) == [2, 2]
    assert cache.can_hold([8, 8])
    assert not cache.can_hold([9, 1])


def test_without_prefix_caching_nothing_is_found():
    """Runners with cache rows never share."""
    cache = make_cache(None, prefix_caching=False)
    compute(cache, Lane(list(range(9)), 1), 9)
    assert cache.find_prefix(Lane(list(range(9)), 1)) == 0


def test_check_integrity_reports_a_lane_that_was_forgotten():
    """Blocks in use that no lane holds are a leak."""
    cache = make_cache(None)
    compute(cache, Lane([1, 2, 3], 1), 3)
    with pytest.raises(IntegrityError):
        cache.check_integrity([])
