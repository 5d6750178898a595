"""The numbers of a step, read back: what is written where, and what every token looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.numbered_attention import NumberedAttention
from tests.unit.runtime.test_step_plan import (
    BLOCK_SIZE,
    expected_views,
    lengths,
    make_batch,
    slot_of,
)
from tgwui_k8s.contract import Batch, KVGroup, KVLayout
from tgwui_k8s.runtime.cuda.step_numbers import ITEM, Sections, WorkSize, plan_step
from tgwui_k8s.runtime.cuda.tiling import Tiling, positions_per_pass, tile_rows
from tgwui_k8s.runtime.kv_layout import LayerShape, group_layers
from tgwui_k8s.runtime.kv_tensors import KVTensors

CPU = torch.device("cpu")
SHAPE = LayerShape(1, 1, 1)


def read_back(batch: Batch, tiling: Tiling, sections: Sections | None = None) -> NumberedAttention:
    """The step's numbers as a kernel finds them."""
    numbers = plan_step(batch, [tiling], BLOCK_SIZE)
    sections = sections or numbers.sections
    array = np.full(numbers.size_in(sections), 77, np.int32)
    numbers.write(array, sections)
    layout = KVLayout(block_size=BLOCK_SIZE, groups=(KVGroup(num_blocks=1),))
    groups = group_layers({0: SHAPE}, block_size=BLOCK_SIZE, element_bytes=4)
    kv = KVTensors({0: SHAPE}, groups, layout, dtype=torch.float32, device=CPU)
    return NumberedAttention(kv, [tiling], torch.from_numpy(array), sections)


@settings(max_examples=200, deadline=None)
@given(
    lengths=lengths,
    window=st.one_of(st.none(), st.integers(1, 60)),
    chunk_queries=st.integers(1, 40),
    num_spans=st.integers(1, 6),
)
def test_every_token_sees_exactly_its_past(
    lengths: list[tuple[int, int]], window: int | None, chunk_queries: int, num_spans: int
) -> None:
    """Each position once, whatever the mixture and however it is cut."""
    batch = make_batch(lengths, window)
    attention = read_back(batch, Tiling(window, chunk_queries, num_spans))
    assert attention.slots(0).tolist() == [
        slot_of(scheduled, position)
        for scheduled in batch.sequences
        for position in range(scheduled.start, scheduled.start + len(scheduled.token_ids))
    ]
    views: list[list[int]] = [[] for _ in range(batch.num_tokens)]
    for span in attention.spans(0, CPU):
        views[span.token] += span.slots.tolist()
    assert all(len(view) == len(set(view)) for view in views)
    assert [set(view) for view in views] == list(expected_views(batch, window))


@given(
    starts=st.lists(st.integers(0, 30000), min_size=1, max_size=64), num_spans=st.integers(1, 600)
)
def test_decodes_fit_the_room_of_a_recorded_step(starts: list[int], num_spans: int) -> None:
    """Never more spans than there is room for, none much longer than the others."""
    tiling = Tiling(None, 16, num_spans)
    (work,) = plan_step(make_batch([(start, 1) for start in starts], None), [tiling], 4).groups
    assert len(work.short_items) <= len(starts) + num_spans
    spans = work.short_items[:, 4] - work.short_items[:, 3]
    total = sum(starts) + len(starts)
    assert spans.min() >= 1
    assert spans.max() <= max(64, total / num_spans + 64)


def test_padding_is_no_work() -> None:
    """Two decodes where there is room for four: the others are written nowhere and see nothing."""
    sections = Sections.of(4, 4, [WorkSize(0, 4 + 8, 4)])
    attention = read_back(make_batch([(9, 1), (3, 1)], None), Tiling(None, 16, 8), sections)
    assert (attention.slots(0) >= 0).tolist() == [True, True, False, False]
    assert attention.tokens_without_work(0) == [2, 3]
    assert {span.token for span in attention.spans(0, CPU)} == {0, 1}


@given(num_tokens=st.integers(0, 300), num_items=st.integers(0, 300))
def test_every_section_begins_aligned(num_tokens: int, num_items: int) -> None:
    """Where Triton sees pointers that are multiples of 16 bytes, it compiles once."""
    work = WorkSize(num_items, num_items, num_tokens)
    sections = Sections.of(num_tokens, num_tokens, [work, work])
    head = [sections.token_ids, sections.positions, sections.logit_rows]
    places = [
        place
        for group in sections.groups
        for place in (group.slots, group.chunk_items, group.short_items, group.rows)
    ]
    ends = [0]
    for place in [*head, *places]:
        assert place.start % 4 == 0
        assert place.start >= ends[-1]
        ends.append(place.stop)
    assert sections.blocks % 4 == 0
    assert sections.blocks >= ends[-1]


def test_the_longest_tiles_of_chunks_come_first() -> None:
    """What is computed last is short, so that no multiprocessor is left alone with a long one."""
    batch = make_batch([(0, 100), (200, 50)], None)
    (work,) = plan_step(batch, [Tiling(None, 32, 8)], BLOCK_SIZE).groups
    sizes = (work.chunk_items[:, 4] - work.chunk_items[:, 3]).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert work.chunk_items.shape == (4 + 2, ITEM)


@pytest.mark.parametrize(
    ("shape", "chunk_queries", "num_spans"),
    [
        (LayerShape(8, 128, 128, queries_per_key=4), 32, 64),
        (LayerShape(32, 128, 128), 128, 16),
        (LayerShape(1, 256, 256, queries_per_key=8), 8, 512),
        (LayerShape(1, 64, 64, queries_per_key=71), 1, 512),
        (LayerShape(16, 192, 128), 64, 32),
    ],
)
def test_tiles_suit_the_layers(shape: LayerShape, chunk_queries: int, num_spans: int) -> None:
    """A tile's sums fit the registers; few key heads mean more spans."""
    tiling = Tiling.of([shape], None, 2)
    assert (tiling.chunk_queries, tiling.num_spans) == (chunk_queries, num_spans)
    assert tile_rows(chunk_queries, shape.queries_per_key) <= 128


def test_tiles_fit_shared_memory() -> None:
    """32 KiB of queries and 16 of keys at once, at least the 16 that tensor cores take."""
    assert Tiling.of([LayerShape(8, 256, 256)], None, 4).chunk_queries == 32
    assert positions_per_pass(128, 2) == 64
    assert positions_per_pass(256, 2) == 32
    assert positions_per_pass(256, 4) == 16
    assert positions_per_pass(512, 4) == 16
