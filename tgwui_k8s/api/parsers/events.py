"""What a chat answer is made of, piece by piece.

Every route that answers a conversation reads these from `ChoiceChunk.events`, and says them in its
own words: OpenAI's deltas, Anthropic's content blocks, the items of a response.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec


class TextEvent(msgspec.Struct, frozen=True):
    """Text of the answer; never empty."""

    text: str


class ReasoningEvent(msgspec.Struct, frozen=True):
    """Text of the reasoning before the answer; never empty."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """The model calls a tool. Calls of one answer are numbered from 0 and do not overlap."""

    index: int
    id: str
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True):
    """What the call's arguments, a JSON text, go on with."""

    index: int
    delta: str


Event = TextEvent | ReasoningEvent | ToolCallStart | ToolCallArguments


class Parser(Protocol):
    """Sans-IO, one per choice. Its events depend on the text alone, not on where it was cut.

    Joined with `join`, the events of any pieces of a text are those of the whole text.
    """

    def feed(self, text: str) -> list[Event]:
        """Take generated text; give what is certain."""
        ...

    def finish(self) -> list[Event]:
        """No more text comes: give what was held back."""
        ...


class PlainParser:
    """All text is the answer's."""

    def feed(self, text: str) -> list[Event]:
        """Give it back."""
        return [TextEvent(text)] if text else []

    def finish(self) -> list[Event]:
        """Nothing is ever held back."""
        return []


def join(events: list[Event], later: Iterable[Event]) -> None:
    """Append `later` to `events`, making one of two that go on with each other."""
    for event in later:
        last = events[-1] if events else None
        if isinstance(event, TextEvent) and isinstance(last, TextEvent):
            events[-1] = TextEvent(last.text + event.text)
        elif isinstance(event, ReasoningEvent) and isinstance(last, ReasoningEvent):
            events[-1] = ReasoningEvent(last.text + event.text)
        elif (
            isinstance(event, ToolCallArguments)
            and isinstance(last, ToolCallArguments)
            and event.index == last.index
        ):
            events[-1] = ToolCallArguments(last.index, last.delta + event.delta)
        else:
            events.append(event)
