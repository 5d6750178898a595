"""The plan of a step, read back: which slots are written and which every token may see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.runtime.step_plan import GroupPlan, StepPlanner

BLOCK_SIZE = 4


def make_batch(lengths: list[tuple[int, int]], window: int | None) -> Batch:
    """Sequences of (start, number of new tokens) with tables of blocks all their own."""
    sequences = []
    next_block = 1
    for row, (start, num_tokens) in enumerate(lengths):
        num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
        table = list(range(next_block, next_block + num_blocks))
        next_block += num_blocks
        if window is not None:
            dead = max(0, start - window + 1) // BLOCK_SIZE
            table[:dead] = [-1] * dead
        sequences.append(ScheduledSequence(row, start, [0] * num_tokens, (table,), 1))
    return Batch(sequences, sum(num_tokens for _, num_tokens in lengths))


def plan_step(batch: Batch, window: int | None) -> GroupPlan:
    """Plan on the CPU."""
    return StepPlanner(0, window, BLOCK_SIZE, torch.float32, torch.device("cpu")).plan(batch)


def slot_of(scheduled: ScheduledSequence, position: int) -> int:
    """Where a position of a sequence lies in the cache."""
    return scheduled.block_tables[0][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def expected_views(batch: Batch, window: int | None) -> Iterator[set[int]]:
    """For every token of the step the slots that it may see."""
    for scheduled in batch.sequences:
        for position in range(scheduled.start, scheduled.start + len(scheduled.token_ids)):
            first = 0 if window is None else max(0, position - window + 1)
            yield {slot_of(scheduled, seen) for seen in range(first, position + 1)}


def planned_views(plan: GroupPlan, num_tokens: int) -> list[set[int]]:
    """The same, from the plan."""
    views: list[set[int]] = [set() for _ in range(num_tokens)]
    for bucket in plan.decodes:
        slots = _slots(bucket.blocks).reshape(bucket.num_rows, -1)[:, bucket.first : bucket.last]
        for index, token in enumerate(bucket.rows.tolist()):
            row = slots[index]
            visible = row if bucket.mask is None else row[bucket.mask[index, 0, 0].numpy() == 0]
            assert not views[token]
            assert len(visible) == len(set(visible.tolist()))
            views[token] = set(visible.tolist())
    for chunk in plan.chunks:
        tokens = range(chunk.first_token, chunk.first_token + chunk.num_tokens)
        if chunk.blocks is None:
            slots = plan.slots[tokens.start : tokens.stop].numpy()
        else:
            slots = _slots(chunk.blocks)[: chunk.num_positions]
        for index, token in enumerate(tokens):
            visible = slots[: index + 1] if chunk.mask is None else slots[chunk.mask[index] == 0]
            assert not views[token]
            views[token] = set(visible.tolist())
    return views


def _slots(blocks: torch.Tensor) -> np.ndarray:
    return (blocks.numpy()[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).ravel()


lengths = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 200)), st.one_of(st.just(1), st.integers(1, 40))
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(lengths=lengths, window=st.one_of(st.none(), st.integers(1, 60)))
def test_every_token_sees_exactly_its_past(
    lengths: list[tuple[int, int]], window: int | None
) -> None:
    """Whatever the mixture of prefills, chunks and decodes, with and without a window."""
    batch = make_batch(lengths, window)
    plan = plan_step(batch, window)
    assert plan.slots.tolist() == [
        slot_of(scheduled, position)
        for scheduled in batch.sequences
        for position in range(scheduled.start, scheduled.start + len(scheduled.token_ids))
    ]
    assert planned_views(plan, batch.num_tokens) == list(expected_views(batch, window))


@given(starts=st.lists(st.integers(0, 5000), min_size=1, max_size=64))
def test_short_contexts_are_not_padded_to_long_ones(starts: list[int]) -> None:
    """What is gathered exceeds what is needed by a third, or by a few blocks a row."""
    plan = plan_step(make_batch([(start, 1) for start in starts], None), None)
    gathered = sum(bucket.blocks.numel() for bucket in plan.decodes)
    needed = sum(start // BLOCK_SIZE + 1 for start in starts)
    assert gathered <= needed * 4 / 3 + 8 * len(starts)


@pytest.mark.parametrize("starts", [[7], [9, 9, 9]])
def test_equal_contexts_need_no_mask(starts: list[int]) -> None:
    """The common case of one stream costs nothing."""
    plan = plan_step(make_batch([(start, 1) for start in starts], None), None)
    assert plan.is_one_bucket
    assert plan.decodes[0].mask is None


def test_a_prompt_alone_needs_neither_gathering_nor_mask() -> None:
    """Its keys and values are at hand."""
    (chunk,) = plan_step(make_batch([(0, 30)], None), None).chunks
    assert chunk.blocks is None
    assert chunk.mask is None
