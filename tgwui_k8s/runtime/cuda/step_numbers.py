"""A step in numbers: all that model and kernels must know of a batch, in one array of int32.

    token ids | positions | logit rows | per KV group: slots, items, rows | block tables

One array is one copy to the device. Every part begins at a multiple of 64 bytes, so that kernels
are compiled for aligned pointers and never twice.

* `slots[i]` is where token i's keys and values are written; -1 is nowhere.
* An item is the work of one program: a tile of queries and a span of the positions they look at.
  Chunks of many tokens have one item a tile. Of short ones (decodes, guessed tokens) each query is
  a tile of its own, and long contexts are cut into several spans, so that a GPU has work for all of
  its multiprocessors, whoever has how much.
* A row adds up the spans of one short query.

Kernels read `ITEM` and `ROW` numbers each. Where there is room for more, as in a recorded step, an
item that nobody needs is all zeros, which is no work, and row i is token i's, whose output is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.runtime.cuda.tiling import Tiling

Numbers = npt.NDArray[np.int32]
_Integers = npt.NDArray[np.int64]

ITEM = 8
"""First token of the tile, its number of queries, the first one's position; first position to look
at and the one behind the last; where the sequence's block table would begin; two unused."""
ROW = 4
"""The query's token, its first item, its number of items; one unused."""

MOST_SHORT_TOKENS = 16
"""A chunk with more is cut into tiles of several queries."""

_LEAST_SPAN = 64
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class GroupSections:
    """Where the numbers of one KV group lie in the array."""

    slots: slice
    chunk_items: slice
    short_items: slice
    rows: slice


@dataclass(frozen=True, slots=True)
class Sections:
    """Where everything lies in the array; the block tables begin at `blocks` and end it."""

    token_ids: slice
    positions: slice
    logit_rows: slice
    groups: tuple[GroupSections, ...]
    blocks: int

    @classmethod
    def of(cls, num_tokens: int, num_logits: int, works: Sequence[WorkSize]) -> Sections:
        """Sections with room for so much."""
        end = 0

        def take(size: int) -> slice:
            nonlocal end
            start, end = end, end + -(-size // _ALIGNMENT) * _ALIGNMENT
            return slice(start, start + size)

        head = take(num_tokens), take(num_tokens), take(num_logits)
        groups = [
            GroupSections(
                slots=take(num_tokens),
                chunk_items=take(work.num_chunk_items * ITEM),
                short_items=take(work.num_short_items * ITEM),
                rows=take(work.num_rows * ROW),
            )
            for work in works
        ]
        return cls(*head, tuple(groups), end)


@dataclass(frozen=True, slots=True)
class WorkSize:
    """How many items and rows a KV group has."""

    num_chunk_items: int
    num_short_items: int
    num_rows: int


@dataclass(slots=True)
class GroupWork:
    """What one KV group's layers do in a step. Arrays are [n, ITEM] and [n, ROW]."""

    slots: _Integers
    chunk_items: _Integers
    short_items: _Integers
    rows: _Integers

    @property
    def size(self) -> WorkSize:
        """How much it is."""
        return WorkSize(len(self.chunk_items), len(self.short_items), len(self.rows))


@dataclass(slots=True)
class StepNumbers:
    """A planned step."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    logit_rows: list[int] = field(default_factory=list)
    groups: list[GroupWork] = field(default_factory=list)
    tables: list[_Integers] = field(default_factory=list)
    """The block tables of each KV group, one sequence's behind another's."""

    @property
    def sections(self) -> Sections:
        """Sections that it just fits into."""
        works = [group.size for group in self.groups]
        return Sections.of(len(self.token_ids), len(self.logit_rows), works)

    def size_in(self, sections: Sections) -> int:
        """Length of the array that `write` fills."""
        return sections.blocks + sum(map(len, self.tables))

    def write(self, array: Numbers, sections: Sections) -> None:
        """Lay it out; what it does not need of the sections is no work."""
        array[: sections.blocks] = 0
        np.concatenate(self.tables, out=array[sections.blocks :], casting="same_kind")
        head = sections.token_ids, sections.positions, sections.logit_rows
        for numbers, section in zip(
            (self.token_ids, self.positions, self.logit_rows), head, strict=True
        ):
            _put(array, section, np.array(numbers, np.int32))
        for work, places in zip(self.groups, sections.groups, strict=True):
            array[places.slots] = -1
            array[places.rows][::ROW] = np.arange((places.rows.stop - places.rows.start) // ROW)
            _put(array, places.slots, work.slots)
            _put(array, places.chunk_items, work.chunk_items)
            _put(array, places.short_items, work.short_items)
            _put(array, places.rows, work.rows)


def _put(array: Numbers, section: slice, numbers: npt.NDArray[Any]) -> None:
    """Fill the section's beginning."""
    array[section.start : section.start + numbers.size] = numbers.ravel()


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The sequences of a batch as arrays: first token, number of tokens, first position of each."""

    firsts: _Integers
    counts: _Integers
    starts: _Integers

    @classmethod
    def of(cls, sequences: Sequence[ScheduledSequence]) -> _Tokens:
        counts = np.array([len(scheduled.token_ids) for scheduled in sequences], np.int64)
        starts = np.array([scheduled.start for scheduled in sequences], np.int64)
        return cls(np.cumsum(counts) - counts, counts, starts)


def plan_step(batch: Batch, tilings: Sequence[Tiling], block_size: int) -> StepNumbers:
    """Work out a step for KV groups that are tiled so."""
    step = StepNumbers()
    for scheduled in batch.sequences:
        step.token_ids += scheduled.token_ids
        step.positions += range(scheduled.start, scheduled.start + len(scheduled.token_ids))
        end = len(step.token_ids)
        step.logit_rows += range(end - scheduled.num_logits, end)
    tokens = _Tokens.of(batch.sequences)
    positions = np.array(step.positions, np.int64)
    num_blocks = 0
    for group, tiling in enumerate(tilings):
        begins, blocks = _tables(batch.sequences, group, tiling.window, block_size)
        entries = np.repeat(begins, tokens.counts) + positions // block_size
        slots = blocks[entries] * block_size + positions % block_size
        step.groups.append(_plan_work(tokens, begins + num_blocks, slots, tiling))
        step.tables.append(blocks)
        num_blocks += len(blocks)
    return step


def _tables(
    sequences: Sequence[ScheduledSequence], group: int, window: int | None, block_size: int
) -> tuple[_Integers, _Integers]:
    """Where each table would begin if it were whole, and the blocks that can be seen."""
    begins = np.empty(len(sequences), np.int64)
    blocks: list[int] = []
    for index, scheduled in enumerate(sequences):
        start = scheduled.start
        first = 0 if window is None else max(0, start - window + 1) // block_size
        last = (start + len(scheduled.token_ids) - 1) // block_size
        begins[index] = len(blocks) - first
        blocks += scheduled.block_tables[group][first : last + 1]
    return begins, np.array(blocks, np.int64)


def _plan_work(tokens: _Tokens, tables: _Integers, slots: _Integers, tiling: Tiling) -> GroupWork:
    is_short = tokens.counts <= MOST_SHORT_TOKENS
    chunks = _tiles(tokens, tables, np.flatnonzero(~is_short), tiling.chunk_queries, tiling.window)
    # The longest first: what is left at the end is small.
    chunks = chunks[np.argsort(chunks[:, 3] - chunks[:, 4], kind="stable")]
    queries = _tiles(tokens, tables, np.flatnonzero(is_short), 1, tiling.window)
    items, rows = _spans(queries, tiling.num_spans)
    return GroupWork(slots, chunks, items, rows)


def _tiles(
    tokens: _Tokens,
    tables: _Integers,
    sequences: _Integers,
    num_queries: int,
    window: int | None,
) -> _Integers:
    """Items for all tiles of these sequences, each over all that its queries look at."""
    num_tiles = -(-tokens.counts[sequences] // num_queries)
    owners = np.repeat(sequences, num_tiles)
    firsts = _count_up(num_tiles) * num_queries
    sizes = np.minimum(num_queries, tokens.counts[owners] - firsts)
    positions = tokens.starts[owners] + firsts
    items = np.zeros((len(owners), ITEM), np.int64)
    items[:, 0] = tokens.firsts[owners] + firsts
    items[:, 1] = sizes
    items[:, 2] = positions
    items[:, 3] = 0 if window is None else np.maximum(0, positions - window + 1)
    items[:, 4] = positions + sizes
    items[:, 5] = tables[owners]
    return items


def _spans(tiles: _Integers, num_spans: int) -> tuple[_Integers, _Integers]:
    """Cut tiles of one query into spans of equal length: at most `num_spans` more than tiles."""
    lengths = tiles[:, 4] - tiles[:, 3]
    length = max(_LEAST_SPAN, -(-int(lengths.sum()) // num_spans))
    length = -(-length // _LEAST_SPAN) * _LEAST_SPAN
    counts = -(-lengths // length)
    items = np.repeat(tiles, counts, axis=0)
    items[:, 3] += _count_up(counts) * length
    items[:, 4] = np.minimum(items[:, 4], items[:, 3] + length)
    rows = np.zeros((len(tiles), ROW), np.int64)
    rows[:, 0] = tiles[:, 0]
    rows[:, 1] = np.cumsum(counts) - counts
    rows[:, 2] = counts
    return items, rows


def _count_up(counts: _Integers) -> _Integers:
    """0, 1, …, counts[0] - 1, 0, 1, …, counts[1] - 1, …"""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
