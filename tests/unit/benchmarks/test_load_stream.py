"""The load generator reads streams as they come: in pieces, with comments, errors and gaps."""

from __future__ import annotations

import pytest

from benchmarks.load.http import Origin
from benchmarks.load.recording import Recording
from benchmarks.load.sse import EventSplitter

STREAM = (
    b": keep-alive\n\n"
    b'data: {"choices":[{"text":"ein"}]}\n\n'
    b"event: message\ndata: two\ndata: lines\n\n"
    b"data:no space\n\n"
    b'data: {"choices":[{"text":"\xc3\xa4"}]}\r\n\r\n'
    b"data: [DONE]\n\n"
)
PAYLOADS = [
    b'{"choices":[{"text":"ein"}]}',
    b"two\nlines",
    b"no space",
    b'{"choices":[{"text":"\xc3\xa4"}]}',
    b"[DONE]",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, len(STREAM)])
def test_events_do_not_depend_on_how_bytes_arrive(size: int) -> None:
    """Any division of the stream, inside line ends and characters too, gives the same events."""
    splitter = EventSplitter()

    pieces = (STREAM[start : start + size] for start in range(0, len(STREAM), size))

    assert [payload for piece in pieces for payload in splitter.feed(piece)] == PAYLOADS


def take(*events: str) -> Recording:
    """A recording of these events, ended."""
    recording = Recording(0.0)
    for event in events:
        recording.take(f"data: {event}\n\n".encode())
    recording.end()
    return recording


def test_only_chunks_with_content_count() -> None:
    """A chat's role, its finish and its usage are no tokens."""
    recording = take(
        '{"choices":[{"delta":{"role":"assistant","content":""}}]}',
        '{"choices":[{"delta":{"content":"Hel"}}]}',
        '{"choices":[{"delta":{"content":"lo"}}]}',
        '{"choices":[{"delta":{},"finish_reason":"stop"}]}',
        '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}',
        "[DONE]",
    )

    assert recording.error is None
    assert (recording.num_chunks, len(recording.gaps)) == (2, 1)
    assert (recording.num_tokens, recording.tokens_by) == (4, "usage")
    assert recording.num_prompt_tokens == 3


def test_token_ids_are_counted_where_there_is_no_usage() -> None:
    """A chunk of several tokens counts as several."""
    recording = take('{"choices":[{"text":"ab","token_ids":[5,6,7]}]}', "[DONE]")

    assert (recording.num_tokens, recording.tokens_by) == (3, "token_ids")


@pytest.mark.parametrize(
    ("events", "error"),
    [
        (('{"choices":[{"text":"a"}]}',), "truncated stream"),
        (("[DONE]",), "empty answer"),
        (("{", "[DONE]"), "chunk is no JSON"),
        (('{"error":{"message":"m","code":"engine_dead"}}',), "error in stream: engine_dead"),
        (('{"error":{"type":"server_error","code":null}}',), "error in stream: server_error"),
    ],
)
def test_a_broken_stream_is_an_error(events: tuple[str, ...], error: str) -> None:
    """What was lost, and what the server said of it, is no success."""
    assert take(*events).error == error


def test_a_finish_reason_ends_a_stream_too() -> None:
    """Not every server sends [DONE]."""
    assert take('{"choices":[{"text":"a","finish_reason":"length"}]}').error is None


def test_urls_are_taken_apart() -> None:
    """Port and prefix are optional, and so is the scheme."""
    assert Origin.parse("127.0.0.1:8000") == Origin("127.0.0.1", 8000)
    assert Origin.parse("https://host/openai/") == Origin("host", 443, True, "/openai")
    with pytest.raises(ValueError, match="no http URL"):
        Origin.parse("ftp://host")


def test_loopback_is_told_from_everything_else() -> None:
    """Numeric addresses, so that no name server is asked."""
    assert Origin.parse("127.0.0.1:1").is_loopback()
    assert Origin.parse("http://[::1]:1").is_loopback()
    assert not Origin.parse("192.0.2.1:1").is_loopback()
