"""The events of a chat answer in OpenAI's words: a message, or what a chunk adds to one."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from tgwui_k8s.api.parsers.events import (
    Event,
    ReasoningEvent,
    TextEvent,
    ToolCallArguments,
    ToolCallStart,
)
from tgwui_k8s.api.schemas.responses import (
    ChatDelta,
    ChatMessage,
    FunctionCall,
    FunctionDelta,
    MessageToolCall,
    ToolCallDelta,
)

_CALL = (ToolCallStart, ToolCallArguments)


def chat_message(events: Iterable[Event]) -> ChatMessage:
    """The message that all events of a choice make."""
    events = list(events)
    calls = [
        MessageToolCall(id=start.id, function=FunctionCall(start.name, _arguments(start, events)))
        for start in events
        if isinstance(start, ToolCallStart)
    ]
    text = _text(events)
    return ChatMessage(
        content=text if text or not calls else None,
        reasoning_content=_reasoning(events) or UNSET,
        tool_calls=calls or UNSET,
    )


def chat_delta(events: Iterable[Event], *, begins: bool) -> ChatDelta:
    """What these events add to the message; `begins`: they are its first."""
    events = list(events)
    text = _text(events)
    return ChatDelta(
        role="assistant" if begins else UNSET,
        content=text if text or begins else UNSET,
        reasoning_content=_reasoning(events) or UNSET,
        tool_calls=[_call_delta(event) for event in events if isinstance(event, _CALL)] or UNSET,
    )


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextEvent))


def _reasoning(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningEvent))


def _arguments(start: ToolCallStart, events: list[Event]) -> str:
    return "".join(
        event.delta
        for event in events
        if isinstance(event, ToolCallArguments) and event.index == start.index
    )


def _call_delta(event: ToolCallStart | ToolCallArguments) -> ToolCallDelta:
    if isinstance(event, ToolCallStart):
        function = FunctionDelta(name=event.name, arguments="")
        return ToolCallDelta(index=event.index, id=event.id, type="function", function=function)
    return ToolCallDelta(index=event.index, function=FunctionDelta(arguments=event.delta))
