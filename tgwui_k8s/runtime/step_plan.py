"""Where a step's tokens are written in the KV cache, and what each of them attends to.

Worked out once per step and KV group in NumPy, then used by every layer of the group. Two kinds
of work, so that nothing is padded to the longest member of the batch:

* decodes: one new token each. Rows with contexts of similar length share a bucket.
* chunks: several new tokens of one sequence, each chunk by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tgwui_k8s.contract import Batch

Indices = npt.NDArray[np.int64]

_SLACK_BLOCKS = 8
"""Rows join a bucket that is longer by so many blocks, or by a third: calls cost more than that."""


@dataclass(slots=True)
class DecodeBucket:
    """Decodes whose contexts take `blocks.numel() / num_rows` blocks each.

    Row i sits at index `rows[i]` of the step's tokens. Of the positions gathered from its blocks,
    `first` to `last` (exclusive) are looked at, less what `mask` hides (additive,
    [num_rows, 1, 1, last - first]); None hides nothing.
    """

    num_rows: int
    rows: torch.Tensor
    blocks: torch.Tensor
    first: int
    last: int
    mask: torch.Tensor | None


@dataclass(slots=True)
class Chunk:
    """New tokens `first_token` … of one sequence.

    Without `blocks` they are the sequence's first, and only look at each other: causally, or as
    `mask` (additive, [num_tokens, number of positions]) says. With `blocks` they look at the
    `num_positions` positions gathered from there, themselves included.
    """

    first_token: int
    num_tokens: int
    blocks: torch.Tensor | None
    num_positions: int
    mask: torch.Tensor | None


@dataclass(slots=True)
class GroupPlan:
    """One step, for the layers of one KV group. `slots[i]` is where token i's KV is written.

    `stale_slots` lie behind the last token of blocks that the step begins: whoever had such a block
    before has left something there, which decodes may gather.
    """

    slots: torch.Tensor
    stale_slots: torch.Tensor
    decodes: list[DecodeBucket] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def is_one_bucket(self) -> bool:
        """True where the rows of the only bucket are the step's tokens, in order."""
        return len(self.decodes) == 1 and not self.chunks


@dataclass(frozen=True, slots=True)
class _DecodeRow:
    token: int
    blocks: list[int]
    first: int
    """First visible position, counted from the first of `blocks`."""
    last: int
    """Behind the last visible position, counted likewise."""


@dataclass(frozen=True, slots=True)
class StepPlanner:
    """Plans steps for the layers of one KV group."""

    group: int
    window: int | None
    block_size: int
    dtype: torch.dtype
    """Of the masks: that of the queries."""
    device: torch.device

    def plan(self, batch: Batch) -> GroupPlan:
        """Work out one step."""
        slots: list[Indices] = []
        stale_slots: list[int] = []
        rows: list[_DecodeRow] = []
        chunks: list[Chunk] = []
        token = 0
        for scheduled in batch.sequences:
            table = scheduled.block_tables[self.group]
            start, num_tokens = scheduled.start, len(scheduled.token_ids)
            slots.append(self._slots(table, start, num_tokens))
            stale_slots += self._stale_slots(table, start, start + num_tokens)
            if num_tokens == 1:
                rows.append(self._decode_row(token, table, start))
            else:
                chunks.append(self._chunk(token, table, start, num_tokens))
            token += num_tokens
        plan = GroupPlan(
            self._to_tensor(np.concatenate(slots)), self._to_tensor(stale_slots), chunks=chunks
        )
        plan.decodes = [self._bucket(bucket) for bucket in _bucket_rows(rows)]
        return plan

    def _slots(self, table: Sequence[int], start: int, num_tokens: int) -> Indices:
        if num_tokens == 1:
            index, offset = divmod(start, self.block_size)
            return np.array([table[index] * self.block_size + offset], dtype=np.int64)
        positions = np.arange(start, start + num_tokens)
        first = start // self.block_size
        blocks = np.array(table[first : positions[-1] // self.block_size + 1], dtype=np.int64)
        offsets = positions % self.block_size
        return blocks[positions // self.block_size - first] * self.block_size + offsets

    def _stale_slots(self, table: Sequence[int], start: int, end: int) -> range:
        index, offset = divmod(end, self.block_size)
        if offset == 0 or end - offset < start:  # a full block, or one that was begun before
            return range(0)
        first = table[index] * self.block_size
        return range(first + offset, first + self.block_size)

    def _first_visible(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)

    def _decode_row(self, token: int, table: Sequence[int], position: int) -> _DecodeRow:
        first = self._first_visible(position)
        first_block = first // self.block_size
        origin = first_block * self.block_size
        blocks = list(table[first_block : position // self.block_size + 1])
        return _DecodeRow(token, blocks, first - origin, position + 1 - origin)

    def _bucket(self, rows: list[_DecodeRow]) -> DecodeBucket:
        first = min(row.first for row in rows)
        last = max(row.last for row in rows)
        num_blocks = -(-last // self.block_size)
        # Padding repeats a block of the row itself; the mask hides it.
        blocks = [row.blocks + [row.blocks[0]] * (num_blocks - len(row.blocks)) for row in rows]
        is_ragged = any(row.first != first or row.last != last for row in rows)
        return DecodeBucket(
            num_rows=len(rows),
            rows=self._to_tensor([row.token for row in rows]),
            blocks=self._to_tensor(blocks).flatten(),
            first=first,
            last=last,
            mask=self._decode_mask(rows, first, last) if is_ragged else None,
        )

    def _decode_mask(self, rows: list[_DecodeRow], first: int, last: int) -> torch.Tensor:
        positions = np.arange(first, last)
        begins = np.array([[row.first] for row in rows])
        ends = np.array([[row.last] for row in rows])
        return self._to_mask((positions >= begins) & (positions < ends))[:, None, None, :]

    def _chunk(self, token: int, table: Sequence[int], start: int, num_tokens: int) -> Chunk:
        end = start + num_tokens
        if start == 0:
            is_causal = self.window is None or num_tokens <= self.window
            mask = None if is_causal else self._chunk_mask(0, num_tokens, 0)
            return Chunk(token, num_tokens, None, num_tokens, mask)
        first_block = self._first_visible(start) // self.block_size
        origin = first_block * self.block_size
        blocks = self._to_tensor(table[first_block : (end - 1) // self.block_size + 1])
        return Chunk(token, num_tokens, blocks, end - origin, self._chunk_mask(start, end, origin))

    def _chunk_mask(self, start: int, end: int, origin: int) -> torch.Tensor:
        """For queries `start` … `end` over the positions `origin` … `end`."""
        queries = np.arange(start, end)[:, None]
        positions = np.arange(origin, end)
        visible = positions <= queries
        if self.window is not None:
            visible &= positions > queries - self.window
        return self._to_mask(visible)

    def _to_mask(self, visible: npt.NDArray[np.bool_]) -> torch.Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype)
        mask.masked_fill_(torch.from_numpy(~visible), float("-inf"))
        return mask.to(self.device, non_blocking=True)

    def _to_tensor(self, indices: Indices | Sequence[int] | list[list[int]]) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return tensor.to(self.device, non_blocking=True)


def _bucket_rows(rows: list[_DecodeRow]) -> Iterator[list[_DecodeRow]]:
    """Rows with contexts of similar length together; in a bucket, in order of their tokens."""
    bucket: list[_DecodeRow] = []
    for row in sorted(rows, key=lambda row: len(row.blocks), reverse=True):
        if bucket:
            longest = len(bucket[0].blocks)
            if longest - len(row.blocks) > max(_SLACK_BLOCKS, longest // 4):
                yield sorted(bucket, key=lambda row: row.token)
                bucket = []
        bucket.append(row)
    if bucket:
        yield sorted(bucket, key=lambda row: row.token)
