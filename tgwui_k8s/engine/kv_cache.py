"""Block tables over the pools: room for new tokens, prefixes shared, windows that slide.

Every KV group of the model (`contract.KVGroup`) has a pool and, per lane, a table:

    positions   0 … 15   16 … 31   32 … 47   48 …
    full        [ 7 ]     [ 2 ]     [ 9 ]    [ 4 ]
    window 16   [ -1 ]    [ -1 ]    [ 3 ]    [ 8 ]     no query will look further back

A full block is named by a digest chained over all tokens before it (BLAKE2b, 128 bit), so equal
prefixes have equal names wherever they were computed. The last token of a lane is always
computed, never taken from the cache: its logits are needed.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from tgwui_k8s.contract import KVLayout
from tgwui_k8s.engine.block_pool import BlockPool
from tgwui_k8s.engine.request import Lane
from tgwui_k8s.runtime.kv_layout import num_blocks_to_hold


class KVCache:
    """Block tables of all lanes over one pool per group."""

    def __init__(self, layout: KVLayout) -> None:
        self.layout = layout
        self.pools = [BlockPool(group.num_blocks) for group in layout.groups]
        self._windows = [group.window for group in layout.groups]

    # ------------------------------------------------------------------------------- room

    def num_blocks_to_hold(self, num_tokens: int, num_new_tokens: int) -> list[int]:
        """Blocks per group for a lane of `num_tokens` that is computed `num_new_tokens` a step."""
        block_size = self.layout.block_size
        return [
            num_blocks_to_hold(num_tokens, num_new_tokens, window, block_size)
            for window in self._windows
        ]

    def can_hold(self, counts: Iterable[int]) -> bool:
        """True when so many blocks per group exist at all."""
        return all(count <= pool.num_blocks for count, pool in zip(counts, self.pools, strict=True))

    def extend(self, lane: Lane, num_tokens: int) -> bool:
        """Give the lane blocks for its first `num_tokens` tokens; False if there are too few.

        Either all groups get their blocks or none does.
        """
        block_size = self.layout.block_size
        num_blocks = -(-num_tokens // block_size)
        if all(len(table) >= num_blocks for table in lane.block_tables):
            return True
        for pool, table in zip(self.pools, lane.block_tables, strict=True):
            if num_blocks - len(table) > pool.num_free:
                return False
        for pool, table in zip(self.pools, lane.block_tables, strict=True):
            while len(table) < num_blocks:
                table.append(pool.allocate())
        return True

    def num_tokens_to_hold(self, lane: Lane) -> int:
        """How many tokens the lane could have blocks for, if it took all that are free."""
        counts = [
            len(table) + pool.num_free
            for pool, table in zip(self.pools, lane.block_tables, strict=True)
        ]
        return min(counts) * self.layout.block_size

    def release(self, lane: Lane) -> None:
        """Give all blocks back; what they hold stays cached until evicted."""
        for pool, table in zip(self.pools, lane.block_tables, strict=True):
            # From the end, so that the tail of a prefix is evicted before its head.
            for block in reversed(table):
                if block >= 0:
                    pool.release(block)
            table.clear()
        lane.first_live_blocks = [0] * len(self.pools)
        lane.num_computed = 0
        lane.num_registered = 0

    # ----------------------------------------------------------------------------- prefixes

    def find_prefix(self, lane: Lane) -> int:
        """How many leading blocks of the lane are cached in every group that would need them."""
        if not self.layout.prefix_caching:
            return 0
        num_blocks = (len(lane.token_ids) - 1) // self.layout.block_size
        self._name_blocks(lane, num_blocks)
        for group, window in enumerate(self._windows):
            if window is None:
                num_blocks = self._count_cached(lane, group, num_blocks)
        while num_blocks > 0:
            missing = self._last_missing_block(lane, num_blocks)
            if missing is None:
                break
            num_blocks = missing
        return num_blocks

    def num_blocks_to_take(self, lane: Lane, num_cached: int, counts: list[int]) -> list[int]:
        """Free blocks per group that the lane would take to hold `counts` blocks.

        The first `num_cached` come from the prefix cache: they cost nothing while somebody else
        uses them, and a free block otherwise.
        """
        taken = []
        for group, (pool, count) in enumerate(zip(self.pools, counts, strict=True)):
            for index in range(self._first_needed_block(group, num_cached), num_cached):
                block = self._find(lane, group, index)
                count -= block is not None and not pool.is_free(block)
            taken.append(count)
        return taken

    def adopt_prefix(self, lane: Lane, num_blocks: int) -> None:
        """Start an empty lane from `num_blocks` cached blocks, as `find_prefix` counted them."""
        for group, (pool, table) in enumerate(zip(self.pools, lane.block_tables, strict=True)):
            first = self._first_needed_block(group, num_blocks)
            lane.first_live_blocks[group] = first
            table.extend([-1] * first)
            for index in range(first, num_blocks):
                block = self._find(lane, group, index)
                if block is not None:
                    pool.share(block)
                    table.append(block)
        lane.num_computed = num_blocks * self.layout.block_size
        lane.num_registered = num_blocks

    def forget(self, lane: Lane) -> None:
        """Let nobody find what the lane has computed, or taken from others."""
        for pool in self.pools:
            for digest in lane.digests:
                pool.forget(digest)

    def advance(self, lane: Lane, num_computed: int) -> None:
        """Note that the lane's first `num_computed` tokens are in the cache.

        Full blocks become findable, and blocks that no window reaches any more are given back. A
        block whose last token is not known yet has no name, and must wait for the next time.
        """
        lane.num_computed = num_computed
        num_known = num_computed - (lane.token_ids[num_computed - 1] < 0)
        num_full = num_known // self.layout.block_size
        if num_full == lane.num_registered:
            return
        if self.layout.prefix_caching:
            self._name_blocks(lane, num_full)
            for pool, table in zip(self.pools, lane.block_tables, strict=True):
                for index in range(lane.num_registered, num_full):
                    if table[index] >= 0:
                        pool.register(
                            table[index], lane.digests[index], self._block_tokens(lane, index)
                        )
        lane.num_registered = num_full
        self._slide_windows(lane)

    # ---------------------------------------------------------------------------- book-keeping

    @property
    def usage(self) -> float:
        """Share of the blocks in use, in the fullest group; 0 to 1."""
        return max(1.0 - pool.num_free / pool.num_blocks for pool in self.pools)

    def check_integrity(self, lanes: Iterable[Lane]) -> None:
        """Raise `IntegrityError` unless exactly the blocks of `lanes` are in use."""
        references: list[Counter[int]] = [Counter() for _ in self.pools]
        for lane in lanes:
            for counter, table in zip(references, lane.block_tables, strict=True):
                counter.update(block for block in table if block >= 0)
        for pool, counter in zip(self.pools, references, strict=True):
            pool.check_integrity(counter)

    def _slide_windows(self, lane: Lane) -> None:
        for group, window in enumerate(self._windows):
            if window is None:
                continue
            pool, table = self.pools[group], lane.block_tables[group]
            first = max(0, lane.num_computed - window + 1) // self.layout.block_size
            for index in range(lane.first_live_blocks[group], first):
                pool.release(table[index])
                table[index] = -1
            lane.first_live_blocks[group] = max(first, lane.first_live_blocks[group])

    def _first_needed_block(self, group: int, num_blocks: int) -> int:
        """The first block that the token after `num_blocks` full blocks can still see."""
        window = self._windows[group]
        if window is None:
            return 0
        block_size = self.layout.block_size
        return min(num_blocks, max(0, num_blocks * block_size - window + 1) // block_size)

    def _count_cached(self, lane: Lane, group: int, limit: int) -> int:
        for index in range(limit):
            if self._find(lane, group, index) is None:
                return index
        return limit

    def _last_missing_block(self, lane: Lane, num_blocks: int) -> int | None:
        for group, window in enumerate(self._windows):
            if window is None:
                continue
            first = self._first_needed_block(group, num_blocks)
            for index in reversed(range(first, num_blocks)):
                if self._find(lane, group, index) is None:
                    return index
        return None

    def _find(self, lane: Lane, group: int, index: int) -> int | None:
        return self.pools[group].find(lane.digests[index], self._block_tokens(lane, index))

    def _block_tokens(self, lane: Lane, index: int) -> tuple[int, ...]:
        block_size = self.layout.block_size
        return tuple(lane.token_ids[index * block_size : (index + 1) * block_size])

    def _name_blocks(self, lane: Lane, num_blocks: int) -> None:
        digests = lane.digests
        for index in range(len(digests), num_blocks):
            parent = digests[index - 1] if index else lane.cache_salt
            tokens = array("I", self._block_tokens(lane, index)).tobytes()
            digests.append(blake2b(parent + tokens, digest_size=16).digest())
