"""Reasoning apart from the answer, cut at every character."""

import pytest

from tgwui_k8s.api.parsers.events import PlainParser, ReasoningEvent, TextEvent, join
from tgwui_k8s.api.parsers.reasoning import reasoning_style
from tgwui_k8s.api.parsers.tool_formats import tool_format

THINK = reasoning_style("{{ '<think>' }} … </think>")

CASES = [
    ("<think>\nHm, 1 < 2.\n</think>\n\nYes.", False, [("r", "Hm, 1 < 2."), ("t", "Yes.")]),
    ("Hm.\n</think>\n\nYes.", True, [("r", "Hm."), ("t", "Yes.")]),
    ("Yes. <think>no</think>", False, [("t", "Yes. <think>no</think>")]),
    ("<think>\n\n</think>\n\nYes.", False, [("t", "Yes.")]),
    ("<think>cut off </thi", False, [("r", "cut off </thi")]),
    ("<think>a\n\nb c</think>d\n", False, [("r", "a\n\nb c"), ("t", "d\n")]),
    ("<thin", False, [("t", "<thin")]),
    ("", False, []),
]


def parsed(pieces, *, is_open):
    """Kinds and texts of the events."""
    parser = THINK.make_parser(PlainParser(), is_open=is_open)
    events = []
    for piece in pieces:
        join(events, parser.feed(piece))
    join(events, parser.finish())
    return [("r" if isinstance(event, ReasoningEvent) else "t", event.text) for event in events]


@pytest.mark.parametrize(("answer", "is_open", "expected"), CASES)
def test_reasoning_is_told_from_the_answer_wherever_it_is_cut(answer, is_open, expected):
    """Whole, in two pieces cut at every character, and character by character."""
    assert parsed([answer], is_open=is_open) == expected
    assert parsed(list(answer), is_open=is_open) == expected
    for place in range(len(answer)):
        assert parsed([answer[:place], answer[place:]], is_open=is_open) == expected


def test_a_label_behind_the_opening_tag_is_no_reasoning():
    """Gemma's thoughts stand in a channel of that name."""
    style = reasoning_style("{{ '<|channel>thought' }} … <channel|>")
    parser = style.make_parser(PlainParser(), is_open=False)
    events = []
    for character in "<|channel>thought\nHm.<channel|>Yes.":
        join(events, parser.feed(character))
    join(events, parser.finish())
    assert events == [ReasoningEvent("Hm."), TextEvent("Yes.")]


def test_reasoning_streams():
    """All but white space and what may be the closing tag leaves at once."""
    parser = THINK.make_parser(PlainParser(), is_open=True)
    assert parser.feed("one two ") == [ReasoningEvent("one two")]
    assert parser.feed("three</th") == [ReasoningEvent(" three")]
    assert parser.feed("ink>four") == [TextEvent("four")]


def test_tools_are_called_after_reasoning():
    """A call inside of the reasoning is reasoning; behind it, it is a call."""
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    answer = tool_format("", "hermes").make_parser()
    parser = THINK.make_parser(answer, is_open=False)
    events = parser.feed(f"<think>{call}</think>{call}") + parser.finish()
    assert [type(event).__name__ for event in events] == [
        "ReasoningEvent", "ToolCallStart", "ToolCallArguments",
    ]  # fmt: skip


def test_templates_without_tags_have_no_reasoning():
    """Nothing is taken for reasoning that is none."""
    assert reasoning_style("{{ messages }}") is None
