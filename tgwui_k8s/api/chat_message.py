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
        MessageToolCall(
            id=start.id, function=FunctionCall(start.name, _arguments(start.index, events))
        )
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
        tool_calls=_call_deltas(events) or UNSET,
    )


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextEvent))


def _reasoning(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningEvent))


def _arguments(index: int, events: list[Event]) -> str:
    return "".join(
        event.delta
        for event in events
        if isinstance(event, ToolCallArguments) and event.index == index
    )


def _call_deltas(events: list[Event]) -> list[ToolCallDelta]:
    """One per call that these events begin or go on with."""
    indices = dict.fromkeys(event.index for event in events if isinstance(event, _CALL))
    return [_call_delta(index, events) for index in indices]


def _call_delta(index: int, events: list[Event]) -> ToolCallDelta:
    arguments = _arguments(index, events)
    for event in events:
        if isinstance(event, ToolCallStart) and event.index == index:
            function = FunctionDelta(name=event.name, arguments=arguments)
            return ToolCallDelta(index=index, id=event.id, type="function", function=function)
    return ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments))
