"""Physical KV blocks of one group: who uses which, and what the prefix cache still remembers.

    free, content forgotten ─ allocate ─► used ─ register ─► used and cached
             ▲                             │                      │
             └────────── release ──────────┘                   release
             ▲                                                    ▼
             └───────── allocate (evicts the oldest) ──── free but cached ── share ──► used

A block is free when nobody refers to it. A free block that is cached keeps its content until it
is the least recently used one and somebody needs room.
"""

from __future__ import annotations

from collections import OrderedDict

from tgwui_k8s.errors import IntegrityError


class BlockPool:
    """`num_blocks` blocks with reference counts, and an index from content to block.

    Content is named by a digest (see `kv_cache`) and compared by token ids as well, so that not
    even a collision of digests can hand out the wrong keys and values.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        # Ordered from the next to be taken to the last: forgotten blocks, then least recent.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._content: list[tuple[bytes, tuple[int, ...]] | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now, cached ones included."""
        return len(self._free)

    def is_free(self, block: int) -> bool:
        """True when nobody refers to the block."""
        return self._ref_counts[block] == 0

    def allocate(self) -> int:
        """Take a free block, evicting the least recently used content if it must.

        Raises `IntegrityError` when there is none: callers ask `num_free` first.
        """
        if not self._free:
            raise IntegrityError("allocate() on an empty block pool")
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference to a block that is used or still cached."""
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Drop one reference; the last one makes the block free, its content still cached."""
        if self._ref_counts[block] <= 0:
            raise IntegrityError(f"block {block} released more often than taken")
        self._ref_counts[block] -= 1
        if self._ref_counts[block] == 0:
            self._free[block] = None
            if self._content[block] is None:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, digest: bytes, token_ids: tuple[int, ...]) -> None:
        """Remember what a used block holds; the first block with a content keeps the name."""
        if digest in self._cached or self._content[block] is not None:
            return
        self._cached[digest] = block
        self._content[block] = (digest, token_ids)

    def find(self, digest: bytes, token_ids: tuple[int, ...]) -> int | None:
        """The block that holds this content, used or free; None when it is not cached."""
        block = self._cached.get(digest)
        if block is None or self._content[block] != (digest, token_ids):
            return None
        return block

    def forget(self, digest: bytes) -> None:
        """Name no block by this digest any more, whoever uses it."""
        block = self._cached.get(digest)
        if block is not None:
            self._forget(block)
            if self.is_free(block):
                self._free.move_to_end(block, last=False)

    def check_integrity(self, references: dict[int, int]) -> None:
        """Compare with `references` (block id to how many tables hold it); raise on a leak."""
        for block, count in enumerate(self._ref_counts):
            if count != references.get(block, 0):
                raise IntegrityError(
                    f"block {block} counts {count} references, {references.get(block, 0)} exist"
                )
            if (count == 0) != (block in self._free):
                raise IntegrityError(f"block {block} with {count} references is misfiled")
        for digest, block in self._cached.items():
            content = self._content[block]
            if content is None or content[0] != digest:
                raise IntegrityError(f"the prefix cache names block {block} for other content")
        if len(self._cached) != sum(content is not None for content in self._content):
            raise IntegrityError("a block holds content that the prefix cache does not know")

    def _forget(self, block: int) -> None:
        content = self._content[block]
        if content is not None:
            del self._cached[content[0]]
            self._content[block] = None
