"""One choice of a generation: token deltas in, chunks of text with their log probabilities out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from tgwui_k8s.api.parsers.events import Event, Parser, ToolCallStart, join
from tgwui_k8s.api.text_stream import TextStream
from tgwui_k8s.contract import TokenDelta, TopLogprobs

ClientFinishReason = Literal["stop", "length", "tool_calls"]
"""The finish reasons that are an answer; the others are errors."""


@dataclass(slots=True)
class ChoiceChunk:
    """What has become certain of one choice since the last chunk."""

    index: int
    """Over all prompts: the choices of the first prompt come first."""
    is_first: bool
    text_offset: int
    """Code points of raw generated text before this chunk."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Ids whose text this chunk completes."""
    token_offsets: list[int] = field(default_factory=list)
    """Where their texts begin, in code points of raw generated text."""
    logprobs: list[TopLogprobs] = field(default_factory=list)
    """One per id, where the engine was asked for them."""
    finish_reason: ClientFinishReason | None = None
    stop_text: str | None = None
    """The stop string that ended the choice, where one did."""
    events: list[Event] = field(default_factory=list)
    """The text as parts of a chat answer; empty for plain completions."""

    def append(self, later: ChoiceChunk) -> None:
        """Make one chunk of two that follow each other."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.token_offsets += later.token_offsets
        self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason
        self.stop_text = later.stop_text
        join(self.events, later.events)


class Choice:
    """Detokenizes one choice and knows when it has ended.

    What has not been taken is kept in one chunk, which grows: a slow client costs no more memory
    than the text itself.
    """

    __slots__ = (
        "_calls_tools", "_has_spoken", "_logprobs", "_parser", "_pending", "_stream",
        "finish_reason", "index", "is_resumed", "last_token_time", "num_tokens",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        stream: TextStream,
        num_resumed_tokens: int = 0,
        *,
        is_resumed: bool = False,
        parser: Parser | None = None,
    ) -> None:
        """`parser`: takes a chat answer apart."""
        self.index = index
        self.num_tokens = num_resumed_tokens
        """Completion tokens so far, resumed ones included."""
        self.is_resumed = is_resumed
        """The client has the beginning of the text already."""
        self.finish_reason: ClientFinishReason | None = None
        self.last_token_time: float | None = None
        self._stream = stream
        self._parser = parser
        self._calls_tools = False
        self._logprobs: deque[TopLogprobs] = deque()
        self._pending: ChoiceChunk | None = None
        self._has_spoken = False

    @property
    def is_finished(self) -> bool:
        """True once nothing more will come."""
        return self.finish_reason is not None

    @property
    def has_chunk(self) -> bool:
        """True when `take` has something to give."""
        return self._pending is not None

    def feed(self, delta: TokenDelta) -> Literal["engine", "text"] | None:
        """Take what a step brought; say who ended the choice with it, if anybody did.

        `text`: a stop string did, and the engine would go on.
        `delta.finish_reason` must be None, "stop" or "length".
        """
        piece = self._stream.feed(
            delta.token_ids,
            final=delta.finish_reason is not None,
            stop_token_id=delta.stop_token_id,
        )
        self._logprobs.extend(delta.logprobs)
        self.num_tokens += len(piece.token_ids)
        if piece.stop_text is not None:
            self.finish_reason = "stop"
        elif delta.finish_reason is not None:
            self.finish_reason = "length" if delta.finish_reason == "length" else "stop"
        events = self._parse(piece.text)
        if self.finish_reason == "stop" and self._calls_tools:
            self.finish_reason = "tool_calls"
        if not piece.token_ids and not piece.text and self.finish_reason is None:
            return None
        self._add(
            ChoiceChunk(
                self.index,
                not self._has_spoken,
                piece.text_offset,
                piece.text,
                list(piece.token_ids),
                list(piece.token_offsets),
                [self._logprobs.popleft() for _ in piece.token_ids] if self._logprobs else [],
                self.finish_reason,
                piece.stop_text,
                events,
            )
        )
        if delta.finish_reason is not None:
            return "engine"
        return "text" if self.is_finished else None

    def stop(self) -> None:
        """End the choice with the text it has."""
        self.feed(TokenDelta(self.index, (), "stop"))

    def take(self) -> ChoiceChunk | None:
        """The chunk that has gathered since the last call, if any."""
        chunk, self._pending = self._pending, None
        return chunk

    def _parse(self, text: str) -> list[Event]:
        """The text as parts of a chat answer. What the client has already is parsed silently."""
        if self._parser is None:
            return []
        known = self._parser.feed(self._stream.take_known_text())
        events: list[Event] = []
        join(events, self._parser.feed(text))
        if self.is_finished:
            join(events, self._parser.finish())
        calls = (event for event in (*known, *events) if isinstance(event, ToolCallStart))
        self._calls_tools = self._calls_tools or any(calls)
        return events

    def _add(self, chunk: ChoiceChunk) -> None:
        self._has_spoken = True
        if self._pending is None:
            self._pending = chunk
        else:
            self._pending.append(chunk)
