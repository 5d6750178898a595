"""Who computes what in the next step: admission, chunked prefill, preemption.

One token budget per step is shared by all. Decodes come first, so that a long prompt cannot
stall streams that are already flowing; then prompts under way; then new ones, first come first
served within a priority. When blocks run out, the sequence that would go last gives its blocks
back and is computed again later (preemption by recomputation): whoever goes first always
advances, so nobody starves behind equals.

What is left of the budget goes to guesses at what decoding sequences say next, where they asked
for them (`prompt_lookup`). A guess never makes anybody wait or give blocks back in its step.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from tgwui_k8s.contract import MAX_SCORED_ROWS, Batch, KVLayout, ScheduledSequence
from tgwui_k8s.engine.kv_cache import KVCache
from tgwui_k8s.engine.request import Lane, Sequence, Status
from tgwui_k8s.errors import IntegrityError


@dataclass(slots=True)
class ScheduledLane:
    """`num_tokens` tokens of a lane from `start`, and how many of the last of them need logits."""

    lane: Lane
    start: int
    num_tokens: int
    num_logits: int
    num_drafts: int = 0
    """Guessed tokens behind them, each of which has logits, too."""


@dataclass(slots=True)
class Schedule:
    """One step: the batch for the runner, and what it means to us."""

    batch: Batch
    entries: list[tuple[Sequence, list[ScheduledLane]]] = field(default_factory=list)
    num_scored_rows: int = 0
    """Rows of logits that are wanted of prompts."""

    def add(self, sequence: Sequence, parts: list[ScheduledLane]) -> None:
        """Put parts of a sequence into the batch."""
        self.entries.append((sequence, parts))
        for part in parts:
            lane, start = part.lane, part.start
            self.batch.sequences.append(
                ScheduledSequence(
                    row=lane.row,
                    start=start,
                    token_ids=lane.token_ids[start : start + part.num_tokens],
                    block_tables=lane.block_tables,
                    num_logits=part.num_logits,
                    adapter=lane.adapter,
                )
            )
            self.batch.num_tokens += part.num_tokens
        self.num_scored_rows += _num_scored_rows(parts)

    def add_draft(self, position: int, part: ScheduledLane, draft: list[int]) -> None:
        """Compute guessed tokens behind the newest one of the batch's entry at `position`."""
        scheduled = self.batch.sequences[position]
        scheduled.token_ids = [*scheduled.token_ids, *draft]
        scheduled.num_logits += len(draft)
        part.num_logits += len(draft)
        part.num_drafts = len(draft)
        self.batch.num_tokens += len(draft)

    def remove(self, sequence: Sequence) -> int:
        """Take a sequence that was preempted out again; returns the tokens this frees."""
        for position, (scheduled, parts) in enumerate(self.entries):
            if scheduled is sequence:
                first = sum(len(others) for _, others in self.entries[:position])
                del self.batch.sequences[first : first + len(parts)]
                del self.entries[position]
                num_tokens = sum(part.num_tokens for part in parts)
                self.batch.num_tokens -= num_tokens
                self.num_scored_rows -= _num_scored_rows(parts)
                return num_tokens
        return 0


class Scheduler:
    """Sequences waiting and running, over one KV cache. Plain Python: no torch, no clock."""

    def __init__(self, layout: KVLayout, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.layout = layout
        self.kv_cache = KVCache(layout)
        self.max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs)
        self.max_num_seqs = max_num_seqs
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        """In the order in which they will start; preempted ones among them."""
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._free_rows = list(range(max_num_seqs))
        self._last_was_prefill = False

    # --------------------------------------------------------------------------- life of a sequence

    @property
    def has_work(self) -> bool:
        """True when a step would have something to compute, now or once blocks are free."""
        return bool(self.running or self.waiting)

    def enqueue(self, sequence: Sequence) -> None:
        """Put a sequence into the waiting queue."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_order)

    def can_ever_run(self, sequence: Sequence, num_tokens: int) -> bool:
        """True if the sequence could be computed alone, up to `num_tokens` more tokens."""
        per_lane = [self._blocks_to_hold(lane, num_tokens) for lane in sequence.lanes]
        return len(sequence.lanes) <= self.max_num_seqs and self.kv_cache.can_hold(
            sum(counts) for counts in zip(*per_lane, strict=True)
        )

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, in whatever state it is, and free its blocks and rows."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence.status is Status.WAITING:
            del self.waiting[bisect_left(self.waiting, sequence.order, key=_order)]
        sequence.status = Status.FINISHED

    def advance(self, sequence: Sequence, parts: list[ScheduledLane]) -> None:
        """Note that the scheduled tokens are computed before any later step is."""
        for part in parts:
            self.kv_cache.advance(part.lane, part.start + part.num_tokens)

    def preempt(self, sequence: Sequence) -> None:
        """Take back what a running sequence holds, and let it wait to be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        self.enqueue(sequence)
        self.num_preemptions += 1

    def confirm(self, sequence: Sequence, token_id: int) -> bool:
        """True if the token just sampled was guessed: its keys and values are there already.

        The logits that follow it are those of the sequence, and the next token can be sampled.
        """
        if sequence.status is not Status.RUNNING or sequence.lookup is None:
            return False
        if not sequence.lookup.confirm(token_id):
            return False
        self.num_accepted_tokens += 1
        for lane in sequence.lanes:
            self.kv_cache.advance(lane, lane.num_computed + 1)
        return True

    # ------------------------------------------------------------------------------------- a step

    def schedule(self) -> Schedule:
        """Choose what the next step computes; empty when nothing can run."""
        schedule = Schedule(Batch(sequences=[], num_tokens=0))
        num_preemptions = self.num_preemptions
        decodes = [seq for seq in self.running if seq.is_decoding]
        if self._may_decode(decodes):
            self._schedule_running(schedule, decodes)
        if self.layout.mixed_batches or not schedule.entries:
            self._schedule_running(schedule, [s for s in self.running if not s.is_decoding])
            if self.num_preemptions == num_preemptions:
                self._admit(schedule)
            if not self.layout.mixed_batches and not schedule.entries:
                self._schedule_running(schedule, decodes)
        self._last_was_prefill = any(not seq.is_decoding for seq, _ in schedule.entries)
        self._speculate(schedule)
        return schedule

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if a block or row is lost, shared wrongly or counted wrongly."""
        lanes = [lane for sequence in self.running for lane in sequence.lanes]
        self.kv_cache.check_integrity(lanes)
        rows = sorted([lane.row for lane in lanes] + self._free_rows)
        if rows != list(range(self.max_num_seqs)):
            raise IntegrityError(f"rows are lost or given out twice: {rows}")

    # ----------------------------------------------------------------------------------- internals

    def _may_decode(self, decodes: list[Sequence]) -> bool:
        """Without mixed batches, prefills and decodes take turns while there are both."""
        if self.layout.mixed_batches or self._last_was_prefill:
            return True
        prompts_wait = len(decodes) < len(self.running) or bool(self.waiting)
        return not prompts_wait

    def _schedule_running(self, schedule: Schedule, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence.status is not Status.RUNNING:
                continue  # preempted for one before it
            parts = self._plan(schedule, sequence)
            if parts and self._make_room(schedule, sequence, parts):
                schedule.add(sequence, parts)

    def _speculate(self, schedule: Schedule) -> None:
        """Let decodes compute guesses with the budget, logits and blocks that are left."""
        position = -1
        num_logits_left = MAX_SCORED_ROWS - schedule.batch.num_logits
        for sequence, parts in schedule.entries:
            position += len(parts)
            if sequence.lookup is None or not sequence.is_decoding or sequence.wants_prompt_logits:
                continue
            lane = parts[0].lane
            limit = min(
                self.max_num_batched_tokens - schedule.batch.num_tokens,
                num_logits_left,
                self.kv_cache.num_tokens_to_hold(lane) - len(lane.token_ids),
            )
            draft = sequence.lookup.draft(lane.token_ids, limit)
            if draft:
                self.kv_cache.extend(lane, len(lane.token_ids) + len(draft))
                schedule.add_draft(position, parts[0], draft)
                num_logits_left -= len(draft)
                self.num_draft_tokens += len(draft)

    def _plan(self, schedule: Schedule, sequence: Sequence) -> list[ScheduledLane]:
        """Which tokens of a sequence fit what is left of the step; nothing if none.

        The newest token of any lane is computed only together with that of every other lane,
        because their logits are needed in one step.
        """
        budget = self.max_num_batched_tokens - schedule.batch.num_tokens
        most = self._most_scored(schedule, sequence)
        is_complete = sequence.num_uncomputed <= budget and sequence.lanes[0].num_uncomputed <= most
        if not self.layout.chunked_prefill and not sequence.is_decoding:
            is_complete = is_complete or budget == self.max_num_batched_tokens
            if not is_complete:
                return []
        parts = []
        for lane in sequence.lanes:
            num_tokens = lane.num_uncomputed
            num_logits = 1 if is_complete else 0
            if not is_complete:
                num_tokens -= len(sequence.lanes) > 1
                num_tokens = min(num_tokens, budget)
            if lane is sequence.lanes[0] and sequence.wants_prompt_logits:
                num_logits = num_tokens = min(num_tokens, most)
            if num_tokens > 0:
                parts.append(ScheduledLane(lane, lane.num_computed, num_tokens, num_logits))
                budget -= num_tokens
        return parts

    def _most_scored(self, schedule: Schedule, sequence: Sequence) -> int:
        """How many tokens of the sequence's prompt may have logits in this step."""
        is_chunked = self.layout.chunked_prefill and not sequence.is_decoding
        if is_chunked and sequence.wants_prompt_logits:
            return MAX_SCORED_ROWS - schedule.num_scored_rows
        return sequence.num_uncomputed

    def _make_room(
        self, schedule: Schedule, sequence: Sequence, parts: list[ScheduledLane]
    ) -> bool:
        """Give every part its blocks, preempting whoever goes last; False if that is us."""
        for part in parts:
            while not self.kv_cache.extend(part.lane, part.lane.num_computed + part.num_tokens):
                victim = max(self.running, key=_order)
                schedule.remove(victim)
                self.preempt(victim)
                if victim is sequence:
                    return False
        return True

    def _admit(self, schedule: Schedule) -> None:
        """Start waiting sequences in order while budget, rows and blocks last."""
        while self.waiting and self._start(schedule, self.waiting[0]):
            self.waiting.pop(0)

    def _start(self, schedule: Schedule, sequence: Sequence) -> bool:
        budget = self.max_num_batched_tokens - schedule.batch.num_tokens
        if budget <= 0 or len(sequence.lanes) > len(self._free_rows):
            return False
        prefixes = [self._find_prefix(sequence, lane) for lane in sequence.lanes]
        if not self._fits(sequence, prefixes):
            return False
        for lane, num_blocks in zip(sequence.lanes, prefixes, strict=True):
            self.kv_cache.adopt_prefix(lane, num_blocks)
            lane.row = heapq.heappop(self._free_rows)
        parts = self._plan(schedule, sequence)
        # Without a part of this step, a prompt in chunks runs on in the next.
        if not (parts or self.layout.chunked_prefill) or not all(
            self.kv_cache.extend(part.lane, part.lane.num_computed + part.num_tokens)
            for part in parts
        ):
            self._release(sequence)
            return False
        self._count_prefix(sequence)
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        if parts:
            schedule.add(sequence, parts)
        return True

    def _find_prefix(self, sequence: Sequence, lane: Lane) -> int:
        # Cached blocks have no logits: what needs every position's is computed anew.
        if lane is sequence.lanes[0] and sequence.wants_prompt_logits:
            return 0
        return self.kv_cache.find_prefix(lane)

    def _fits(self, sequence: Sequence, prefixes: list[int]) -> bool:
        """True if the whole prompt fits beside what running prompts will still take."""
        taken = [
            self.kv_cache.num_blocks_to_take(lane, num_cached, self._blocks_to_hold(lane))
            for lane, num_cached in zip(sequence.lanes, prefixes, strict=True)
        ]
        prompts = [running for running in self.running if not running.is_decoding]
        return all(
            sum(counts[group] for counts in taken) + self._promised_blocks(prompts, group)
            <= pool.num_free
            for group, pool in enumerate(self.kv_cache.pools)
        )

    def _promised_blocks(self, prompts: list[Sequence], group: int) -> int:
        """Blocks that prompts under way have not taken yet but will."""
        return sum(
            max(
                0,
                self._blocks_to_hold(lane)[group]
                - (len(lane.block_tables[group]) - lane.first_live_blocks[group]),
            )
            for sequence in prompts
            for lane in sequence.lanes
        )

    def _blocks_to_hold(self, lane: Lane, num_more_tokens: int = 0) -> list[int]:
        return self.kv_cache.num_blocks_to_hold(
            len(lane.token_ids) + num_more_tokens, self.max_num_batched_tokens
        )

    def _count_prefix(self, sequence: Sequence) -> None:
        lane = sequence.lanes[0]
        if not sequence.has_answered:
            sequence.num_cached_tokens = lane.num_computed
        self.prefix_cache_queries += len(lane.token_ids)
        self.prefix_cache_hits += lane.num_computed

    def _release(self, sequence: Sequence) -> None:
        for lane in sequence.lanes:
            self.kv_cache.release(lane)
            heapq.heappush(self._free_rows, lane.row)
            lane.row = -1


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _num_scored_rows(parts: list[ScheduledLane]) -> int:
    return sum(part.num_logits for part in parts if part.num_logits > 1)
