"""Blocks of the scheduler over llama.cpp's cells, held against a memory that checks every rule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgwui_k8s.contract import (
    GenerationRequest,
    KVGroup,
    KVLayout,
    SamplingRow,
    ScheduledSequence,
)
from tgwui_k8s.engine.request import Lane, Request
from tgwui_k8s.engine.request import Sequence as EngineSequence
from tgwui_k8s.engine.scheduler import Schedule, Scheduler
from tgwui_k8s.errors import IntegrityError
from tgwui_k8s.runtime.llama_cpp.lanes import Lanes
from tgwui_k8s.sampling import SamplingParams

BLOCK = 4
NUM_BLOCKS = 12


@dataclass
class Cells:
    """llama.cpp's memory in small: cells with a position, a token and the lanes that hold them."""

    num_cells: int
    cells: list[tuple[int, int, set[int]]] = field(default_factory=list)

    def remove(self, lane: int, start: int, stop: int) -> None:
        for position, _, lanes in self.cells:
            if start <= position < stop:
                lanes.discard(lane)
        self.cells = [cell for cell in self.cells if cell[2]]

    def remove_all(self, lane: int) -> None:
        self.remove(lane, 0, 10**9)

    def share(self, source: int, lane: int, start: int, stop: int) -> None:
        for position, _, lanes in self.cells:
            if start <= position < stop and source in lanes:
                assert lane not in lanes
                lanes.add(lane)

    def compute(self, lane: int, start: int, token_ids: Sequence[int]) -> None:
        assert self.tokens_of(lane)[start:] == []
        for offset, token_id in enumerate(token_ids):
            self.cells.append((start + offset, token_id, {lane}))
        assert len(self.cells) <= self.num_cells

    def tokens_of(self, lane: int) -> list[int]:
        """What the lane attends to; every position once, none left out."""
        held = sorted((position, token) for position, token, lanes in self.cells if lane in lanes)
        assert [position for position, _ in held] == list(range(len(held)))
        return [token for _, token in held]


def run(part: ScheduledSequence, lanes: Lanes, cells: Cells, whole: Sequence[int]) -> None:
    """Compute a part as the runner does, and check that it sees its own past and nothing else."""
    lane = lanes.place(part)
    assert cells.tokens_of(lane) == list(whole[: part.start])
    cells.compute(lane, part.start, part.token_ids)
    assert cells.tokens_of(lane) == list(whole[: part.start + len(part.token_ids)])


def part(row: int, table: list[int], start: int, tokens: Sequence[int]) -> ScheduledSequence:
    return ScheduledSequence(row, start, tokens, (table,), 1)


def make(num_lanes: int = 4, *, keeps_blocks: bool = True) -> tuple[Lanes, Cells]:
    cells = Cells(NUM_BLOCKS * BLOCK)
    return (
        Lanes(cells, num_lanes=num_lanes, block_size=BLOCK, keeps_blocks=keeps_blocks),
        cells,
    )


def test_prefix_is_shared_and_not_computed_again() -> None:
    """A sequence that starts behind cached blocks holds the same cells."""
    lanes, cells = make()
    tokens = list(range(8))
    run(part(0, [5, 3], 0, tokens), lanes, cells, tokens)

    run(part(1, [5, 3, 7], 8, [90]), lanes, cells, [*tokens, 90])

    assert len(cells.cells) == 9
    assert len(lanes.holders(5)) == 2
    assert lanes.num_recomputed == 0


def test_block_that_is_written_anew_frees_its_cells_everywhere() -> None:
    """Cells never outnumber the blocks they belong to."""
    lanes, cells = make()
    tokens = list(range(8))
    run(part(0, [5, 3], 0, tokens), lanes, cells, tokens)
    run(part(1, [5, 3, 7], 8, [90]), lanes, cells, [*tokens, 90])

    run(part(2, [3], 0, [50, 51]), lanes, cells, [50, 51])

    assert len(lanes.holders(3)) == 1
    assert sorted(token for _, token, _ in cells.cells) == [0, 1, 2, 3, 50, 51, 90]


def test_hole_in_an_ended_lane_leaves_the_rest_cached() -> None:
    """Two computed the same prefix at once: the later one's copy goes, what follows it stays."""
    lanes, cells = make(num_lanes=6)
    first, second = [*range(4), 10, 11, 12, 13], [*range(4), 20, 21, 22, 23]
    run(part(0, [0, 1], 0, first), lanes, cells, first)
    run(part(1, [2, 3], 0, second), lanes, cells, second)
    run(part(2, [2], 0, [77]), lanes, cells, [77])

    run(part(1, [0, 3, 4], 8, [30]), lanes, cells, [*second, 30])

    assert lanes.num_recomputed == 0


def test_lost_blocks_are_computed_again() -> None:
    """With more prefixes than lanes the oldest is emptied; who counts on it still gets it."""
    lanes, cells = make(num_lanes=2)
    old = list(range(8))
    run(part(0, [0, 1], 0, old), lanes, cells, old)
    run(part(0, [2], 0, [40]), lanes, cells, [40])
    run(part(0, [3], 0, [41]), lanes, cells, [41])

    run(part(1, [0, 1, 4], 8, [9]), lanes, cells, [*old, 9])

    assert lanes.num_recomputed == 8


def test_without_kept_blocks_a_lane_dies_whole() -> None:
    """Recurrent memory cannot be cut: a block that begins anew empties the lane that held it."""
    lanes, cells = make(num_lanes=2, keeps_blocks=False)
    run(part(0, [0, 1], 0, list(range(8))), lanes, cells, list(range(8)))

    run(part(1, [1], 0, [50]), lanes, cells, [50])

    assert [token for _, token, _ in cells.cells] == [50]


def test_wrong_guesses_are_taken_back() -> None:
    """A lane that computed ahead goes back to where its sequence is, also across a block's end."""
    lanes, cells = make()
    run(part(0, [0, 1], 0, [1, 2, 3, 70, 71, 72]), lanes, cells, [1, 2, 3, 70, 71, 72])

    run(part(0, [0, 1], 3, [4, 5]), lanes, cells, [1, 2, 3, 4, 5])

    assert sorted(token for _, token, _ in cells.cells) == [1, 2, 3, 4, 5]


def test_gap_is_a_fault() -> None:
    """Going on where the lane does not end, or from blocks never computed, is a bug that shows."""
    lanes, cells = make()
    run(part(0, [0], 0, [1, 2]), lanes, cells, [1, 2])

    with pytest.raises(IntegrityError, match="row 0 cannot go on at position 3"):
        lanes.place(part(0, [0], 3, [4]))
    with pytest.raises(IntegrityError, match="never computed"):
        lanes.place(part(1, [6, 7], 4, [4]))


def make_sequence(prompt: list[int], arrival: int) -> EngineSequence:
    """A sequence of one lane, as the engine core makes them."""
    source = GenerationRequest(
        request_id=str(arrival),
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=30),
    )
    request = Request(source, arrival=arrival, arrival_time=0.0)
    row = SamplingRow(SamplingParams(max_tokens=30), (), tuple(prompt), [])
    sequence = EngineSequence(request, 0, (Lane(list(prompt), 1),), row)
    request.sequences = [sequence]
    return sequence


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_lanes=st.sampled_from([3, 4, 8]), keeps=st.booleans())
def test_every_schedule_sees_its_own_past(seed: int, num_lanes: int, keeps: bool) -> None:
    """Whatever the scheduler does (chunks, prefixes, preemption, aborts), each lane is right."""
    source = random.Random(seed)
    layout = KVLayout(
        block_size=BLOCK, groups=(KVGroup(num_blocks=NUM_BLOCKS),), prefix_caching=keeps
    )
    scheduler = Scheduler(layout, max_num_seqs=3, max_num_batched_tokens=7)
    lanes, cells = make(num_lanes, keeps_blocks=keeps)
    live = []
    for number in range(40):
        if source.random() < 0.4:
            prompt = [source.choice((1, 2))] * source.randint(1, 9) + [source.randint(3, 5)]
            sequence = make_sequence(prompt, arrival=number)
            if scheduler.can_ever_run(sequence, 0):
                scheduler.enqueue(sequence)
                live.append(sequence)
        schedule = scheduler.schedule()
        step(schedule, scheduler, lanes, cells, source, keeps=keeps)
        for sequence in [s for s in live if source.random() < 0.1]:
            scheduler.finish(sequence)
            live.remove(sequence)
        scheduler.check_integrity()


def step(
    schedule: Schedule,
    scheduler: Scheduler,
    lanes: Lanes,
    cells: Cells,
    source: random.Random,
    *,
    keeps: bool,
) -> None:
    """One step of an engine, its sampler replaced by dice."""
    parts = iter(schedule.batch.sequences)
    for sequence, scheduled in schedule.entries:
        for piece in scheduled:
            part = next(parts)
            guesses: list[int] = []
            if keeps and sequence.is_decoding:
                room = len(part.block_tables[0]) * BLOCK - part.start - len(part.token_ids)
                guesses = [9] * source.randint(0, room)
            part.token_ids = [*part.token_ids, *guesses]
            run(part, lanes, cells, [*piece.lane.token_ids, *guesses])
        scheduler.advance(sequence, scheduled)
        if sequence.num_uncomputed == 0:
            if len(sequence.lanes[0].token_ids) < 30:
                sequence.take(source.choice((1, 2)))
            else:
                scheduler.finish(sequence)
