"""The mailbox between the channel and a request's consumer."""

from __future__ import annotations

import asyncio

import pytest

from tgwui_k8s.contract import TokenDelta, TopLogprobs
from tgwui_k8s.engine.mailbox import Mailbox, merge_deltas
from tgwui_k8s.errors import EngineUnavailableError


def token(token_id: int, index: int = 0, **fields: object) -> TokenDelta:
    """A delta of one token."""
    return TokenDelta(index, (token_id,), **fields)


async def test_consumer_gets_what_is_there_then_waits_then_the_end() -> None:
    """`take` returns pending deltas, waits for more, and is empty after the last."""
    mailbox = Mailbox(1)
    mailbox.put([token(1)])

    first = await mailbox.take()
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put([token(2, finish_reason="length")])

    assert first == [token(1)]
    assert await waiting == [token(2, finish_reason="length")]
    assert await mailbox.take() == []
    assert mailbox.is_complete


def test_merged_deltas_say_the_same_as_their_parts() -> None:
    """Tokens and logprobs of all, the first one's facts, the last one's end, per choice."""
    logprobs = [TopLogprobs(i, -float(i), 1, (i,), (-float(i),)) for i in range(3)]
    first = token(1, num_cached_tokens=16, queue_seconds=0.5, logprobs=(logprobs[1],))
    last = token(2, finish_reason="stop", stop_token_id=2, logprobs=(logprobs[2],))
    other = token(9, index=1)

    merged = merge_deltas([first, other, last])

    assert merged == [
        TokenDelta(
            0,
            (1, 2),
            "stop",
            2,
            (logprobs[1], logprobs[2]),
            num_cached_tokens=16,
            queue_seconds=0.5,
        ),
        other,
    ]


async def test_slow_consumer_finds_one_delta_per_choice() -> None:
    """However many steps were missed, nothing is lost and little lies around."""
    mailbox = Mailbox(2)
    for token_id in range(1000):
        mailbox.put([token(token_id, 0), token(token_id, 1)])

    taken = await mailbox.take()

    everything = tuple(range(1000))
    assert taken == [TokenDelta(0, everything), TokenDelta(1, everything)]


async def test_waiting_deltas_are_merged_before_they_are_many() -> None:
    """The number of deltas that wait is bounded."""
    mailbox = Mailbox(1)
    for token_id in range(1000):
        mailbox.put([token(token_id)])
        assert len(mailbox._pending) <= 64


async def test_failing_delivers_what_arrived_before_the_error() -> None:
    """Tokens that came before the engine died still reach the client; then the error, always."""
    mailbox = Mailbox(1)
    mailbox.put([token(1)])
    mailbox.fail(EngineUnavailableError("gone"))

    assert await mailbox.take() == [token(1)]
    for _ in range(2):
        with pytest.raises(EngineUnavailableError):
            await mailbox.take()


async def test_finished_request_cannot_fail() -> None:
    """Death of the engine after the last token is nothing to this request."""
    mailbox = Mailbox(1)
    mailbox.put([token(1, finish_reason="stop")])
    mailbox.fail(EngineUnavailableError("gone"))

    assert await mailbox.take() == [token(1, finish_reason="stop")]
    assert await mailbox.take() == []


async def test_failing_wakes_a_waiting_consumer() -> None:
    """Nobody waits for an engine that is gone."""
    mailbox = Mailbox(1)
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.fail(EngineUnavailableError("gone"))

    with pytest.raises(EngineUnavailableError):
        await waiting


async def test_ended_choice_says_nothing_more() -> None:
    """What is pending of it is dropped, and what is still on its way."""
    mailbox = Mailbox(2)
    mailbox.put([token(1, 0), token(2, 1)])
    mailbox.end_choice(0)
    mailbox.put([token(3, 0), token(4, 1, finish_reason="length")])

    assert await mailbox.take() == [TokenDelta(1, (2, 4), "length")]
    assert mailbox.is_complete


async def test_ending_the_last_choice_ends_the_request_of_a_waiting_consumer() -> None:
    """A request that is stopped from elsewhere comes to its end."""
    mailbox = Mailbox(1)
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.end_choice(0)

    assert await waiting == []
