"""Events out of bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgwui_k8s.gateway.event_stream import (
    MAX_EVENT_BYTES,
    EventSplitter,
    data_of,
    frame,
    is_comment,
)
from tgwui_k8s.gateway.failures import BrokenFramingError

DATA = [b'{"a": "\xc3\xb6"}', b"[DONE]", b"x"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 200)), st.sampled_from([b"\n", b"\r\n"]))
def test_pieces_do_not_matter(cuts: list[int], line_end: bytes) -> None:
    """However the bytes are cut, also between carriage return and line feed, the events are the
    same."""
    text = b"".join(b"data: " + data + b"\n\n" for data in DATA).replace(b"\n", line_end)
    splitter, blocks = EventSplitter(), []
    places = sorted({0, *(cut % (len(text) + 1) for cut in cuts), len(text)})
    for start, end in itertools.pairwise(places):
        blocks += splitter.feed(text[start:end])
    assert [data_of(block) for block in blocks] == DATA
    assert not splitter.has_rest


def test_a_rest_is_seen() -> None:
    """The end of the connection in the middle of an event."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n") == [b"data: a"]
    assert splitter.has_rest


def test_events_have_a_largest_size() -> None:
    """Memory for an event without end is bounded."""
    splitter = EventSplitter()
    with pytest.raises(BrokenFramingError):
        splitter.feed(b"data: " + b"x" * MAX_EVENT_BYTES)


def test_comments_names_and_several_lines() -> None:
    """What else the format knows."""
    assert is_comment(b": keep-alive")
    assert not is_comment(b": a\ndata: b")
    assert not is_comment(b"data: b")
    assert data_of(b"event: x\nid: 7\ndata: a\ndata:b\n: c") == b"a\nb"
    assert data_of(b"data:a") == b"a"
    assert frame(b"a") == b"data: a\n\n"
