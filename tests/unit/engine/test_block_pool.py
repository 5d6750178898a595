"""Tests of engine/block_pool.py."""

from __future__ import annotations

import pytest

from tgwui_k8s.engine.block_pool import BlockPool
from tgwui_k8s.errors import IntegrityError


def test_allocate_hands_out_every_block_once():
    """All blocks can be taken, none twice, and then the pool is empty."""
    pool = BlockPool(4)
    assert sorted(pool.allocate() for _ in range(4)) == [0, 1, 2, 3]
    assert pool.num_free == 0
    with pytest.raises(IntegrityError):
        pool.allocate()


def test_released_content_is_found_until_evicted():
    """A free block keeps its content, and the least recently used content goes first."""
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"a", (1,))
    pool.register(second, b"b", (2,))
    pool.release(first)
    pool.release(second)
    assert pool.find(b"a", (1,)) == first
    assert pool.allocate() == first
    assert pool.find(b"a", (1,)) is None
    assert pool.find(b"b", (2,)) == second


def test_forgotten_blocks_are_taken_before_cached_ones():
    """A block without content is reused first, whenever it was released."""
    pool = BlockPool(2)
    cached, plain = pool.allocate(), pool.allocate()
    pool.register(cached, b"a", (1,))
    pool.release(cached)
    pool.release(plain)
    assert pool.allocate() == plain


def test_share_revives_a_free_block():
    """Sharing a cached free block takes it off the free list until released as often."""
    pool = BlockPool(1)
    block = pool.allocate()
    pool.register(block, b"a", (1,))
    pool.release(block)
    pool.share(block)
    pool.share(block)
    assert pool.num_free == 0
    pool.release(block)
    assert not pool.is_free(block)
    pool.release(block)
    assert pool.is_free(block)


def test_a_digest_collision_is_harmless():
    """Equal digests with other tokens are not a hit."""
    pool = BlockPool(1)
    block = pool.allocate()
    pool.register(block, b"same", (1, 2))
    assert pool.find(b"same", (1, 2)) == block
    assert pool.find(b"same", (3, 4)) is None


def test_the_first_block_with_a_content_keeps_the_name():
    """Registering equal content again changes nothing, and neither does renaming a block."""
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"a", (1,))
    pool.register(second, b"a", (1,))
    pool.register(first, b"z", (9,))
    assert pool.find(b"a", (1,)) == first
    assert pool.find(b"z", (9,)) is None
    pool.check_integrity({first: 1, second: 1})


def test_releasing_too_often_is_an_integrity_error():
    """A double free is reported where it happens."""
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(IntegrityError, match="released more often"):
        pool.release(block)


def test_check_integrity_reports_a_lost_block():
    """A block that counts a reference nobody holds is a leak."""
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(IntegrityError, match="counts 1 references, 0 exist"):
        pool.check_integrity({})


@pytest.mark.parametrize("damage", ["misfiled", "renamed", "unindexed"])
def test_check_integrity_reports_damage(damage):
    """Each invariant of the pool, broken by hand, is reported."""
    pool = BlockPool(2)
    block = pool.allocate()
    pool.register(block, b"a", (1,))
    if damage == "misfiled":
        pool._free[block] = None
    elif damage == "renamed":
        pool._content[block] = (b"b", (1,))
    else:
        del pool._cached[b"a"]
    with pytest.raises(IntegrityError):
        pool.check_integrity({block: 1})
