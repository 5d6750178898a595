"""Tool calls of every family, cut at every character."""

import json
from itertools import count

import pytest

from tgwui_k8s.api.parsers.events import TextEvent, ToolCallArguments, ToolCallStart, join
from tgwui_k8s.api.parsers.tool_formats import TOOL_FORMATS, tool_format

ROME = {"city": "Rome", "note": 'a "]}" in {quotes}, ünïcode; [x]'}
ARGUMENTS = json.dumps(ROME, ensure_ascii=False)
OBJECT = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
CALL = ("weather", ROME)
TIME = ("time", {})

ANSWERS = {
    "harmony": [
        (f"<|channel|>commentary to=functions.weather<|message|>{ARGUMENTS}", "", [CALL]),
        (
            "<|channel|>commentary to=functions.weather<|message|>no",
            "<|channel|>commentary to=functions.weather<|message|>no",
            [],
        ),
    ],
    "hermes": [
        (f"<tool_call>\n{OBJECT}\n</tool_call>", "", [CALL]),
        (f"I look.\n\n<tool_call>{OBJECT}</tool_call>\nDone.", "I look.Done.", [CALL]),
        (
            f"<tool_call>\n{OBJECT}\n</tool_call>\n<tool_call>\n"
            '{"name": "time", "arguments": {}}\n</tool_call>',
            "",
            [CALL, TIME],
        ),
        (f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "weather"}}</tool_call>', "", [CALL]),
        ('<tool_call>{"name": "time", "arguments": null}</tool_call>', "", [TIME]),
        ("no call < <tool", "no call < <tool", []),
        ("<tool_call>oops</tool_call>", "<tool_call>oops</tool_call>", []),
        (f"<tool_call>no <tool_call>{OBJECT}</tool_call>", "<tool_call>no", [CALL]),
        ('<tool_call>{"nam', '<tool_call>{"nam', []),
        ('<tool_call>{"no": 1}</tool_call>', '<tool_call>{"no": 1}</tool_call>', []),
    ],
    "granite": [
        (f"<|tool_call|>[{OBJECT}]", "", [CALL]),
        (f'<|tool_call|> [{OBJECT}, {{"name": "time", "arguments": {{}}}}]', "", [CALL, TIME]),
    ],
    "mistral": [
        (f"[TOOL_CALLS] [{OBJECT}]", "", [CALL]),
        (f'[TOOL_CALLS][{OBJECT},{{"name":"time","arguments":{{}}}}]', "", [CALL, TIME]),
        (f"Well.[TOOL_CALLS]weather{ARGUMENTS}[TOOL_CALLS]time{{}}", "Well.", [CALL, TIME]),
    ],
    "mistral-named": [
        (f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}", "", [CALL]),
        (f"[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{ARGUMENTS}", "", [CALL]),
        ("[TOOL_CALLS]two words{}", "[TOOL_CALLS]two words{}", []),
    ],
    "deepseek-v3": [
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n"
            "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            [CALL, TIME],
        ),
    ],
    "deepseek-v3.1": [
        (
            f"Sure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGUMENTS}"
            "<｜tool▁call▁end｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>",
            "Sure.",
            [CALL, TIME],
        ),
    ],
    "llama3-json": [
        (f'{{"name": "weather", "parameters": {ARGUMENTS}}}', "", [CALL]),
        (
            f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}; '
            '{"name": "time", "parameters": {}}',
            "",
            [CALL, TIME],
        ),
        ('{"a": 1} is JSON', '{"a": 1} is JSON', []),
        ('Look: {"name": "x", "parameters": {}}', 'Look: {"name": "x", "parameters": {}}', []),
    ],
    "pythonic": [
        ("[time()]", "", [TIME]),
        (
            "<|python_start|>[weather(city='Rome', note='a \"]}\" in {quotes}, ünïcode; [x]'), "
            "time()]<|python_end|>",
            "",
            [CALL, TIME],
        ),
        ("[1] is a footnote", "[1] is a footnote", []),
        ("[f(x)]", "[f(x)]", []),
    ],
    "gemma": [
        (
            '<|tool_call>call:weather{city:<|"|>Rome<|"|>,note:<|"|>a "]}" in {quotes}, ünïcode; '
            '[x]<|"|>}<tool_call|>',
            "",
            [CALL],
        ),
        ("<|tool_call>call:time{}<tool_call|>", "", [TIME]),
        ("<|tool_call>nonsense<tool_call|>", "<|tool_call>nonsense<tool_call|>", []),
    ],
    "functiongemma": [
        (
            "<start_function_call>call:weather{city:<escape>Rome<escape>,note:<escape>"
            'a "]}" in {quotes}, ünïcode; [x]<escape>}<end_function_call>',
            "",
            [CALL],
        ),
    ],
}

CASES = [(name, *case) for name, cases in ANSWERS.items() for case in cases]


def parsed(name, pieces):
    """The joined events of an answer that comes in these pieces."""
    numbers = count()
    parser = tool_format("", name).make_parser(lambda: f"call-{next(numbers)}")
    events = []
    for piece in pieces:
        join(events, parser.feed(piece))
    join(events, parser.finish())
    return events


def calls_in(events):
    """Names and decoded arguments."""
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    return [
        (
            start.name,
            json.loads(
                "".join(
                    event.delta
                    for event in events
                    if isinstance(event, ToolCallArguments) and event.index == start.index
                )
            ),
        )
        for start in starts
    ]


def test_every_format_has_answers():
    """No family goes untested."""
    assert set(ANSWERS) == {candidate.name for candidate in TOOL_FORMATS}


@pytest.mark.parametrize(("name", "answer", "text", "calls"), CASES)
def test_calls_are_taken_out_of_the_text(name, answer, text, calls):
    """Names, arguments and text of a whole answer; what is malformed stays text."""
    events = parsed(name, [answer])
    assert "".join(event.text for event in events if isinstance(event, TextEvent)) == text
    assert calls_in(events) == calls


@pytest.mark.parametrize(("name", "answer", "text", "calls"), CASES)
def test_it_does_not_matter_where_the_text_is_cut(name, answer, text, calls):
    """Cut in two at every character, and character by character: the same events."""
    whole = parsed(name, [answer])
    assert parsed(name, list(answer)) == whole
    for place in range(len(answer)):
        assert parsed(name, [answer[:place], answer[place:]]) == whole


def test_arguments_come_while_they_are_written():
    """A long argument is streamed: nothing waits for the end of the call."""
    parser = tool_format("", "hermes").make_parser()
    first = parser.feed('<tool_call>\n{"name": "write", "arguments": {"text": "once upon')
    assert isinstance(first[0], ToolCallStart)
    assert first[1].delta == '{"text": "once upon'
    assert parser.feed(" a time")[0].delta == " a time"


def test_text_without_calls_is_not_held_back():
    """Only what may be the beginning of a mark waits, and white space before it."""
    parser = tool_format("", "hermes").make_parser()
    assert parser.feed("Hello wor") == [TextEvent("Hello wor")]
    assert parser.feed("ld. <tool") == [TextEvent("ld.")]
    assert parser.feed("s>") == [TextEvent(" <tools>")]


def test_mistral_ids_are_what_its_templates_accept():
    """Nine letters and digits."""
    (start, _) = tool_format("", "mistral").make_parser().feed("[TOOL_CALLS]time{}")
    assert len(start.id) == 9
    assert start.id.isalnum()
