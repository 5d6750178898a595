"""A field is honoured or refused by name, never ignored: a walk over the whole schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.helpers.api_server import ApiServer, encode, serving
from tests.helpers.fake_backend import FakeBackend
from tgwui_k8s.api.field_table import REQUESTS, FieldRow, field_table
from tgwui_k8s.api.schemas.fields import declaration

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
USER = {"role": "user", "content": "Hi."}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BASES: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "Say it:", "seed": 1, "max_tokens": 12},
    "chat": {"messages": [USER], "seed": 1, "max_tokens": 12},
}
TEMPLATE = (
    "{% for message in messages %}{{ message | tojson }}{% endfor %}"
    "{# <think></think> <tool_call></tool_call> #}{{ tools | tojson }}"
    "{{ add_generation_prompt }}{{ enable_thinking }}{{ colour }}"
)


def messages(**fields: Any) -> dict[str, Any]:
    """A body with one assistant's message."""
    return {"messages": [USER, {"role": "assistant", "content": "Yes.", **fields}]}


EXAMPLES: dict[str, dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]] = {
    # Field to what to add to the body, or to bodies without and with the field.
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "presence_penalty": {"presence_penalty": 1},
    "frequency_penalty": {"frequency_penalty": 1},
    "do_sample": {"do_sample": False},
    "dynamic_temperature": {"dynamic_temperature": True},
    "dynatemp_low": {"dynatemp_low": 0.5},
    "dynatemp_high": {"dynatemp_high": 2},
    "dynatemp_exponent": {"dynatemp_exponent": 2},
    "smoothing_factor": {"smoothing_factor": 1},
    "smoothing_curve": {"smoothing_curve": 2},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.5},
    "tfs": {"tfs": 0.5},
    "top_a": {"top_a": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 3},
    "eta_cutoff": {"eta_cutoff": 3},
    "top_n_sigma": {"top_n_sigma": 1},
    "xtc_threshold": {"xtc_threshold": 0.2},
    "xtc_probability": {"xtc_probability": 0.5},
    "mirostat_mode": {"mirostat_mode": 2},
    "mirostat_tau": {"mirostat_tau": 4},
    "mirostat_eta": {"mirostat_eta": 0.2},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "repetition_penalty_range": {"repetition_penalty_range": 64},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.2},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "dry_multiplier": {"dry_multiplier": 0.8},
    "dry_allowed_length": {"dry_allowed_length": 3},
    "dry_base": {"dry_base": 2},
    "dry_sequence_breakers": (
        {"dry_multiplier": 0.8},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": '"!"'},
    ),
    "temperature_last": {"temperature_last": True},
    "sampler_priority": {"sampler_priority": "top_k\ntemperature"},
    "guidance_scale": {"guidance_scale": 1.5},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 8},
    "preset": {"preset": "min_p"},
    "seed": {"seed": 2},
    "logit_bias": {"logit_bias": {"7": -100}},
    "custom_token_bans": {"custom_token_bans": "7, 8"},
    "negative_prompt": (
        {"guidance_scale": 1.5},
        {"guidance_scale": 1.5, "negative_prompt": "rude"},
    ),
    "model": {"model": "unknown"},
    "n": {"n": 2},
    "stop": {"stop": "was"},
    "stream": {"stream": True},
    "stream_options": (
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    "stream_options.include_usage": (
        {"stream": True, "stream_options": {"include_usage": False}},
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    "min_tokens": {"min_tokens": 3},
    "auto_max_new_tokens": {"auto_max_new_tokens": True},
    "stop_token_ids": {"stop_token_ids": [9]},
    "ignore_eos": {"ignore_eos": True},
    "ban_eos_token": {"ban_eos_token": True},
    "add_bos_token": ({"add_bos_token": True}, {"add_bos_token": False}),
    "skip_special_tokens": {"skip_special_tokens": False},
    "truncation_length": {"truncation_length": 2},
    "priority": {"priority": -1},
    "timeout_s": {"timeout_s": 5},
    "return_token_ids": {"return_token_ids": True},
    "resume_token_ids": {"resume_token_ids": [encode("It")]},
    "resume_text_lengths": (
        {"resume_token_ids": [encode("It")]},
        {"resume_token_ids": [encode("It")], "resume_text_lengths": [1]},
    ),
    "guided_json": {"guided_json": SCHEMA},
    "guided_regex": {"guided_regex": "[a-z]/[0-9]"},
    "guided_choice": {"guided_choice": ["yes", "no"]},
    "guided_grammar": {"guided_grammar": 'start: "yes" | "no"'},
    "grammar_string": {"grammar_string": 'root ::= "yes" | "no"'},
    "prompt": {"prompt": [5, 6]},
    "suffix": {"suffix": "The end."},
    "max_tokens": {"max_tokens": 3},
    "best_of": ({"n": 2}, {"n": 2, "best_of": 3}),
    "echo": {"echo": True},
    "logprobs": {},
    "messages": {"messages": [{**USER, "content": "Bye."}]},
    "messages[].role": {"messages": [{**USER, "role": "system"}]},
    "messages[].content": {"messages": [{**USER, "content": "Bye."}]},
    "messages[].content[].type": {
        "messages": [{**USER, "content": [{"type": "text", "text": "!"}]}]
    },
    "messages[].content[].text": {
        "messages": [{**USER, "content": [{"type": "text", "text": "?"}]}]
    },
    "messages[].name": (messages(), messages(name="Ann")),
    "messages[].tool_calls": (messages(), messages(tool_calls=[CALL])),
    "messages[].tool_calls[].id": (
        messages(tool_calls=[CALL]),
        messages(tool_calls=[{**CALL, "id": "c2"}]),
    ),
    "messages[].tool_calls[].type": (messages(), messages(tool_calls=[CALL])),
    "messages[].tool_calls[].function": (messages(), messages(tool_calls=[CALL])),
    "messages[].tool_calls[].function.name": (
        messages(tool_calls=[CALL]),
        messages(tool_calls=[{**CALL, "function": {"name": "g", "arguments": "{}"}}]),
    ),
    "messages[].tool_calls[].function.arguments": (
        messages(tool_calls=[CALL]),
        messages(tool_calls=[{**CALL, "function": {"name": "f", "arguments": '{"a": 1}'}}]),
    ),
    "messages[].tool_call_id": (messages(), messages(tool_call_id="c1")),
    "messages[].reasoning_content": (messages(), messages(reasoning_content="Hm.")),
    "max_completion_tokens": (
        {"max_tokens": None},
        {"max_tokens": None, "max_completion_tokens": 3},
    ),
    "top_logprobs": ({"logprobs": True}, {"logprobs": True, "top_logprobs": 2}),
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": (messages(), {**messages(), "continue_final_message": True}),
    "continue_": (messages(), {**messages(), "continue_": True}),
    "instruction_template": {"instruction_template": "Vicuna-v1.1"},
    "chat_template_kwargs": {"chat_template_kwargs": {"colour": "red"}},
    "enable_thinking": {"enable_thinking": False},
    "thinking_token_budget": {"thinking_token_budget": 3},
    "tools": {"tools": [TOOL]},
    "tools[].type": {"tools": [TOOL]},
    "tools[].function": {"tools": [TOOL]},
    "tools[].function.name": (
        {"tools": [TOOL]},
        {"tools": [{**TOOL, "function": {**FUNCTION, "name": "g"}}]},
    ),
    "tools[].function.description": (
        {"tools": [TOOL]},
        {"tools": [{**TOOL, "function": {**FUNCTION, "description": "It."}}]},
    ),
    "tools[].function.parameters": (
        {"tools": [TOOL]},
        {"tools": [{**TOOL, "function": {**FUNCTION, "parameters": SCHEMA}}]},
    ),
    "tools[].function.strict": (
        {"tools": [TOOL]},
        {"tools": [{**TOOL, "function": {**FUNCTION, "strict": True}}]},
    ),
    "tool_choice": ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"}),
    "tool_choice.type": ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": NAMED}),
    "tool_choice.function": ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": NAMED}),
    "tool_choice.function.name": ({"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": NAMED}),
    "parallel_tool_calls": (
        {"tools": [TOOL]},
        {"tools": [TOOL], "parallel_tool_calls": False},
    ),
    "response_format": {"response_format": {"type": "json_object"}},
    "response_format.type": {"response_format": {"type": "json_object"}},
    "response_format.json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    },
}
DIFFERENT_BY_ENDPOINT = {
    ("completions", "logprobs"): {"logprobs": 1},
    ("chat", "logprobs"): {"logprobs": True},
}
REFUSED_HERE = ("model", "suffix", "thinking_token_budget")
"""What this model and its vocabulary cannot do."""
HINTS: dict[str, dict[str, Any]] = {
    "user": {"user": "ann"},
    "metadata": {"metadata": {"team": "red"}},
    "service_tier": {"service_tier": "auto"},
    "safety_identifier": {"safety_identifier": "ann"},
    "prompt_cache_key": {"prompt_cache_key": "ann"},
}
"""What every SDK may send; the fields that have no effect are these and no others."""

WALK = [(endpoint, row) for row in field_table() for endpoint in row.endpoints if endpoint in PATHS]


def rows(status: str) -> list[Any]:
    """Endpoint and field for every field of that status."""
    return [
        pytest.param(endpoint, row, id=f"{endpoint}-{row.name}")
        for endpoint, row in WALK
        if row.status == status
    ]


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    # A special token in between, and an end.
    script = [*encode("It was"), 3, *encode(" so."), 1]
    backend = FakeBackend(lambda request, index: script * 20)
    capabilities = replace(backend.info.capabilities, grammar=True, prompt_lookup=True)
    backend.info = replace(backend.info, capabilities=capabilities)
    with serving(backend, template=TEMPLATE) as server:
        yield server


def outcome(server: ApiServer, endpoint: str, change: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine was asked and what the client got, less what is new every time."""
    first = len(server.backend.requests)
    response = server.post(PATHS[endpoint], {**BASES[endpoint], **change})
    asked = [
        msgspec.structs.replace(request, request_id="")
        for request in server.backend.requests[first:]
    ]
    if response.headers["content-type"].startswith("text/event-stream"):
        return (
            200,
            asked,
            [event.partition('"choices"')[2] for event in response.text.split("\n\n")],
        )
    answer = response.json()
    return (response.status_code, asked, {**answer, "id": "", "created": 0})


@pytest.mark.parametrize(("endpoint", "row"), rows("honoured"))
def test_honoured_field_changes_the_answer(server: ApiServer, endpoint: str, row: FieldRow) -> None:
    """Either the engine is asked for something else or the client gets something else.

    A field without an example here fails: it has not been shown to do anything.
    """
    example = DIFFERENT_BY_ENDPOINT.get((endpoint, row.name)) or EXAMPLES[row.name]
    without, with_field = example if isinstance(example, tuple) else ({}, example)

    plain = outcome(server, endpoint, without)
    changed = outcome(server, endpoint, with_field)

    assert plain[0] == 200, plain
    assert changed != plain
    assert changed[0] == 200 or row.name in REFUSED_HERE, changed


@pytest.mark.parametrize(("endpoint", "row"), rows("accepted"))
def test_only_known_hints_have_no_effect(server: ApiServer, endpoint: str, row: FieldRow) -> None:
    """They change nothing, and there are no others."""
    if row.name == "messages[].tool_calls[].index":
        without = messages(tool_calls=[CALL])
        with_field = messages(tool_calls=[{**CALL, "index": 0}])
    else:
        without, with_field = {}, HINTS[row.name]

    assert outcome(server, endpoint, with_field) == outcome(server, endpoint, without)


@pytest.mark.parametrize(("endpoint", "row"), rows("refused"))
def test_refused_field_is_named_unless_it_is_neutral(
    server: ApiServer, endpoint: str, row: FieldRow
) -> None:
    """Neutral values change nothing; anything else is a 400 and reaches no engine."""
    for neutral in neutral_values(endpoint, row.name):
        assert outcome(server, endpoint, body_with(row.name, neutral)) == outcome(
            server, endpoint, body_with(row.name, None)
        )
    for value in ({"a": 1}, "something", 3, True, [1]):
        if value in neutral_values(endpoint, row.name):
            continue
        status, asked, answer = outcome(server, endpoint, body_with(row.name, value))

        assert status == 400, answer
        assert asked == []
        assert answer["error"]["code"] == "unsupported_parameter"
        assert answer["error"]["param"] == row.name.replace("[]", ".0")


def body_with(name: str, value: Any) -> dict[str, Any]:
    """A body whose field of that name has this value."""
    parents, _, last = name.rpartition(".")
    if parents == "messages[]":
        return {"messages": [{**USER, last: value}]}
    if parents == "messages[].content[]":
        return {"messages": [{**USER, "content": [{"type": "text", "text": "a", last: value}]}]}
    if parents == "stream_options":
        return {"stream": True, "stream_options": {last: value}}
    return {name: value}


def neutral_values(endpoint: str, name: str) -> list[Any]:
    """The values a refused field may have."""
    for row_endpoint, row in WALK:
        if (row_endpoint, row.name) == (endpoint, name):
            return list(msgspec.json.decode(f"[{row.type}]"))
    raise KeyError(name)


def test_every_example_is_of_a_field() -> None:
    """No example outlives its field."""
    names = {row.name for _, row in WALK}

    assert names >= EXAMPLES.keys()
    assert names >= HINTS.keys()


def test_every_field_is_declared() -> None:
    """A field that does not say what becomes of it has no place in a request."""
    for model in REQUESTS.values():
        for field in model.model_fields.values():
            assert declaration(field)["x-status"] in ("honoured", "accepted", "refused")
            assert field.description
