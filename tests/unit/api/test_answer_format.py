"""Grammars of chat answers: what they allow is what the parsers read, format by format."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema
import llguidance
import numpy as np
import pytest
from msgspec.structs import replace

from loaders.fake import tokenizer_json
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.api.answer_format import answer_format
from tgwui_k8s.api.chat_template import DEFAULT, ChatTemplate
from tgwui_k8s.api.parsers.events import (
    ReasoningEvent,
    TextEvent,
    ToolCallArguments,
    ToolCallStart,
    join,
)
from tgwui_k8s.api.parsers.reasoning import reasoning_style
from tgwui_k8s.api.parsers.tool_formats import TOOL_FORMATS, tool_format
from tgwui_k8s.api.schemas.chat import ChatRequest
from tgwui_k8s.api.state import ServedModel
from tgwui_k8s.api.tokenizer import Tokenizer
from tgwui_k8s.config import ModelSettings
from tgwui_k8s.contract import Capabilities
from tgwui_k8s.errors import UnsupportedParameterError
from tgwui_k8s.setting_field import setting_fields

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "time", "parameters": {**SCHEMA, "required": []}}},
]
FORMATS = [candidate.name for candidate in TOOL_FORMATS]
END = 256
TEMPLATE = "{{ tools }}"


def tokenizer_source(marks) -> str:
    """Bytes as tokens, and one token per mark."""
    source = json.loads(tokenizer_json())
    for content in marks:
        if len(content) == 1:
            continue  # a bracket is a byte like others
        token = {**source["added_tokens"][0], "content": content}
        token["id"] = 256 + len(source["added_tokens"])
        source["added_tokens"].append(token)
    return json.dumps(source)


def made(name, *, template=TEMPLATE, prompt="", has_mark_tokens=True, **fields):
    """The format of an answer, and the tokenizer of the model that writes it."""
    marks = tool_format("", name).all_marks if has_mark_tokens else ()
    style = reasoning_style(template)
    source = tokenizer_source(dict.fromkeys([*marks, *(style.marks if style else ())]))
    tokenizer = Tokenizer.load(Path("nowhere"), tokenizer_json=source.encode())
    model = ServedModel(
        replace(fake_info(), capabilities=Capabilities(grammar=True)),
        ("fake",),
        tokenizer,
        ChatTemplate({DEFAULT: template}, {}),
    )
    request = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS, **fields}
    )
    form = answer_format(request, model, template=template, prompt=prompt, tool_call_parser=name)
    return form, tokenizer, llguidance.LLTokenizer(source, eos_token=END)


def written(form, tokenizer, vocabulary, seed, most_tokens=2000):
    """A text that a model without any sense writes under the grammar; None: it did not end."""
    chance = random.Random(seed)
    matcher = llguidance.LLMatcher(vocabulary, form.grammar)
    assert not matcher.is_error(), matcher.get_error()
    detokenizer = tokenizer.detokenizer(visible_token_ids=form.visible_token_ids)
    text = ""
    for _ in range(most_tokens):
        if matcher.is_stopped():
            return text + detokenizer.flush()
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(token) for token in np.flatnonzero(bits)]
        token = END if END in allowed and chance.random() < 0.3 else chance.choice(allowed)
        assert matcher.consume_token(token)
        text += "" if token == END else detokenizer.step(token)
    return None


def parsed(form, text):
    parser = form.make_parser()
    events = []
    for character in text:
        join(events, parser.feed(character))
    join(events, parser.finish())
    return events


def calls_of(events):
    """Names and arguments."""
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
        for start in events
        if isinstance(start, ToolCallStart)
    ]


@pytest.mark.parametrize("has_mark_tokens", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_forced_calls_are_calls_to_their_parser(name, has_mark_tokens):
    """Whatever the grammar of `required` lets through, the parser reads as valid calls alone."""
    made_format = made(name, has_mark_tokens=has_mark_tokens, tool_choice="required")
    texts = [written(*made_format, seed) for seed in range(6)]
    found = [parsed(made_format[0], text) for text in texts if text is not None]
    assert len(found) >= 3
    for events in found:
        assert not [event for event in events if isinstance(event, TextEvent)]
        calls = calls_of(events)
        assert calls
        for called, arguments in calls:
            assert called in ("weather", "time")
            jsonschema.validate(arguments, {**SCHEMA, "required": []})


@pytest.mark.parametrize("name", FORMATS)
def test_one_call_of_the_named_tool(name):
    """A named choice without parallel calls is exactly one call."""
    choice = {"type": "function", "function": {"name": "weather"}}
    made_format = made(name, tool_choice=choice, parallel_tool_calls=False)
    for seed in range(3):
        text = written(*made_format, seed)
        if text is not None:
            ((called, arguments),) = calls_of(parsed(made_format[0], text))
            assert called == "weather"
            jsonschema.validate(arguments, SCHEMA)


@pytest.mark.parametrize("name", FORMATS)
def test_strict_tools_leave_text_free_and_calls_valid(name):
    """With `auto` both are possible: text, and calls that match."""
    form, _, vocabulary = made(name)
    texts = ["Hello, world.", "Two\nlines < and > marks; [1]"]
    called = written(*made(name, tool_choice="required"), 1) or written(
        *made(name, tool_choice="required"), 2
    )
    assert called is not None
    for text in [*texts, called]:
        matcher = llguidance.LLMatcher(vocabulary, form.grammar)
        token_ids = vocabulary.tokenize_str(text, parse_special=True)
        assert matcher.try_consume_tokens(token_ids) == len(token_ids), text
        assert matcher.is_accepting()


DEEP = {
    "type": "object",
    "properties": {
        "where": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": ["integer", "null"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "when": {"type": "array", "items": {"enum": ["now", 'to "night"', 7, True]}},
        "exact": {"type": "boolean"},
        "how": {"const": None},
        "limit": {"type": "number"},
    },
    "required": ["when", "limit"],
    "additionalProperties": False,
}
NOTATED = [candidate.name for candidate in TOOL_FORMATS if candidate.notation is not None]


@pytest.mark.parametrize("name", NOTATED)
def test_arguments_that_are_not_written_as_json_match_their_schema(name):
    """Nested objects, arrays, every type; what is optional may be missing anywhere."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": DEEP, "strict": True}}]
    made_format = made(name, tools=tools, tool_choice="required", parallel_tool_calls=False)
    keys = set()
    for seed in range(40):
        text = written(*made_format, seed)
        if text is not None:
            ((called, arguments),) = calls_of(parsed(made_format[0], text))
            assert called == "f"
            jsonschema.validate(arguments, DEEP)
            keys.add(tuple(arguments))
    assert len(keys) > 3


@pytest.mark.parametrize("name", NOTATED)
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
        {"type": "object", "properties": {"a b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}},
    ],
)
def test_what_a_notation_cannot_enforce_is_refused_for_strict_tools_by_name(name, schema):
    """And left free for the others, which still are calls that the parser reads."""

    def asked(strict):
        function = {"name": "f", "parameters": schema, "strict": strict}
        return made(
            name,
            tools=[{"type": "function", "function": function}],
            tool_choice="required",
            parallel_tool_calls=False,
        )

    with pytest.raises(UnsupportedParameterError, match="cannot be enforced") as caught:
        asked(True)
    assert caught.value.param == "tools.0.function.parameters"

    texts = [written(*asked(False), seed) for seed in range(12)]
    assert any(texts)
    for text in filter(None, texts):
        ((called, _),) = calls_of(parsed(asked(False)[0], text))
        assert called == "f"


CHANNELS = TEMPLATE + "<|channel|><|message|>"


def test_channels_and_forced_calls():
    """Reasoning, and then a call that is one."""
    made_format = made("harmony", template=CHANNELS, tool_choice="required")
    texts = [text for seed in range(8) if (text := written(*made_format, seed)) is not None]
    assert texts
    for text in texts:
        events = parsed(made_format[0], text)
        assert not [event for event in events if isinstance(event, TextEvent)]
        assert len(calls_of(events)) == 1


def test_channels_leave_strict_tools_and_text_to_the_model():
    """With `auto` it may answer in the channel `final` instead."""
    form, _, vocabulary = made("harmony", template=CHANNELS)
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A."
    matcher = llguidance.LLMatcher(vocabulary, form.grammar)
    token_ids = vocabulary.tokenize_str(text, parse_special=True)
    assert matcher.try_consume_tokens(token_ids) == len(token_ids)
    assert matcher.is_accepting()


@pytest.mark.parametrize(
    ("name", "template", "prompt"),
    [
        ("hermes", TEMPLATE + "<think></think>", "<assistant>"),
        ("hermes", TEMPLATE + "<think></think>", "<assistant><think>\n"),
        ("harmony", CHANNELS, "<|start|>assistant"),
    ],
)
def test_reasoning_comes_before_what_is_enforced(name, template, prompt):
    """The schema holds the answer, not the thoughts; the budget holds the thoughts."""
    made_format = made(
        name, template=template, prompt=prompt, tools=None, thinking_token_budget=9,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    )  # fmt: skip
    has_reasoned = 0
    for seed in range(16):
        text = written(*made_format, seed)
        if text is None:
            continue
        events = parsed(made_format[0], text)
        answer = "".join(event.text for event in events if isinstance(event, TextEvent))
        jsonschema.validate(json.loads(answer), SCHEMA)
        has_reasoned += isinstance(events[0], ReasoningEvent)
    assert has_reasoned > 0


def test_nothing_asked_for_needs_no_grammar():
    """Plain tools with `auto` cost no masks."""
    plain = [{"type": "function", "function": {"name": "weather"}}]
    assert made("hermes", tools=plain)[0].grammar == ""
    assert made("hermes", tools=plain, tool_choice="none")[0].grammar == ""


def test_the_setting_offers_every_format():
    """What `--tool-call-parser` takes is what there is."""
    choices = setting_fields()["tool_call_parser"].choices
    assert set(choices) == {"auto", *(candidate.name for candidate in TOOL_FORMATS)}
    assert ModelSettings.__dataclass_fields__["tool_call_parser"].default == "auto"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('<tool_call>\n{"name": ...}\n</tool_call>', "hermes"),
        ('{"name": function name, "parameters": dictionary of argument name}', "llama3-json"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral-named"),
        (
            "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>'",
            "deepseek-v3.1",
        ),
        ("'<｜tool▁calls▁begin｜>' + '\\n' + '```json' + '\\n' + tool", "deepseek-v3"),
        ("<|tool_call|>", "granite"),
        ("<|channel|>commentary to=functions.", "harmony"),
        ("<|tool_call>call:", "gemma"),
        ("<start_function_call>call:", "functiongemma"),
        ("[func_name1(params_name1=params_value1)]", "pythonic"),
    ],
)
def test_templates_tell_their_format(template, name):
    """By what they teach the model to write."""
    assert tool_format(template).name == name
    assert tool_format("{{ messages }}") is None


def test_calls_that_nobody_reads_are_not_taken_for_others():
    """Tools are refused by name then, instead of calls that come out as text."""
    assert tool_format("<tool_call>\n<function=name>\n<parameter=key>") is None
    assert tool_format("<tool_call>name\n<arg_key>key</arg_key>") is None
    assert tool_format("<tool_call>\n<function=name>", "hermes").name == "hermes"
