"""Which of llama.cpp's sequences holds which of the scheduler's blocks.

llama.cpp keeps keys and values in cells that it hands out itself. A cell belongs to a position and
to a set of sequences, of which there are 256 at most; the scheduler thinks in numbered blocks that
are shared, kept after their sequence has ended, and written anew later. Here both meet:

    row 3 ─► lane 17      lane 17 holds blocks 5 8 2     positions 0 … 47
                          lane  4 holds blocks 5 8 9     its sequence has ended; 9 is still cached

A lane is a sequence of llama.cpp's. A sequence of ours starts on a lane of its own, takes over the
cells of cached blocks from whoever holds them (no keys are copied or computed), and leaves its
lane as it is when it ends. A block that is begun anew frees its cells in all lanes that held them,
so cells in use are never more than blocks times block size.

There may be more cached prefixes than lanes. Then the lane that was idle longest is emptied, and
a block that no other lane holds is lost. The scheduler does not know: where it still counts on
such a block, its tokens are computed again. That costs the time the cache would have saved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tgwui_k8s.contract import ScheduledSequence
from tgwui_k8s.errors import IntegrityError


class CellMemory(Protocol):
    """What llama.cpp can do with the cells of its sequences; positions are half-open ranges."""

    def remove(self, lane: int, start: int, stop: int) -> None:
        """Free the lane's cells; those that other lanes hold too stay theirs."""
        ...

    def remove_all(self, lane: int) -> None:
        """Empty the lane."""
        ...

    def share(self, source: int, lane: int, start: int, stop: int) -> None:
        """Let `lane` hold the cells of `source` too."""
        ...

    def compute(self, lane: int, start: int, token_ids: Sequence[int]) -> None:
        """Compute tokens without asking for logits."""
        ...


@dataclass(slots=True)
class _Block:
    """What a block holds: `token_ids` from position `index` * block size on, in some lanes."""

    index: int
    lanes: set[int]
    token_ids: list[int] = field(default_factory=list)


_HOLE = -1
"""Stands in an ended lane for a block that has been written anew elsewhere."""


@dataclass(slots=True)
class _Lane:
    """The blocks of a lane in order, and the position of its next token."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class Lanes:
    """Lanes for rows, and the cells of blocks."""

    def __init__(
        self, memory: CellMemory, *, num_lanes: int, block_size: int, keeps_blocks: bool
    ) -> None:
        """`keeps_blocks` False: a lane dies as a whole, as memory that cannot be cut needs it."""
        self._memory = memory
        self._block_size = block_size
        self._keeps_blocks = keeps_blocks
        self._blocks: dict[int, _Block] = {}
        self._lanes = [_Lane() for _ in range(num_lanes)]
        self._lane_of_row: dict[int, int] = {}
        # From the one idle longest to the one used last.
        self._by_age: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_lanes))
        self.num_recomputed = 0
        """Tokens of lost blocks that were computed again."""

    def place(self, part: ScheduledSequence) -> int:
        """The lane in which the part's tokens are to be computed, made ready for them."""
        table = part.block_tables[0]
        lane = self._lane_of_row.get(part.row)
        if lane is None or not self._goes_on(lane, part.start, table):
            lane = self._start(part.row, table[: part.start // self._block_size])
        if self._lanes[lane].length > part.start:
            self._cut(lane, part.start)
        if self._lanes[lane].length != part.start:
            raise IntegrityError(f"row {part.row} cannot go on at position {part.start}")
        self._by_age.move_to_end(lane)
        self._write(lane, part, table)
        return lane

    def holders(self, block: int) -> frozenset[int]:
        """The lanes that hold the block's cells."""
        held = self._blocks.get(block)
        return frozenset() if held is None else frozenset(held.lanes)

    # ------------------------------------------------------------------------------------- lanes

    def _goes_on(self, lane: int, start: int, table: Sequence[int]) -> bool:
        """True where the lane holds the tokens before `start`, in these blocks.

        It may hold more: tokens that were guessed, and not confirmed.
        """
        held = self._lanes[lane]
        return 0 < start <= held.length and held.blocks == table[: len(held.blocks)]

    def _start(self, row: int, cached: Sequence[int]) -> int:
        """Give the row a lane of its own that begins with the cached blocks."""
        old = self._lane_of_row.pop(row, None)
        if old is not None and not self._keeps_blocks:
            self._empty(old)
        lane = self._take_lane(avoid=cached)
        self._lane_of_row[row] = lane
        for start, stop, source in self._runs(cached):
            self._adopt(lane, cached[start:stop], source)
        return lane

    def _take_lane(self, avoid: Sequence[int]) -> int:
        """An empty lane, else the one idle longest, which is emptied.

        Lanes that hold one of the blocks `avoid` are taken last of all.
        """
        busy = set(self._lane_of_row.values())
        idle = [lane for lane in self._by_age if lane not in busy]
        needed = set(avoid)
        for lane in idle:
            if not self._lanes[lane].blocks:
                return lane
        for lane in idle:
            if needed.isdisjoint(self._lanes[lane].blocks):
                return self._empty(lane)
        if not idle:
            raise IntegrityError("there are more rows than lanes")
        return self._empty(idle[0])

    def _empty(self, lane: int) -> int:
        for block in self._lanes[lane].blocks:
            if block != _HOLE:
                self._blocks[block].lanes.discard(lane)
        self._lanes[lane] = _Lane()
        self._memory.remove_all(lane)
        return lane

    # ------------------------------------------------------------------------------------ blocks

    def _runs(self, blocks: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
        """Neighbouring blocks that one lane holds: (start, stop, lane); None holds the lost."""
        start = 0
        while start < len(blocks):
            held = self._blocks.get(blocks[start])
            if held is None or held.index != start:
                raise IntegrityError(f"block {blocks[start]} was never computed for this prefix")
            holders, stop = set(held.lanes), start + 1
            while stop < len(blocks) and holders:
                common = holders & self.holders(blocks[stop])
                if not common:
                    break
                holders, stop = common, stop + 1
            yield start, stop, min(holders, default=None)
            start = stop

    def _adopt(self, lane: int, blocks: Sequence[int], source: int | None) -> None:
        """Append blocks to a lane: their cells from `source`, or computed again."""
        held = self._lanes[lane]
        start, stop = held.length, held.length + len(blocks) * self._block_size
        if source is not None:
            self._memory.share(source, lane, start, stop)
        else:
            token_ids = [token for block in blocks for token in self._blocks[block].token_ids]
            self._memory.compute(lane, start, token_ids)
            self.num_recomputed += len(token_ids)
        for block in blocks:
            self._blocks[block].lanes.add(lane)
        held.blocks += blocks
        held.length = stop

    def _write(self, lane: int, part: ScheduledSequence, table: Sequence[int]) -> None:
        """Book the part's tokens; blocks that they begin forget what they held."""
        held, size = self._lanes[lane], self._block_size
        stop = part.start + len(part.token_ids)
        first, last = -(-part.start // size), -(-stop // size)
        self._forget(table[first:last])
        for index in range(first, last):
            self._blocks[table[index]] = _Block(index, {lane})
            held.blocks.append(table[index])
        held.length = stop
        if self._keeps_blocks:
            for index in range(part.start // size, last):
                begin, end = max(index * size, part.start), min((index + 1) * size, stop)
                tokens = part.token_ids[begin - part.start : end - part.start]
                self._blocks[table[index]].token_ids.extend(tokens)

    def _forget(self, blocks: Sequence[int]) -> None:
        """Free the cells of blocks that are about to be written anew."""
        for block in blocks:
            old = self._blocks.get(block)
            if old is None:
                continue
            for lane in tuple(old.lanes):
                if self._keeps_blocks:
                    self._punch(lane, old.index)
                else:
                    self._empty(lane)
            del self._blocks[block]

    def _cut(self, lane: int, length: int) -> None:
        """Take the last tokens of a running sequence back: the guesses were wrong."""
        if not self._keeps_blocks:
            raise IntegrityError("this model's memory cannot be cut")
        held, size = self._lanes[lane], self._block_size
        self._memory.remove(lane, length, held.length)
        last = -(-length // size)
        for block in held.blocks[last:]:
            self._blocks[block].lanes.discard(lane)
        del held.blocks[last:]
        if length % size:
            del self._blocks[held.blocks[-1]].token_ids[length % size :]
        held.length = length

    def _punch(self, lane: int, index: int) -> None:
        """Take one block out of a lane whose sequence has ended; the others may still be cached."""
        held = self._lanes[lane]
        held.blocks[index] = _HOLE
        self._memory.remove(lane, index * self._block_size, (index + 1) * self._block_size)
        if all(block == _HOLE for block in held.blocks):
            self._lanes[lane] = _Lane()
