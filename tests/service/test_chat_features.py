"""Tools and structured output from the demo model, through the `openai` client as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, Field

from tests.helpers.server_process import ServerProcess

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": PARAMETERS,
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
STORY: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[ServerProcess]:
    flags = ("--model", "demo", "--loader", "auto", "--max-num-seqs", "16", "--num-threads", "2")
    with ServerProcess(*flags, "--max-model-len", "512") as server:
        yield server.wait_until_ready()


@pytest.fixture(name="client", scope="module")
def _client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def answer(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    """The first choice of a greedy answer."""
    fields = {"temperature": 0, "max_tokens": 100, **fields}
    return client.chat.completions.create(model="demo", messages=messages, **fields).choices[0]


def test_the_model_calls_a_tool_and_uses_its_result(client: openai.OpenAI) -> None:
    """The whole round: question, call, result, answer."""
    choice = answer(client, QUESTION, tools=[WEATHER])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'}
    conversation = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
    last = answer(client, conversation, tools=[WEATHER])
    assert last.finish_reason == "stop"
    assert last.message.content
    assert last.message.tool_calls is None


def test_a_streamed_call_is_the_same_call(client: openai.OpenAI) -> None:
    """The client's own helper reads the deltas, however they were cut."""
    whole = answer(client, QUESTION, tools=[WEATHER]).message.tool_calls[0].function
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, tools=[WEATHER], temperature=0, max_tokens=100
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == (whole.name, whole.arguments)
    assert final.choices[0].finish_reason == "tool_calls"
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas) == whole.arguments


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call_is_made_whatever_was_asked(client: openai.OpenAI, choice: Any) -> None:
    """The grammar leaves the model nothing else; the arguments match the schema."""
    forced = answer(client, STORY, tools=[WEATHER], tool_choice=choice, temperature=1, n=3)
    (call,) = forced.message.tool_calls[:1]
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city"}
    assert forced.finish_reason in ("tool_calls", "length")


def test_tools_may_be_left_alone_or_forbidden(client: openai.OpenAI) -> None:
    """`auto` tells a story where one is wanted, strict or not; `none` never calls."""
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    for tool in (WEATHER, strict):
        assert answer(client, STORY, tools=[tool]).message.tool_calls is None
    single = answer(client, QUESTION, tools=[strict], parallel_tool_calls=False)
    assert len(single.message.tool_calls) == 1
    assert answer(client, QUESTION, tools=[WEATHER], tool_choice="none").message.content


class City(BaseModel):
    name: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=40_000_000)
    is_capital: bool


def test_pydantic_models_come_back(client: openai.OpenAI) -> None:
    """`parse()` with a response format, and with a tool made of a model."""
    question: Any = [{"role": "user", "content": "Tell me about Rome as JSON."}]
    parsed = client.chat.completions.parse(
        model="demo", messages=question, response_format=City, temperature=0, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, City)
    called = client.chat.completions.parse(
        model="demo",
        messages=question,
        tools=[pydantic_function_tool(City)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=200,
    )
    (call,) = called.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, City)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_choice": ["yes", "no/maybe", 'a "quote"']}, r'yes|no/maybe|a "quote"'),
        ({"guided_regex": r"[0-9]{3}/[0-9]{2}\n?"}, r"[0-9]{3}/[0-9]{2}\n?"),
        ({"guided_grammar": 'start: A " " A\nA: /[ab]{4}/'}, "[ab]{4} [ab]{4}"),
        ({"grammar_string": 'root ::= ("cat" | "dog") [0-9]{2} "."'}, r"(cat|dog)[0-9]{2}\."),
        ({"guided_json": {"type": "integer", "minimum": 10, "maximum": 99}}, "[1-9][0-9]"),
    ],
)
def test_constraints_hold_in_chat_and_completions(
    client: openai.OpenAI, fields: Any, pattern: str
) -> None:
    """Whole answers match, at a temperature at which nothing would by itself."""
    chat = answer(client, STORY, temperature=1.5, extra_body=fields)
    assert re.fullmatch(pattern, chat.message.content)
    text = client.completions.create(
        model="demo", prompt="Once", temperature=1.5, max_tokens=50, extra_body=fields
    )
    assert re.fullmatch(pattern, text.choices[0].text)


def test_any_json_object(client: openai.OpenAI) -> None:
    """`json_object` without a schema."""
    question: Any = [{"role": "user", "content": "Answer in JSON: who are you?"}]
    found = answer(client, question, response_format={"type": "json_object"})
    assert isinstance(json.loads(found.message.content), dict)


def _schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "regex"),
        ({"grammar_string": 'root ::= "a" | foo'}, "grammar_string", "foo"),
        ({"guided_json": {"uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_json": {"not": {}}}, "guided_json", "not"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex"),
        (
            {"response_format": _schema({"if": {}, "then": {}})},
            "response_format.json_schema.schema",
            "if",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"scheme": {}}}},
            "response_format.json_schema.scheme",
            "Unknown",
        ),
        ({"guided_json": {"items": [{"const": 2**53 + 1}]}}, "guided_json", "2**53"),
        ({"guided_json": '{"items":' * 900 + "{}" + "}" * 900}, "guided_json", "levels deep"),
        ({"guided_json": {"enum": ["x" * 200_000]}}, "guided_json", "longer"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            "'f'",
        ),
        (
            {"tools": [{"type": "custom", "function": {"name": "f"}}]},
            "tools.0.type",
            "Only functions",
        ),
        ({"thinking_token_budget": 3}, "thinking_token_budget", "reasoning"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    client: openai.OpenAI, fields: Any, param: str, reason: str
) -> None:
    """A 400 that names the field and says why; never a 500, never ignored."""
    with pytest.raises(openai.BadRequestError) as caught:
        answer(client, STORY, extra_body=fields)
    assert caught.value.param == param
    assert reason in caught.value.message


def test_a_strict_tool_with_an_impossible_schema_is_refused(client: openai.OpenAI) -> None:
    """Only strict ones are: without `strict` the schema is for the model to read."""
    function = {"name": "f", "parameters": {"type": "object", "uniqueItems": True}}
    tool: Any = {"type": "function", "function": function}
    assert answer(client, STORY, tools=[tool]).finish_reason
    strict: Any = {"type": "function", "function": {**function, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        answer(client, STORY, tools=[strict])


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_goes_on_where_it_was_cut(server: ServerProcess, stream: bool) -> None:
    """Resumed after any of its tokens: what was said and what follows make the same call."""
    body = {
        "messages": QUESTION, "tools": [WEATHER], "tool_choice": "required",
        "temperature": 0, "max_tokens": 60, "return_token_ids": True,
    }  # fmt: skip
    url = f"{server.url}/v1/chat/completions"
    chunks = _chunks(server.http.post(url, json={**body, "stream": True}).text)
    whole = _arguments(chunks)
    assert json.loads(whole) == {"city": "Rome"}
    for cut in range(1, len(chunks), 4):
        said = chunks[:cut]
        token_ids = [token for chunk in said for token in chunk["token_ids"]]
        resumed = {**body, "stream": stream, "resume_token_ids": [token_ids]}
        response = server.http.post(url, json=resumed)
        if stream:
            rest = _chunks(response.text)
            assert _arguments(said) + _arguments(rest) == whole
            assert rest[-1]["finish_reason"] == "tool_calls"
            assert not any(chunk["delta"].get("content") for chunk in rest)
        else:
            assert response.json()["choices"][0]["finish_reason"] == "tool_calls"


def test_constrained_and_free_requests_share_batches(client: openai.OpenAI) -> None:
    """Sixteen at once, half of them constrained: each gets what it gets alone."""
    fields: list[dict[str, Any]] = [
        {"seed": i, "extra_body": {"guided_regex": "[a-z]{5,20}[0-9]"} if i % 2 else {}}
        for i in range(16)
    ]

    def text(one: dict[str, Any]) -> str:
        return str(answer(client, STORY, temperature=1, max_tokens=20, **one).message.content)

    alone = [text(one) for one in fields[:4]]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(text, fields))
    assert together[:4] == alone
    assert all(re.fullmatch("[a-z]{5,20}[0-9]?", found) for found in together[1::2])


def _chunks(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]


def _arguments(chunks: list[dict[str, Any]]) -> str:
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls") or ()]
    assert all(call["index"] == 0 for call in calls)
    return "".join(call["function"].get("arguments") or "" for call in calls)
