"""Chunks on their way to the client: those that are plain, and all others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.gateway_calls import call_of
from tgwui_k8s.gateway.call import CHAT, COMPLETIONS, Call
from tgwui_k8s.gateway.continuation.journal import NotContinuableError
from tgwui_k8s.gateway.continuation.plain_chunk import read_plain
from tgwui_k8s.gateway.continuation.token_stream import TokenStream
from tgwui_k8s.gateway.event_stream import DONE, data_of
from tgwui_k8s.gateway.failures import BrokenFramingError

UNKNOWN = {"from_a_newer_engine": [1]}
"""A member that makes a chunk one that is not plain."""


def block(choice: dict[str, Any], **members: Any) -> bytes:
    """An event as the splitter gives it."""
    head = {"id": "a", "object": "o", "created": 1, "model": "m", "system_fingerprint": "f"}
    return b"data: " + msgspec.json.encode({**head, "choices": [choice], **members})


def choice_of(
    index: int, place: int, piece: dict[str, Any], finish: str | None = None
) -> dict[str, Any]:
    """The `place`th chunk of a choice, whose texts are all two long."""
    return {
        "token_ids": [place],
        "text_offset": 2 * place,
        "text_length": 2,
        "index": index,
        **piece,
        "logprobs": None,
        "finish_reason": finish,
    }


def stream_for(path: str, **members: Any) -> tuple[TokenStream, Call]:
    """A stream that has been asked for, and its call."""
    body = {"prompt": "x", "stream": True, "n": 2, **members}
    call = call_of(msgspec.json.encode(body), path=path)
    stream = TokenStream(call)
    stream.body()
    return stream, call


def shown(taken: bytes) -> Any:
    """What the client sees of an event, without what the test has added."""
    if not taken:
        return None
    chunk = msgspec.json.decode(data_of(taken.removesuffix(b"\n\n")))
    chunk.pop(*UNKNOWN, None)
    return chunk


PIECES = {
    COMPLETIONS: st.fixed_dictionaries({"text": st.sampled_from(["", "ab", 'ö"', "\u2028\\"])}),
    CHAT: st.fixed_dictionaries(
        {
            "delta": st.sampled_from(
                [
                    {},
                    {"content": "ab"},
                    {"content": ""},
                    {"reasoning_content": "你"},
                    {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
                ]
            )
        }
    ),
}


@given(data=st.data(), path=st.sampled_from([COMPLETIONS, CHAT]), keeps=st.booleans())
def test_a_plain_chunk_is_taken_like_any_other(data: st.DataObject, path: str, keeps: bool) -> None:
    """The same chunks, once plain and once with a member that makes them go the long way: the
    client sees the same, and what is asked for after a break is the same, also when it breaks
    again at the endpoint that went on."""
    members = {"return_token_ids": True} if keeps else {}
    plain, plain_call = stream_for(path, **members)
    other, other_call = stream_for(path, **members)
    places = [0, 0]
    for fingerprint in ("f", "g", "h"):
        for index in data.draw(st.lists(st.integers(0, 1), max_size=6)):
            choice = choice_of(index, places[index], data.draw(PIECES[path]))
            places[index] += 1
            ours = plain.take(block(choice, system_fingerprint=fingerprint))
            theirs = other.take(block(choice, system_fingerprint=fingerprint, **UNKNOWN))
            assert shown(ours) == shown(theirs)
        bodies = [msgspec.json.decode(one.body()) for one in (plain, other)]
        assert bodies[0].pop("seed") != bodies[1].pop("seed")
        assert bodies[0] == bodies[1]
    assert plain_call.num_completion_tokens == other_call.num_completion_tokens
    assert plain.has_delivered == other.has_delivered


def test_plain_is_what_only_brings_something() -> None:
    """Ends, errors, usage, prompts and unknown members are for others to read, and so is a chunk
    of several choices, or of none."""
    text = choice_of(0, 0, {"text": "ab"})

    def is_plain(choice: dict[str, Any], **members: Any) -> bool:
        return read_plain(block(choice, **members)) is not None

    assert is_plain(text)
    assert is_plain(text, usage=None)
    assert is_plain({**text, "logprobs": {"content": []}})
    assert not is_plain({**text, "finish_reason": "stop"})
    assert not is_plain({**text, "prompt_token_ids": [1]})
    assert not is_plain({**text, **UNKNOWN})
    assert not is_plain({"index": 0, "text": "ab"})
    assert not is_plain(text, usage={"prompt_tokens": 1})
    assert not is_plain(text, error={"code": "x"})
    assert not is_plain(text, choices=[])
    assert not is_plain(text, choices=[text, text])


def test_what_does_not_follow_is_not_delivered() -> None:
    """A plain chunk whose text does not begin where the one before ended."""
    stream, _ = stream_for(COMPLETIONS)
    stream.take(block(choice_of(0, 0, {"text": "ab"})))
    with pytest.raises(NotContinuableError):
        stream.take(block(choice_of(0, 2, {"text": "ab"})))


@pytest.mark.parametrize("index", [-1, 2])
def test_choices_that_nobody_asked_for_are_refused(index: int) -> None:
    """Also in a plain chunk."""
    stream, _ = stream_for(COMPLETIONS)
    stream.take(block(choice_of(0, 0, {"text": "ab"})))
    with pytest.raises(BrokenFramingError):
        stream.take(block(choice_of(index, 0, {"text": "ab"})))


def test_nothing_follows_the_end_of_a_choice() -> None:
    """The endpoint that went on has to say again that a choice has ended, and says nothing."""
    stream, _ = stream_for(COMPLETIONS)
    for index in (0, 1):
        stream.take(block(choice_of(index, 0, {"text": "ab"}, finish="stop")))
    assert stream.take(block(choice_of(0, 1, {"text": "ab"}))) == b""
    assert stream.take(b"data: " + DONE) == b"data: [DONE]\n\n"


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"choices":[{"text":"\xff"}]}', b"[" * 100_000])
def test_nonsense_is_the_endpoints_failure(data: bytes) -> None:
    """What is no JSON object, or no UTF-8: the gateway tries another endpoint."""
    stream, _ = stream_for(COMPLETIONS)
    with pytest.raises(BrokenFramingError):
        stream.take(b"data: " + data)
