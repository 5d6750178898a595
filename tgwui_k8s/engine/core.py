"""The step loop: schedule → launch → settle. One thread, no processes.

To settle a step is to read or choose its tokens, and to book what they mean. Where the host
computes, that happens at once; where a device does, a step is settled after the next one has been
launched, so that the device need not wait for us (`launching`). The tokens are the same.

Everything that happens to a request happens inside `step()` or between two steps; whoever hosts
the core (the engine process, `LLM`, a test) calls it from one thread.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from concurrent.futures import Future

from tgwui_k8s.contract import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    ModelRunner,
    SampledToken,
    Sampler,
)
from tgwui_k8s.engine.adapters import Adapters
from tgwui_k8s.engine.answers import Answers
from tgwui_k8s.engine.endings import ends_with_next, why_ended
from tgwui_k8s.engine.grammar import GrammarDesk, GrammarError, Grammars, GrammarState
from tgwui_k8s.engine.launching import LaunchedStep, Launcher, Ready, Scored
from tgwui_k8s.engine.messages import EngineSettings, RequestDeltas
from tgwui_k8s.engine.new_sequences import make_sequences
from tgwui_k8s.engine.prompt_logits import read_prompt_logits
from tgwui_k8s.engine.request import Request, Sequence, Status
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.engine.scheduler import Schedule, Scheduler
from tgwui_k8s.errors import OverloadedError

_IDLE_WAIT_SECONDS = 0.005
"""For a grammar, where there is nothing else to do; messages wait as long."""


class EngineCore:
    """Requests in, token deltas out, over one model runner."""

    def __init__(
        self,
        runner: ModelRunner,
        settings: EngineSettings,
        *,
        grammars: Grammars | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `grammars`, no request may have one."""
        self.runner = runner
        self.sampler: Sampler = runner.sampler or NumpySampler()
        self.scheduler = Scheduler(
            runner.layout,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.token_budget(runner.info.device),
        )
        self.adapters = Adapters(runner)
        self._launcher = Launcher(runner, self.sampler)
        self._in_flight: LaunchedStep | None = None
        self.num_steps = 0
        self.step_tokens = 0
        """Of the step under way; 0 between steps."""
        self._max_waiting_requests = settings.max_waiting_requests
        self._clock = clock
        self._grammar_desk = None if grammars is None else GrammarDesk(grammars)
        self._requests: dict[str, Request] = {}
        self._num_arrivals = 0
        self._num_waiting_requests = 0
        self._deadlines: list[tuple[float, str]] = []
        self._answers = Answers()
        self._prompt_tokens = 0
        self._generation_tokens = 0

    # ---------------------------------------------------------------------------------- requests

    def add_request(self, request: GenerationRequest) -> None:
        """Take a request; its deltas come from the following steps.

        Raises `OverloadedError` when the waiting queue is full.
        """
        if self._num_waiting_requests >= self._max_waiting_requests:
            raise OverloadedError("The waiting queue is full. Please try again later.")
        self._num_arrivals += 1
        adapter = self.adapters.acquire(request.adapter)
        added = Request(
            request,
            arrival=self._num_arrivals,
            arrival_time=self._clock(),
            adapter=adapter or "",
        )
        added.sequences = make_sequences(added, self.runner, self.sampler, self._launcher)
        self._requests[request.request_id] = added
        self._num_waiting_requests += 1
        if added.deadline is not None:
            heapq.heappush(self._deadlines, (added.deadline, request.request_id))
        if adapter is None:
            self._fail_all(added, "The adapter has been unloaded.", "model_not_found")
        elif not request.grammar:
            self._start(added)
        elif self._grammar_desk is not None:
            self._grammar_desk.submit(request.request_id, request.grammar)
        else:
            self._fail_all(added, "The engine knows no grammars.", "invalid_grammar")

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one choice of it, at once; unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is None:
            return
        for sequence in request.sequences:
            if index is None or sequence.index == index:
                self._finish(sequence, "abort", tell=False)
        if index is None:
            self._answers.drop(request_id)

    @property
    def has_work(self) -> bool:
        """True when `step()` has something to do."""
        compiles = self._grammar_desk is not None and self._grammar_desk.has_pending
        is_idle = self._in_flight is None and not self.scheduler.has_work
        return bool(self._answers) or compiles or not is_idle

    @property
    def stats(self) -> EngineStats:
        """Gauges now and counters since the start."""
        scheduler = self.scheduler
        return EngineStats(
            num_requests_running=len(self._requests) - self._num_waiting_requests,
            num_requests_waiting=self._num_waiting_requests,
            kv_cache_usage=scheduler.kv_cache.usage,
            num_steps=self.num_steps,
            num_preemptions=scheduler.num_preemptions,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_draft_tokens=scheduler.num_draft_tokens,
            num_accepted_tokens=scheduler.num_accepted_tokens,
            kv_block_size=scheduler.layout.block_size,
            kv_num_blocks=scheduler.layout.groups[0].num_blocks,
        )

    def check_integrity(self) -> None:
        """Raise `IntegrityError` if a block, a row or a request is lost or counted twice."""
        self.scheduler.check_integrity()

    # -------------------------------------------------------------------------------------- a step

    def step(self) -> list[RequestDeltas]:
        """Compute one batch, and return what this or the one before produced; perhaps nothing."""
        self._expire()
        self._start_compiled()
        schedule = self.scheduler.schedule()
        before, self._in_flight = self._in_flight, None
        if schedule.entries or before is not None:
            self.step_tokens = schedule.batch.num_tokens + (before.num_tokens if before else 0)
            if schedule.entries:
                self._in_flight = self._launch(schedule, before)
            if before is not None:
                self._settle(before)
            if self._in_flight is not None and self._in_flight.pending is None:
                self._settle(self._in_flight)
                self._in_flight = None
            self.step_tokens = 0
        return self._answers.take()

    def _launch(self, schedule: Schedule, before: LaunchedStep | None) -> LaunchedStep:
        """Give the runner a step, and book what is certain of it already."""
        now = self._clock()
        step = self._launcher.launch(schedule.batch, before)
        first_row = 0
        for sequence, parts in schedule.entries:
            if sequence.request.first_scheduled_time is None:
                self._note_first_step(sequence.request, now)
            if sequence.wants_prompt_logits:
                step.scored.append(Scored(sequence, parts[0], first_row))
            self.scheduler.advance(sequence, parts)
            last_rows = []
            for part in parts:
                first_row += part.num_logits
                last_rows.append(first_row - 1)
            if sequence.num_uncomputed == 0:
                guidance_row = last_rows[1] if len(last_rows) > 1 else None
                step.ready.append(Ready(sequence, last_rows[0] - parts[0].num_drafts, guidance_row))
        self._release_siblings(schedule)
        if self._launcher.choose(step):
            for row, ready in enumerate(step.ready):
                if not ends_with_next(ready.sequence, self.runner.info.max_model_len):
                    ready.sequence.promise(row)
        return step

    def _settle(self, step: LaunchedStep) -> None:
        """Read what a step chose, or choose now, and book it."""
        for scored in step.scored:
            if scored.sequence.status is not Status.FINISHED:
                read_prompt_logits(
                    self.sampler, scored.sequence, scored.part, step.logits, scored.first_row
                )
        if step.pending is not None:
            for ready, token in zip(step.ready, step.pending.read(), strict=True):
                if self._still_counts(ready.sequence, step):
                    self._take(ready.sequence, token)
        else:
            self._sample(
                [ready for ready in step.ready if self._still_counts(ready.sequence, step)], step
            )
        self.num_steps += 1

    def _still_counts(self, sequence: Sequence, step: LaunchedStep) -> bool:
        return sequence.status is not Status.FINISHED and sequence not in step.void

    def _sample(self, ready: list[Ready], step: LaunchedStep) -> None:
        """Choose the next token of every sequence that is ready."""
        ready = self._drop_empty(ready)
        while ready:
            sequences = [one.sequence for one in ready]
            self._set_masks(sequences)
            sampled = self.sampler.sample(
                step.logits,
                [sequence.sampling for sequence in sequences],
                [one.logits_row for one in ready],
                [one.guidance_row for one in ready],
            )
            for sequence, token in zip(sequences, sampled, strict=True):
                self._take(sequence, token)
            # Where the token was guessed, the logits of the one after it are there as well.
            ready = [
                Ready(one.sequence, one.logits_row + 1, None)
                for one, token in zip(ready, sampled, strict=True)
                if self.scheduler.confirm(one.sequence, token.token_id)
            ]

    def _take(self, sequence: Sequence, token: SampledToken) -> None:
        """Append a sampled token, decide whether it ends the choice, and tell."""
        if token.token_id < 0:
            self._fail_unsampled(sequence)
            return
        self._generation_tokens += 1
        num_outputs = sequence.take(token.token_id)
        if token.was_retried:
            self._go_back(sequence)
        if not self._fits_grammar(sequence, (token.token_id,)):
            return
        finish_reason = why_ended(
            sequence, token.token_id, num_outputs, self.runner.info.max_model_len
        )
        is_stop_token = finish_reason == "stop"
        if finish_reason is None and sequence.is_grammar_complete:
            finish_reason = "stop"
        self._answers.tell(
            sequence,
            token_ids=(token.token_id,),
            logprobs=() if token.logprobs is None else (token.logprobs,),
            finish_reason=finish_reason,
            stop_token_id=token.token_id if is_stop_token else None,
        )
        if finish_reason is not None:
            self._finish(sequence, finish_reason, tell=False)

    def _go_back(self, sequence: Sequence) -> None:
        """Compute a sequence again that the step under way computes from another token."""
        if self._in_flight is not None:
            self._in_flight.void.add(sequence)
        sequence.forget_unknown()
        if sequence.status is Status.RUNNING:
            self.scheduler.preempt(sequence)

    # ---------------------------------------------------------------------------------- grammars

    def _start_compiled(self) -> None:
        """Queue the requests whose grammars are compiled; wait a moment where all else is idle."""
        if self._grammar_desk is None or not self._grammar_desk.has_pending:
            return
        is_idle = not self._answers and self._in_flight is None and not self.scheduler.has_work
        seconds = _IDLE_WAIT_SECONDS if is_idle else 0.0
        for request_id, compiled in self._grammar_desk.take_compiled(seconds):
            request = self._requests.get(request_id)
            if request is not None:
                self._give_grammar(request, compiled)
                if not request.is_finished:
                    self._start(request)

    def _give_grammar(self, request: Request, compiled: Future[GrammarState]) -> None:
        """Let every choice start where its resumed tokens lead in the grammar."""
        error = compiled.exception()
        if error is not None:
            self._fail_all(request, f"The grammar does not compile: {error}", "invalid_grammar")
            return
        for sequence in request.sequences:
            sequence.grammar = compiled.result().copy()
        for sequence in request.sequences:
            self._fits_grammar(sequence, request.resumed_token_ids(sequence.index))

    def _fail_unsampled(self, sequence: Sequence) -> None:
        """End a sequence for which no token could be chosen."""
        mask = sequence.sampling.allowed_token_ids
        if mask is not None and not mask.any():
            message = "The grammar allows no token of the model's vocabulary here."
            self._fail(sequence, message, "invalid_grammar")
        else:
            for lane in sequence.lanes:  # the NaN may be in its blocks
                self.scheduler.kv_cache.forget(lane)
            self._fail(sequence, "The model returned no valid probabilities.", "internal_error")

    def _set_masks(self, ready: list[Sequence]) -> None:
        """Tell the sampler what the grammars allow next."""
        constrained = [sequence for sequence in ready if sequence.grammar is not None]
        if constrained and self._grammar_desk is not None:
            states = [sequence.grammar for sequence in constrained]
            rows = [sequence.sampling for sequence in constrained]
            self._grammar_desk.grammars.set_masks(states, rows)

    def _fits_grammar(self, sequence: Sequence, token_ids: tuple[int, ...]) -> bool:
        """Advance the sequence's grammar, if it has one; False where that ends the sequence."""
        if sequence.grammar is None:
            return True
        try:
            sequence.grammar.take(token_ids)
        except GrammarError as error:
            reason = f"The text cannot be continued to match the grammar: {error}"
            self._fail(sequence, reason, "invalid_grammar")
            return False
        return True

    # ------------------------------------------------------------------------- life of a sequence

    def _start(self, request: Request) -> None:
        """Queue the first choice; the others follow when the prompt they share is computed."""
        for sequence in request.sequences:
            resumed = request.resumed_token_ids(sequence.index)
            num_more = request.source.params.max_tokens - len(resumed)
            reason = self._why_finished_elsewhere(sequence, resumed)
            if reason is not None:
                self._finish(sequence, reason)
            elif not self.scheduler.can_ever_run(sequence, num_more):
                self._fail(
                    sequence,
                    "The request needs more KV cache than there is: shorten the prompt, lower "
                    "max_tokens, or drop the guidance.",
                    "context_length_exceeded",
                )
        if not request.is_finished:
            self._unblock_leader(request)

    def _why_finished_elsewhere(
        self, sequence: Sequence, resumed: tuple[int, ...]
    ) -> FinishReason | None:
        """The reason why resumed tokens already are the whole answer, if they are."""
        if not resumed:
            return None
        if sequence.is_grammar_complete:
            return "stop"
        return why_ended(sequence, resumed[-1], len(resumed), self.runner.info.max_model_len)

    def _unblock_leader(self, request: Request) -> None:
        """Queue the first choice that is left, unless one is under way already."""
        if all(s.status in (Status.BLOCKED, Status.FINISHED) for s in request.sequences):
            blocked = [s for s in request.sequences if s.status is Status.BLOCKED]
            for sequence in blocked[:1]:
                self.scheduler.enqueue(sequence)

    def _release_siblings(self, schedule: Schedule) -> None:
        """Let the other choices start once the prompt's blocks are there to be shared."""
        for sequence, _ in schedule.entries:
            siblings = sequence.request.sequences
            if len(siblings) > 1 and sequence.num_uncomputed == 0:
                for sibling in siblings:
                    if sibling.status is Status.BLOCKED:
                        self.scheduler.enqueue(sibling)

    def _drop_empty(self, ready: list[Ready]) -> list[Ready]:
        """Finish the choices that want no tokens at all (`max_tokens` 0), keep the others."""
        for one in ready:
            if one.sequence.sampling.params.max_tokens == 0:
                self._finish(one.sequence, "length")
        return [one for one in ready if one.sequence.status is not Status.FINISHED]

    def _finish(self, sequence: Sequence, reason: FinishReason, *, tell: bool = True) -> None:
        if sequence.status is Status.FINISHED:
            return
        self.scheduler.finish(sequence)
        sequence.finish_reason = reason
        if tell:
            self._answers.tell(sequence, finish_reason=reason)
        if sequence.request.is_finished:
            self._forget(sequence.request)
        else:
            self._unblock_leader(sequence.request)

    def _fail(self, sequence: Sequence, message: str, code: str) -> None:
        if sequence.status is not Status.FINISHED:
            self._answers.tell(sequence, finish_reason="error", error=(message, code))
            self._finish(sequence, "error", tell=False)

    def _fail_all(self, request: Request, message: str, code: str) -> None:
        for sequence in list(request.sequences):
            self._fail(sequence, message, code)

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        request.sequences.clear()  # they know it: nothing of it is left to the garbage collector
        self.adapters.release(request.adapter)
        if request.first_scheduled_time is None:
            self._num_waiting_requests -= 1

    def _expire(self) -> None:
        """End the requests whose deadline has passed, and forget the deadlines of ended ones."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            request = self._requests.get(request_id)
            if request is not None and deadline > self._clock():
                return
            heapq.heappop(self._deadlines)
            if request is not None:
                self._fail_all(request, "The request ran past its deadline.", "deadline_exceeded")

    # --------------------------------------------------------------------------------- book-keeping

    def _note_first_step(self, request: Request, now: float) -> None:
        request.first_scheduled_time = now
        self._num_waiting_requests -= 1
        self._prompt_tokens += len(request.prompt_token_ids)
