"""The items of a response, and Anthropic's blocks, from the same events."""

from __future__ import annotations

import msgspec
import pytest

from tgwui_k8s.api.message_writer import content_blocks
from tgwui_k8s.api.parsers.events import (
    Event,
    ReasoningEvent,
    TextEvent,
    ToolCallArguments,
    ToolCallStart,
)
from tgwui_k8s.api.response_output import Output
from tgwui_k8s.errors import IntegrityError

EVENTS: list[Event] = [
    ReasoningEvent("Hm"),
    ReasoningEvent("."),
    TextEvent("Let me see."),
    ToolCallStart(0, "c1", "look"),
    ToolCallArguments(0, '{"at":'),
    ToolCallArguments(0, ' "it"}'),
    ToolCallStart(1, "c2", "look"),
    ToolCallArguments(1, "{}"),
]


def test_items_are_what_the_events_say() -> None:
    """Reasoning, text and each call are items of their own, in order."""
    output = Output()
    output.take(EVENTS)
    output.close("completed")

    items = [msgspec.to_builtins(item) for item in output.items]
    assert [item["type"] for item in items] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert items[1]["content"][0]["text"] == "Let me see."
    assert (items[2]["call_id"], items[2]["name"]) == ("c1", "look")
    assert [item["arguments"] for item in items[2:]] == ['{"at": "it"}', "{}"]
    assert {item["status"] for item in items} == {"completed"}


def test_stream_says_each_item_from_its_begin_to_its_end() -> None:
    """Every item is added before and done after its deltas, under one index and id."""
    output = Output()
    told = [*output.take(EVENTS), *output.close("incomplete")]

    kinds = [str(event.__struct_config__.tag).removeprefix("response.") for event in told]
    assert kinds == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    indices = [event.output_index for event in told]
    assert indices == sorted(indices)
    assert [item.status for item in output.items] == [
        "completed",
        "completed",
        "completed",
        "incomplete",
    ]


def test_arguments_without_a_call_are_a_bug() -> None:
    """Parsers promise a start first."""
    with pytest.raises(IntegrityError):
        Output().take([ToolCallArguments(0, "{}")])


def test_blocks_are_what_the_events_say() -> None:
    """Anthropic's blocks: arguments are an object; those of a call that was cut short are none."""
    blocks = content_blocks([ReasoningEvent("Hm."), *EVENTS[2:], ToolCallStart(2, "c3", "cut")])

    assert [msgspec.to_builtins(block) for block in blocks] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me see.", "citations": None},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
        {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
        {"type": "tool_use", "id": "c3", "name": "cut", "input": {}},
    ]
