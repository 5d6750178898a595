"""Answers in channels, cut at every character."""

import json

import pytest

from tgwui_k8s.api.parsers.events import (
    PlainParser,
    ReasoningEvent,
    TextEvent,
    ToolCallArguments,
    ToolCallStart,
    join,
)
from tgwui_k8s.api.parsers.reasoning import reasoning_style
from tgwui_k8s.api.parsers.tool_formats import tool_format

STYLE = reasoning_style("{{ '<|channel|>' }}analysis{{ '<|message|>' }}")
THOUGHT = "<|channel|>analysis<|message|>Hm, 1 < 2.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'

CASES = [
    (f"{THOUGHT}{FINAL}Yes, a < b.<|return|>", [("r", "Hm, 1 < 2."), ("t", "Yes, a < b.")]),
    (f"{FINAL}Yes.", [("t", "Yes.")]),
    (f"{THOUGHT}{CALL}<|call|>", [("r", "Hm, 1 < 2."), ("c", {"city": "Rome"})]),
    (CALL, [("c", {"city": "Rome"})]),
    (
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"a": 1}',
        [("c", {"a": 1})],
    ),
    (
        f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALL}",
        [("t", "I look."), ("c", {"city": "Rome"})],
    ),
    (
        f"<|channel|>commentary<|message|>So.<|end|><|start|>assistant{FINAL}Yes.",
        [("t", "So.\n\nYes.")],
    ),
    ("<|channel|>analysis<|message|>cut off <|en", [("r", "cut off <|en")]),
    ("<|channel|>ana", []),
    ("No channels here.", [("t", "No channels here.")]),
    ("<", [("t", "<")]),
    ("", []),
]


def parsed(pieces, answer):
    """Kinds of the events, with texts and decoded arguments; every call is to `weather`."""
    parser = STYLE.make_parser(answer, is_open=False)
    events = []
    for piece in pieces:
        join(events, parser.feed(piece))
    join(events, parser.finish())
    said = []
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.name == "weather"
        elif isinstance(event, ToolCallArguments):
            said.append(("c", json.loads(event.delta)))
        else:
            said.append(("r" if isinstance(event, ReasoningEvent) else "t", event.text))
    return said


@pytest.mark.parametrize(("answer", "expected"), CASES)
def test_channels_are_told_apart_wherever_the_text_is_cut(answer, expected):
    """Whole, in two pieces cut at every character, and character by character."""

    def cut(pieces):
        return parsed(pieces, tool_format("", "harmony").make_parser())

    assert cut([answer]) == expected
    assert cut(list(answer)) == expected
    for place in range(len(answer)):
        assert cut([answer[:place], answer[place:]]) == expected


def test_a_call_that_nobody_offered_is_text():
    """Malformed or not: never lost, and never a call."""
    (kind, text), *others = parsed([CALL], PlainParser())
    assert (kind, others) == ("t", [])
    assert text.endswith('{"city": "Rome"}')


def test_reasoning_streams():
    """What is certain does not wait for the end."""
    parser = STYLE.make_parser(PlainParser(), is_open=False)
    assert parser.feed("<|channel|>analysis<|message|>Hm, ") == [ReasoningEvent("Hm, ")]
    assert parser.feed("yes<|end|>") == [ReasoningEvent("yes")]
    assert parser.feed(f"<|start|>assistant{FINAL}Yes") == [TextEvent("Yes")]
