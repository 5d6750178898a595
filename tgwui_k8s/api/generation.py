"""`Generation`: all engine requests of one HTTP request, seen as one stream of chunks.

    backend.generate ──► task per prompt ──► Choice (text, stop strings) ──► chunk per choice
                                                                                  │
                          whoever answers the client ◄── all that has gathered ◄──┘

The tasks never wait for the client: stop strings end a choice on time however slowly the client
reads, and what it has not read yet gathers in one chunk per choice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import cast

from tgwui_k8s.api.choice import Choice, ChoiceChunk
from tgwui_k8s.api.errors import as_request_error
from tgwui_k8s.api.plan import Plan, PromptRun
from tgwui_k8s.api.request_times import RequestTimes
from tgwui_k8s.api.schemas.responses import PromptTokensDetails, Usage
from tgwui_k8s.api.state import ServerState
from tgwui_k8s.api.transcript import Transcript
from tgwui_k8s.contract import TokenDelta, TopLogprobs
from tgwui_k8s.error_envelope import status_of
from tgwui_k8s.errors import (
    ContextLengthError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    RequestError,
)
from tgwui_k8s.observability.log import event
from tgwui_k8s.observability.records import CLIENT_CLOSED_REQUEST, RequestRecord

INVALID_GRAMMAR = "invalid_grammar"
"""The engine's code for a grammar that does not compile or leads nowhere."""

logger = logging.getLogger(__name__)


class Generation:
    """Use as a context manager, and iterate to get chunks; leaving it aborts what still runs.

        async with Generation(plan, state) as generation:
            async for chunks in generation:
                ...

    Iteration raises the `RequestError` that ended the generation, after the last chunks.
    """

    def __init__(self, plan: Plan, state: ServerState) -> None:
        self.plan = plan
        self._state = state
        self._prompts = plan.make_prompts()
        self._choices = [choice for prompt in self._prompts for choice in prompt.choices]
        self._with_news: dict[int, Choice] = {}
        self._reader: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline: asyncio.TimerHandle | None = None
        # One client's many prompts must not fill the queue for all others.
        self._places = asyncio.Semaphore(state.settings.engine.max_num_seqs)
        self._times = RequestTimes(plan.arrival, state.metrics)
        self._is_woken = False
        logs_prompts = state.settings.observability.log_prompts
        self._transcript = Transcript(plan) if logs_prompts else None

    @property
    def remaining_seconds(self) -> float:
        """Until the deadline."""
        return self.plan.timeout_seconds - (time.monotonic() - self.plan.arrival)

    @property
    def usage(self) -> Usage:
        """Tokens of all prompts and choices so far, resumed ones included."""
        num_prompt_tokens = sum(len(prompt.request.prompt_token_ids) for prompt in self._prompts)
        num_cached_tokens = sum(prompt.num_cached_tokens for prompt in self._prompts)
        num_completion_tokens = sum(choice.num_tokens for choice in self._choices)
        return Usage(
            num_prompt_tokens,
            num_completion_tokens,
            num_prompt_tokens + num_completion_tokens,
            PromptTokensDetails(num_cached_tokens),
        )

    def prompt_logprobs(self, prompt_index: int) -> tuple[TopLogprobs, ...]:
        """Of the prompt's tokens but the first, where they were asked for; once a chunk came."""
        return self._prompts[prompt_index].prompt_logprobs

    def is_resumed(self, index: int) -> bool:
        """True where the client has the beginning of this choice already."""
        return self._choices[index].is_resumed

    def stop(self) -> None:
        """End every choice now, with the text it has."""
        for prompt in self._prompts:
            for choice in prompt.choices:
                if not choice.is_finished:
                    choice.stop()
                    self._close(prompt, choice, is_early=True)
        self._cancel_tasks()

    # ------------------------------------------------------------------------------- the reader

    async def __aenter__(self) -> Generation:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(prompt)) for prompt in self._prompts]
        self._deadline = loop.call_later(self.remaining_seconds, self._expire)
        self._state.stop_generation[self.plan.response_id] = self.stop
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._state.stop_generation.pop(self.plan.response_id, None)
        self._record(error)
        self._cancel_tasks()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Errors hold the frames that they went through, and these hold us.
        self._tasks.clear()
        self._error = None

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[ChoiceChunk]:
        """All that has come since the last time; waits until there is something."""
        while True:
            if self._with_news:
                return self._take()
            if self._error is not None:
                raise self._error
            if all(prompt.num_open == 0 for prompt in self._prompts):
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            if self._is_woken:
                self._is_woken = False
                return self._take()

    def wake(self) -> None:
        """Make a waiting reader look up: it gets what there is, be it nothing."""
        self._is_woken = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _take(self) -> list[ChoiceChunk]:
        chunks = [choice.take() for choice in self._with_news.values()]
        self._with_news.clear()
        taken = [chunk for chunk in chunks if chunk is not None]
        if self._transcript is not None:
            self._transcript.note(taken)
        return taken

    # ------------------------------------------------------------------------------- the engine

    async def _run(self, prompt: PromptRun) -> None:
        """Feed one engine request's deltas to its choices until all have ended."""
        try:
            async with self._places:
                steps = self._state.backend.generate(prompt.request)
                async with aclosing(cast("AsyncGenerator[list[TokenDelta], None]", steps)):
                    async for deltas in steps:
                        self._feed(prompt, deltas)
                        if prompt.num_open == 0:
                            return
            raise InternalError("The engine ended the request before it was complete.")
        except Exception as error:  # noqa: BLE001 - handed on to whoever reads the chunks
            self._fail(error)

    def _feed(self, prompt: PromptRun, deltas: list[TokenDelta]) -> None:
        now = time.monotonic()
        for delta in deltas:
            choice = prompt.choices[delta.index]
            if choice.is_finished:
                continue
            if delta.finish_reason in ("error", "abort"):
                raise _engine_error(delta)
            if delta.prompt_logprobs is not None:
                prompt.prompt_logprobs = delta.prompt_logprobs
            if delta.index == 0 and delta.num_cached_tokens:
                prompt.num_cached_tokens = delta.num_cached_tokens
            if delta.queue_seconds is not None and self._times.queue_seconds is None:
                self._times.queue_seconds = delta.queue_seconds
            if delta.token_ids:
                self._times.note_tokens(len(delta.token_ids), now, choice.last_token_time)
                choice.last_token_time = now
            ended_by = choice.feed(delta)
            if choice.has_chunk:
                self._with_news[choice.index] = choice
            if ended_by is not None:
                self._close(prompt, choice, is_early=ended_by == "text")
        if self._with_news:
            self._wake_reader()

    def _close(self, prompt: PromptRun, choice: Choice, *, is_early: bool) -> None:
        """Note that a choice has ended; `is_early`: the engine does not know it yet."""
        prompt.num_open -= 1
        self._with_news[choice.index] = choice
        if is_early:
            index = choice.index % len(prompt.choices)
            self._state.backend.abort_choice(prompt.request.request_id, index)
        self._wake_reader()

    def _expire(self) -> None:
        self._fail(
            DeadlineExceededError(
                f"The request did not finish within {self.plan.timeout_seconds:g} seconds."
            )
        )

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._cancel_tasks()
        self._wake_reader()

    def _cancel_tasks(self) -> None:
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _record(self, error: BaseException | None) -> None:
        """Tell metrics and log how it ended."""
        usage, times = self.usage, self._times
        record = RequestRecord(
            route=self.plan.route,
            model=self.plan.model.names[0],
            status=_status(error),
            finish_reasons=tuple(
                choice.finish_reason or _unfinished(error) for choice in self._choices
            ),
            num_prompt_tokens=usage.prompt_tokens,
            num_completion_tokens=usage.completion_tokens,
            num_cached_tokens=usage.prompt_tokens_details.cached_tokens,
            queue_seconds=times.queue_seconds,
            prefill_seconds=times.prefill_seconds,
            decode_seconds=times.decode_seconds,
            ttft_seconds=times.ttft_seconds,
            e2e_seconds=times.e2e_seconds,
        )
        self._state.metrics.observe_request(record)
        if record.is_aborted:
            self._state.metrics.count_aborted_request()
        fields = record.log_fields()
        if self._transcript is not None:
            fields.update(self._transcript.log_fields())
        logger.info("generation", extra=event(**fields))


def _engine_error(delta: TokenDelta) -> RequestError:
    """What the engine reports of a request it could not finish, as the error the client gets."""
    message = delta.error or "The generation was aborted."
    if delta.error_code == DeadlineExceededError.code:
        return DeadlineExceededError(message)
    if delta.error_code == ContextLengthError.code:
        return ContextLengthError(message)
    if delta.error_code == INVALID_GRAMMAR:
        return InvalidRequestError(message, code=INVALID_GRAMMAR)
    return InternalError(message)


def _status(error: BaseException | None) -> int:
    if error is None:
        return 200
    if isinstance(error, asyncio.CancelledError):
        return CLIENT_CLOSED_REQUEST
    return status_of(as_request_error(error))


def _unfinished(error: BaseException | None) -> str:
    return "abort" if isinstance(error, asyncio.CancelledError) else "error"
