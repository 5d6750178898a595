"""A backend that says what it is told to, when it is told to, and notes what it was asked.

It runs on the server's event loop; tests control it from their own thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from tgwui_k8s.contract import (
    Capabilities,
    EngineHealth,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    TokenDelta,
    TopLogprobs,
)

Script = Callable[[GenerationRequest, int], Sequence[int]]
"""The tokens of a choice from its beginning, resumed ones included, without an end."""

FIRST_ALTERNATIVE = 20
"""Alternatives in log probabilities are this id and the ones after it."""


def fake_info(**changes: object) -> ModelInfo:
    """A model with the tiny tokenizer's vocabulary and a context of 200 tokens."""
    fields: dict[str, object] = {
        "loader": "fake",
        "architecture": "FakeForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": 200,
        "vocab_size": 512,
        "eos_token_ids": (1,),
        "fingerprint": "fp_fake",
        "capabilities": Capabilities(),
    }
    return ModelInfo(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class FakeBackend:
    """Follows `script`, a token per choice and step."""

    script: Script
    info: ModelInfo = field(default_factory=fake_info)
    stats: EngineStats = field(default_factory=EngineStats)
    health: EngineHealth = field(default_factory=EngineHealth)
    refusal: Exception | None = None
    """Raised before the first delta."""
    fault: Exception | None = None
    """Raised after `fault_step` steps of a request."""
    fault_step: int = 1
    hold_step: int | None = None
    """Requests wait for `release` before this step of theirs."""
    requests: list[GenerationRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    most_running: int = 0
    aborted: list[str] = field(default_factory=list)
    """Requests whose stream was closed before they were complete."""
    aborted_choices: list[tuple[str, int]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop | None = None

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        self.loop = asyncio.get_running_loop()
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.running.add(request.request_id)
        self.most_running = max(self.most_running, len(self.running))
        choices = [_Choice(self, request, index) for index in range(request.num_choices)]
        step = 0
        try:
            while any(not choice.has_ended for choice in choices):
                await self._wait(step)
                deltas = [choice.next_delta() for choice in choices if not choice.has_ended]
                step += 1
                yield deltas
        finally:
            self.running.discard(request.request_id)
            if any(not choice.has_ended for choice in choices):
                self.aborted.append(request.request_id)

    def loop_call(self, function: Callable[[], object]) -> None:
        """Run a function where the server runs."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(function)

    async def _wait(self, step: int) -> None:
        if self.fault is not None and step == self.fault_step:
            raise self.fault
        await asyncio.sleep(0)
        if step == self.hold_step:
            while not self.released.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.001)

    def abort_choice(self, request_id: str, index: int) -> None:
        self.aborted_choices.append((request_id, index))

    async def close(self) -> None:
        """Nothing to free."""


class _Choice:
    def __init__(self, backend: FakeBackend, request: GenerationRequest, index: int) -> None:
        self._backend = backend
        self._request = request
        self._index = index
        self._script = list(backend.script(request, index))
        self._num_tokens = len(request.resume_token_ids[index]) if request.resume_token_ids else 0
        self._is_first = True
        self._finished = False

    @property
    def has_ended(self) -> bool:
        return self._finished or (self._request.request_id, self._index) in (
            self._backend.aborted_choices
        )

    def next_delta(self) -> TokenDelta:
        params, is_first = self._request.params, self._is_first
        self._is_first = False
        wants_prompt = params.prompt_logprobs is not None and self._index == 0 and is_first
        prompt_logprobs = self._prompt_logprobs() if wants_prompt else None
        if self._num_tokens >= params.max_tokens:
            self._finished = True
            return TokenDelta(self._index, (), "length", prompt_logprobs=prompt_logprobs)
        token_id = self._script[self._num_tokens]
        self._num_tokens += 1
        is_stop = token_id in (*self._backend.info.eos_token_ids, *params.stop_token_ids)
        is_full = self._num_tokens >= params.max_tokens
        self._finished = is_stop or is_full
        logprobs = () if params.logprobs is None else (
            fake_logprobs(token_id, params.logprobs, self._num_tokens, self._index),
        )  # fmt: skip
        return TokenDelta(
            self._index,
            (token_id,),
            "stop" if is_stop else "length" if is_full else None,
            token_id if is_stop else None,
            logprobs,
            prompt_logprobs,
            num_cached_tokens=2 if is_first else 0,
            queue_seconds=0.001 if is_first else None,
        )

    def _prompt_logprobs(self) -> tuple[TopLogprobs, ...]:
        num_top = self._request.params.prompt_logprobs or 0
        return tuple(
            fake_logprobs(token_id, num_top, position, 0)
            for position, token_id in enumerate(self._request.prompt_token_ids)
            if position > 0
        )


def fake_logprobs(token_id: int, num_top: int, position: int, choice: int) -> TopLogprobs:
    """Alternatives at -0.5, -1.0, …; the token itself is less likely than all of them.

    Later choices are likelier, so that ranking them has something to do.
    """
    alternatives = range(FIRST_ALTERNATIVE, FIRST_ALTERNATIVE + num_top)
    likely = [-0.5 * (place + 1) for place in range(num_top)]
    own = -20.0 - position / 8 + choice
    return TopLogprobs(token_id, own, num_top + 1, (*alternatives, token_id), (*likely, own))
