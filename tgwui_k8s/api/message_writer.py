"""Chunks as Anthropic's message: content blocks, whole or streamed one after the other."""

from __future__ import annotations

from typing import Any

import msgspec

from tgwui_k8s.api.choice import ChoiceChunk
from tgwui_k8s.api.errors import anthropic_error_body
from tgwui_k8s.api.generation import Generation
from tgwui_k8s.api.parsers.events import Event, ReasoningEvent, TextEvent, ToolCallStart
from tgwui_k8s.api.plan import Plan
from tgwui_k8s.api.schemas.message_answer import (
    AnswerMessage,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    Delta,
    Ending,
    InputJsonDelta,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    StreamEvent,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
)
from tgwui_k8s.api.sse import named_frame

_STOP_REASONS: dict[str, StopReason] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}


class MessageWriter:
    """One answer's writer; it knows which block of the stream is open."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._has_begun = False
        self._last_block = -1
        self._open: type[ContentBlock] | None = None
        self._ending = Ending(None, None)

    def events(self, generation: Generation, chunks: list[ChoiceChunk]) -> bytes:
        """The events of what has come."""
        events: list[StreamEvent] = []
        if not self._has_begun:
            self._has_begun = True
            events += [MessageStart(self._message(generation, [])), Ping()]
        for chunk in chunks:
            for event in chunk.events:
                events += self._block_events(event)
            self._ending = _ending(chunk)
        return b"".join(map(_frame, events))

    def last_events(self, generation: Generation) -> bytes:
        """The end of the last block and of the message."""
        events = [
            *self._close(),
            MessageDelta(self._ending, message_usage(generation)),
            MessageStop(),
        ]
        return b"".join(map(_frame, events))

    def done(self) -> bytes:
        """`message_stop` has said so."""
        return b""

    def failed(self, error: BaseException) -> bytes:
        """An `error` event."""
        return named_frame("error", anthropic_error_body(error))

    def whole(self, generation: Generation, choices: list[ChoiceChunk]) -> bytes:
        """The message."""
        (chunk,) = choices
        self._ending = _ending(chunk)
        return msgspec.json.encode(self._message(generation, content_blocks(chunk.events)))

    def _message(self, generation: Generation, content: list[ContentBlock]) -> AnswerMessage:
        return AnswerMessage(
            id=self._plan.response_id,
            model=self._plan.model.names[0],
            content=content,
            stop_reason=self._ending.stop_reason,
            stop_sequence=self._ending.stop_sequence,
            usage=message_usage(generation),
        )

    def _block_events(self, event: Event) -> list[StreamEvent]:
        """What an event is in a stream; it may end the open block and begin another."""
        begun, delta = _begun_block(event), _delta(event)
        events: list[StreamEvent] = []
        if begun is not None and (type(begun) is not self._open or delta is None):
            events += self._close()
            self._last_block += 1
            self._open = type(begun)
            events.append(ContentBlockStart(self._last_block, begun))
        if delta is not None:
            events.append(ContentBlockDelta(self._last_block, delta))
        return events

    def _close(self) -> list[StreamEvent]:
        if self._open is None:
            return []
        self._open = None
        return [ContentBlockStop(self._last_block)]


def content_blocks(events: list[Event]) -> list[ContentBlock]:
    """The blocks of a whole answer."""
    blocks: list[ContentBlock] = []
    arguments: dict[int, str] = {}
    for event in events:
        if isinstance(event, TextEvent):
            blocks.append(TextContent(event.text))
        elif isinstance(event, ReasoningEvent):
            blocks.append(ThinkingContent(event.text))
        elif isinstance(event, ToolCallStart):
            arguments[len(blocks)] = ""
            blocks.append(ToolUseContent(event.id, event.name, {}))
        else:
            arguments[len(blocks) - 1] += event.delta
    for index, text in arguments.items():
        blocks[index] = msgspec.structs.replace(blocks[index], input=_object(text))
    return blocks


def message_usage(generation: Generation) -> MessageUsage:
    """Anthropic's usage: cached tokens are not among the input tokens."""
    usage = generation.usage
    num_cached_tokens = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - num_cached_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=num_cached_tokens,
    )


def _begun_block(event: Event) -> ContentBlock | None:
    """The block an event belongs to, still empty; None for what only goes on with a call."""
    if isinstance(event, TextEvent):
        return TextContent("")
    if isinstance(event, ReasoningEvent):
        return ThinkingContent("")
    return ToolUseContent(event.id, event.name, {}) if isinstance(event, ToolCallStart) else None


def _delta(event: Event) -> Delta | None:
    """What an event adds to its block; None for the begin of a call."""
    if isinstance(event, TextEvent):
        return TextDelta(event.text)
    if isinstance(event, ReasoningEvent):
        return ThinkingDelta(event.text)
    return None if isinstance(event, ToolCallStart) else InputJsonDelta(event.delta)


def _ending(chunk: ChoiceChunk) -> Ending:
    if chunk.finish_reason is None:
        return Ending(None, None)
    if chunk.stop_text is not None:
        return Ending("stop_sequence", chunk.stop_text)
    return Ending(_STOP_REASONS[chunk.finish_reason], None)


def _object(text: str) -> dict[str, Any]:
    """A call's arguments; a call that was cut short has none."""
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _frame(event: StreamEvent) -> bytes:
    return named_frame(str(event.__struct_config__.tag), event)
