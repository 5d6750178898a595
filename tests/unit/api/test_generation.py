"""`Generation` without HTTP: slow readers, errors, stops and what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.api_server import SAID, encode, make_backend, make_state, tiny_tokenizer
from tests.helpers.fake_backend import FakeBackend
from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.contract import GenerationRequest, TokenDelta
from tgwui_k8s.errors import (
    ContextLengthError,
    DeadlineExceededError,
    EngineUnavailableError,
    InternalError,
)
from tgwui_k8s.sampling import SamplingParams


def make_generation(
    backend: FakeBackend,
    *,
    num_prompts: int = 1,
    num_choices: int = 1,
    max_tokens: int = 12,
    timeout_seconds: float = 20.0,
    **options: Any,
) -> Generation:
    """A generation of equal prompts."""
    state = make_state(backend)
    assert state.model is not None
    requests = [
        GenerationRequest(
            request_id=f"r-{i}",
            prompt_token_ids=(0, 5, 6),
            params=SamplingParams(max_tokens=max_tokens, logprobs=0),
            num_choices=num_choices,
        )
        for i in range(num_prompts)
    ]
    plan = Plan(
        route="/test",
        response_id="r",
        model=state.model,
        requests=requests,
        arrival=time.monotonic(),
        timeout_seconds=timeout_seconds,
        **options,
    )
    return Generation(plan, state)


async def until(is_true: Callable[[], object]) -> None:
    """Let the event loop run until the condition holds."""
    while not is_true():  # noqa: ASYNC110 - there is no event for what a double notes
        await asyncio.sleep(0)


async def read(generation: Generation) -> list[ChoiceChunk]:
    """All chunks, in order."""
    async with generation:
        return [chunk for chunks in [c async for c in generation] for chunk in chunks]


async def test_slow_reader_gets_one_chunk_per_choice() -> None:
    """What a reader has not taken gathers in one chunk: memory is bounded by the text."""
    backend = make_backend()
    async with make_generation(backend, num_choices=2) as generation:
        await until(lambda: backend.requests and not backend.running)
        chunks = await anext(generation)
        with pytest.raises(StopAsyncIteration):
            await anext(generation)

    expected = tiny_tokenizer().decode((encode(SAID) * 2)[:12])
    assert [chunk.index for chunk in chunks] == [0, 1]
    for chunk in chunks:
        assert chunk.text == expected
        assert len(chunk.token_ids) == len(chunk.logprobs) == len(chunk.token_offsets) == 12
        assert (chunk.is_first, chunk.text_offset, chunk.finish_reason) == (True, 0, "length")


async def test_stop_string_is_found_while_the_reader_sleeps() -> None:
    """The engine is told at once, not when the client gets round to reading."""
    backend = make_backend()
    async with make_generation(backend, max_tokens=100, stop=["sugar"]) as generation:
        await until(lambda: backend.aborted_choices)
        (chunk,) = await anext(generation)

    assert chunk.text == "Mix the flour with the "
    assert chunk.finish_reason == "stop"
    assert generation.usage.completion_tokens == len(encode("Mix the flour with the sugar"))


async def test_chunks_come_before_the_error_that_ends_them() -> None:
    """A reader loses nothing that was generated."""
    backend = make_backend(fault=EngineUnavailableError("gone"), fault_step=3)
    async with make_generation(backend) as generation:
        await until(lambda: backend.requests and not backend.running)
        (chunk,) = await anext(generation)
        with pytest.raises(EngineUnavailableError):
            await anext(generation)

    assert len(chunk.token_ids) == 3


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("deadline_exceeded", DeadlineExceededError),
        ("context_length_exceeded", ContextLengthError),
        ("internal_error", InternalError),
        (None, InternalError),
    ],
)
async def test_engine_reports_become_errors(code: str | None, error_class: type[Exception]) -> None:
    """The engine names the error by its code."""

    class Failing(FakeBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            yield [TokenDelta(0, (), "error", error="It failed.", error_code=code)]

    with pytest.raises(error_class, match=r"It failed\."):
        await read(make_generation(Failing(lambda request, index: [])))


async def test_engine_that_ends_early_is_a_bug() -> None:
    """A stream of deltas without an end must not look like an answer."""

    class Silent(FakeBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            yield [TokenDelta(0, (5,))]

    with pytest.raises(InternalError):
        await read(make_generation(Silent(lambda request, index: [])))


async def test_deadline_frees_the_engine_though_nobody_reads() -> None:
    """A client that does not read cannot keep its request alive."""
    backend = make_backend(hold_step=1)
    async with make_generation(backend, num_prompts=3, timeout_seconds=0.05) as generation:
        await until(lambda: len(backend.aborted) == 3)
        await anext(generation)
        with pytest.raises(DeadlineExceededError):
            await anext(generation)


async def test_leaving_early_aborts_every_prompt() -> None:
    """Whatever the reason to leave, nothing goes on running."""
    backend = make_backend(hold_step=2)
    generation = make_generation(backend, num_prompts=2)
    async with generation:
        await anext(generation)

    assert sorted(backend.aborted) == ["r-0", "r-1"]
    assert not backend.running


async def test_waking_a_reader_gives_it_nothing() -> None:
    """That is how keep-alives find their moment."""
    backend = make_backend(hold_step=0)
    async with make_generation(backend) as generation:
        asyncio.get_running_loop().call_soon(generation.wake)
        assert await anext(generation) == []


async def test_record_of_a_cancelled_generation_says_so() -> None:
    """A cancelled reader is a client that went away."""
    backend = make_backend(hold_step=1)
    generation = make_generation(backend)
    task = asyncio.create_task(read(generation))
    await until(lambda: backend.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    exposition = generation._state.metrics.exposition()[0].decode()
    assert 'tgwui_requests_aborted_total{model_name="fake/model"} 1.0' in exposition
    assert 'finished_reason="abort",model_name="fake/model"} 1.0' in exposition
