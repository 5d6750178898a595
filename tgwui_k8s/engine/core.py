"""The step loop: schedule → execute → sample → update. Synchronous, one thread, no processes.

Everything that happens to a request happens inside `step()` or between two steps; whoever hosts
the core (the engine process, `LLM`, a test) calls it from one thread.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from tgwui_k8s.contract import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    Logits,
    ModelRunner,
    SampledToken,
    Sampler,
    SamplingRow,
    TokenDelta,
    TopLogprobs,
)
from tgwui_k8s.engine.adapters import Adapters
from tgwui_k8s.engine.grammar import GrammarDesk, GrammarError, Grammars, GrammarState
from tgwui_k8s.engine.messages import EngineSettings, RequestDeltas
from tgwui_k8s.engine.prompt_lookup import PromptLookup
from tgwui_k8s.engine.request import Lane, Request, Sequence, Status
from tgwui_k8s.engine.sampler import NumpySampler
from tgwui_k8s.engine.scheduler import Schedule, ScheduledLane, Scheduler
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
        self.num_steps = 0
        self.step_started: float | None = None
        self.step_tokens = 0
        self._max_waiting_requests = settings.max_waiting_requests
        self._clock = clock
        self._grammar_desk = None if grammars is None else GrammarDesk(grammars)
        self._requests: dict[str, Request] = {}
        self._num_arrivals = 0
        self._num_waiting_requests = 0
        self._deadlines: list[tuple[float, str]] = []
        self._deltas: dict[str, list[TokenDelta]] = {}
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
        added.sequences = [
            self._make_sequence(added, index) for index in range(request.num_choices)
        ]
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
            self._deltas.pop(request_id, None)

    @property
    def has_work(self) -> bool:
        """True when `step()` has something to do."""
        compiles = self._grammar_desk is not None and self._grammar_desk.has_pending
        return bool(self._deltas) or compiles or self.scheduler.has_work

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
        """Compute one batch and return what it produced; nothing when there is nothing to do."""
        self._expire()
        self._start_compiled()
        schedule = self.scheduler.schedule()
        if schedule.entries:
            self.step_tokens = schedule.batch.num_tokens
            self.step_started = self._clock()
            logits = self.runner.execute(schedule.batch)
            self._update(schedule, logits)
            self.step_started = None
            self.num_steps += 1
        deltas, self._deltas = self._deltas, {}
        return [RequestDeltas(request_id, items) for request_id, items in deltas.items()]

    def _update(self, schedule: Schedule, logits: Logits) -> None:
        """Book the computed tokens and sample the next one of every sequence that is ready."""
        ready: list[Sequence] = []
        indices: list[int] = []
        guidance_indices: list[int | None] = []
        first_row = 0
        now = self._clock()
        for sequence, parts in schedule.entries:
            if sequence.request.first_scheduled_time is None:
                self._note_first_step(sequence.request, now)
            if sequence.wants_prompt_logits:
                self._collect_logits(sequence, parts[0], logits, first_row)
            self.scheduler.advance(sequence, parts)
            last_rows = []
            for part in parts:
                first_row += part.num_logits
                last_rows.append(first_row - 1)
            if sequence.num_uncomputed == 0:
                ready.append(sequence)
                indices.append(last_rows[0] - parts[0].num_drafts)
                guidance_indices.append(last_rows[1] if len(last_rows) > 1 else None)
        self._release_siblings(schedule)
        ready, indices, guidance_indices = self._drop_empty(ready, indices, guidance_indices)
        while ready:
            self._set_masks(ready)
            rows = [sequence.sampling for sequence in ready]
            sampled = self.sampler.sample(logits, rows, indices, guidance_indices)
            for sequence, token in zip(ready, sampled, strict=True):
                self._take(sequence, token)
            # Where the token was guessed, the logits of the one after it are there as well.
            confirmed = [
                (sequence, index + 1)
                for sequence, index, token in zip(ready, indices, sampled, strict=True)
                if self.scheduler.confirm(sequence, token.token_id)
            ]
            ready = [sequence for sequence, _ in confirmed]
            indices = [index for _, index in confirmed]
            guidance_indices = [None] * len(confirmed)

    def _take(self, sequence: Sequence, token: SampledToken) -> None:
        """Append a sampled token, decide whether it ends the choice, and tell."""
        if token.token_id < 0:
            self._fail_unsampled(sequence)
            return
        self._generation_tokens += 1
        sequence.append(token.token_id)
        if not self._fits_grammar(sequence, (token.token_id,)):
            return
        finish_reason = self._why_finished(sequence, sequence.sampling)
        is_stop_token = finish_reason == "stop"
        if finish_reason is None and sequence.is_grammar_complete:
            finish_reason = "stop"
        self._tell(
            sequence,
            token_ids=(token.token_id,),
            logprobs=() if token.logprobs is None else (token.logprobs,),
            finish_reason=finish_reason,
            stop_token_id=token.token_id if is_stop_token else None,
        )
        if finish_reason is not None:
            self._finish(sequence, finish_reason, tell=False)

    def _why_finished(self, sequence: Sequence, row: SamplingRow) -> FinishReason | None:
        outputs, params = row.output_token_ids, row.params
        if self._ends(row, outputs[-1]):
            return "stop"
        if len(outputs) >= params.max_tokens:
            return "length"
        if any(len(lane.token_ids) >= self.runner.info.max_model_len for lane in sequence.lanes):
            return "length"
        return None

    @staticmethod
    def _ends(row: SamplingRow, token_id: int) -> bool:
        if len(row.output_token_ids) <= row.params.min_tokens:
            return False
        if token_id in row.params.stop_token_ids:
            return True
        return token_id in row.eos_token_ids and not row.params.ignore_eos

    # ---------------------------------------------------------------------------------- grammars

    def _start_compiled(self) -> None:
        """Queue the requests whose grammars are compiled; wait a moment where all else is idle."""
        if self._grammar_desk is None or not self._grammar_desk.has_pending:
            return
        is_idle = not self._deltas and not self.scheduler.has_work
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
        resumed = request.source.resume_token_ids
        for sequence in request.sequences if resumed else ():
            self._fits_grammar(sequence, resumed[sequence.index])

    def _fail_unsampled(self, sequence: Sequence) -> None:
        """End a sequence for which no token could be chosen."""
        mask = sequence.sampling.allowed_token_ids
        if mask is not None and not mask.any():
            message = "The grammar allows no token of the model's vocabulary here."
            self._fail(sequence, message, "invalid_grammar")
        else:
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

    def _make_sequence(self, request: Request, index: int) -> Sequence:
        source = request.source
        resumed = source.resume_token_ids[index] if source.resume_token_ids else ()
        num_groups = len(self.runner.layout.groups)
        prompts = [source.prompt_token_ids]
        if source.negative_prompt_token_ids:
            prompts.append(source.negative_prompt_token_ids)
        lanes = tuple(Lane([*prompt, *resumed], num_groups, request.adapter) for prompt in prompts)
        replays = bool(resumed) and self.sampler.needs_replay(source.params)
        sampling = SamplingRow(
            params=source.params,
            eos_token_ids=self.runner.info.eos_token_ids,
            prompt_token_ids=source.prompt_token_ids,
            output_token_ids=[] if replays else list(resumed),
            choice=index,
        )
        return Sequence(
            request,
            index,
            lanes,
            sampling,
            Status.BLOCKED,
            to_replay=resumed if replays else (),
            lookup=self._make_lookup(source),
        )

    def _make_lookup(self, source: GenerationRequest) -> PromptLookup | None:
        """What guesses the request's tokens; under guidance nothing does."""
        num_tokens = source.params.prompt_lookup_num_tokens
        can_guess = self.runner.layout.chunked_prefill and not source.negative_prompt_token_ids
        if num_tokens == 0 or not can_guess:
            return None
        longest = len(source.prompt_token_ids) + source.params.max_tokens
        return PromptLookup(num_tokens, min(longest, self.runner.info.max_model_len))

    def _start(self, request: Request) -> None:
        """Queue the first choice; the others follow when the prompt they share is computed."""
        for sequence in request.sequences:
            reason = self._why_finished_elsewhere(sequence)
            if reason is not None:
                self._finish(sequence, reason)
            elif not self.scheduler.can_ever_run(sequence, request.source.params.max_tokens):
                self._fail(
                    sequence,
                    "The request needs more KV cache than there is: shorten the prompt, lower "
                    "max_tokens, or drop the guidance.",
                    "context_length_exceeded",
                )
        if not request.is_finished:
            self._unblock_leader(request)

    def _why_finished_elsewhere(self, sequence: Sequence) -> FinishReason | None:
        """The reason why resumed tokens already are the whole answer, if they are."""
        resumed = list(sequence.to_replay) or sequence.sampling.output_token_ids
        if not resumed:
            return None
        if sequence.is_grammar_complete:
            return "stop"
        return self._why_finished(sequence, replace(sequence.sampling, output_token_ids=resumed))

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

    def _drop_empty(
        self, ready: list[Sequence], indices: list[int], guidance: list[int | None]
    ) -> tuple[list[Sequence], list[int], list[int | None]]:
        """Finish the choices that want no tokens at all (`max_tokens` 0), keep the others."""
        if all(sequence.sampling.params.max_tokens > 0 for sequence in ready):
            return ready, indices, guidance
        kept = [i for i, sequence in enumerate(ready) if sequence.sampling.params.max_tokens > 0]
        for sequence in ready:
            if sequence.sampling.params.max_tokens == 0:
                self._finish(sequence, "length")
        return [ready[i] for i in kept], [indices[i] for i in kept], [guidance[i] for i in kept]

    def _finish(self, sequence: Sequence, reason: FinishReason, *, tell: bool = True) -> None:
        if sequence.status is Status.FINISHED:
            return
        self.scheduler.finish(sequence)
        sequence.finish_reason = reason
        if tell:
            self._tell(sequence, finish_reason=reason)
        if sequence.request.is_finished:
            self._forget(sequence.request)
        else:
            self._unblock_leader(sequence.request)

    def _fail(self, sequence: Sequence, message: str, code: str) -> None:
        if sequence.status is not Status.FINISHED:
            self._tell(sequence, finish_reason="error", error=message, error_code=code)
            self._finish(sequence, "error", tell=False)

    def _fail_all(self, request: Request, message: str, code: str) -> None:
        for sequence in list(request.sequences):
            self._fail(sequence, message, code)

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        self.adapters.release(request.adapter)
        if request.first_scheduled_time is None:
            self._num_waiting_requests -= 1

    def _expire(self) -> None:
        """End the requests whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            request = self._requests.get(heapq.heappop(self._deadlines)[1])
            for sequence in request.sequences if request else ():
                message = "The request ran past its deadline."
                self._fail(sequence, message, "deadline_exceeded")

    # --------------------------------------------------------------------------------- book-keeping

    def _note_first_step(self, request: Request, now: float) -> None:
        request.first_scheduled_time = now
        self._num_waiting_requests -= 1
        self._prompt_tokens += len(request.prompt_token_ids)

    def _collect_logits(
        self, sequence: Sequence, part: ScheduledLane, logits: Logits, first_row: int
    ) -> None:
        """Take prompt logprobs and replays from the logits of a prefill, where they are wanted."""
        if part.num_logits != part.num_tokens:
            return
        start = part.lane.num_computed
        stop = start + part.num_tokens
        request, source = sequence.request, sequence.request.source
        if sequence.index == 0 and source.params.prompt_logprobs is not None:
            first = 1 + len(request.prompt_logprobs)
            last = min(stop, len(source.prompt_token_ids) - 1)
            if start < first <= last:
                rows = logits[first_row + first - 1 - start : first_row + last - start]
                request.prompt_logprobs += self.sampler.prompt_logprobs(
                    rows, source.prompt_token_ids[first : last + 1], source.params.prompt_logprobs
                )
        if sequence.num_replayed < len(sequence.to_replay):
            first = len(source.prompt_token_ids) - 1 + sequence.num_replayed
            last = len(source.prompt_token_ids) - 1 + len(sequence.to_replay)
            if start <= first < stop:
                end = min(stop, last)
                rows = logits[first_row + first - start : first_row + end - start]
                token_ids = sequence.to_replay[sequence.num_replayed :][: end - first]
                self.sampler.replay(rows, sequence.sampling, token_ids)
                sequence.sampling.output_token_ids.extend(token_ids)
                sequence.num_replayed += len(token_ids)

    def _tell(
        self,
        sequence: Sequence,
        *,
        finish_reason: FinishReason | None,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TopLogprobs, ...] = (),
        stop_token_id: int | None = None,
        error: str | None = None,
        error_code: str | None = None,
    ) -> None:
        request = sequence.request
        is_first = not sequence.has_answered
        sequence.has_answered = True
        prompt_logprobs = None
        if is_first and sequence.index == 0 and request.source.params.prompt_logprobs is not None:
            prompt_logprobs = tuple(request.prompt_logprobs)
        queue_seconds = None
        if is_first and request.first_scheduled_time is not None:
            queue_seconds = request.first_scheduled_time - request.arrival_time
        delta = TokenDelta(
            index=sequence.index,
            token_ids=token_ids,
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            queue_seconds=queue_seconds,
            error=error,
            error_code=error_code,
        )
        self._deltas.setdefault(request.request_id, []).append(delta)
