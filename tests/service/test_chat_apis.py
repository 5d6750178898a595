"""Anthropic's messages and OpenAI's responses from the demo model: tools and structured text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.helpers.server_process import ServerProcess

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ABOUT: dict[str, Any] = {"name": "get_weather", "description": "Current weather of a city"}
FUNCTION: Any = {"type": "function", **ABOUT, "parameters": SCHEMA}
TOOL: Any = {**ABOUT, "input_schema": SCHEMA}
QUESTION = "What is the weather in Rome?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
RESULT = '{"temperature": 21}'


class City(BaseModel):
    """What structured answers are about; other keys could go on for ever."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=40_000_000)
    is_capital: bool


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[ServerProcess]:
    flags = ("--model", "demo", "--loader", "auto", "--max-num-seqs", "8", "--num-threads", "2")
    with ServerProcess(*flags, "--max-model-len", "512") as server:
        yield server.wait_until_ready()


@pytest.fixture(name="claude")
def _claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(name="client")
def _client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGE: dict[str, Any] = {"model": "demo", "max_tokens": 100, "extra_body": {"temperature": 0}}
RESPONSE: dict[str, Any] = {"model": "demo", "max_output_tokens": 200, "temperature": 0}


def test_message_uses_a_tool_and_its_result(claude: anthropic.Anthropic) -> None:
    """The whole round in Anthropic's blocks: question, call, result, answer."""
    first = claude.messages.create(**MESSAGE, messages=ASKED, tools=[TOOL])

    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    turns: Any = [
        *ASKED,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    last = claude.messages.create(**MESSAGE, messages=turns, tools=[TOOL])
    assert last.stop_reason == "end_turn"
    assert [block.type for block in last.content] == ["text"]


def test_streamed_tool_use_is_the_same(claude: anthropic.Anthropic) -> None:
    """The arguments come bit by bit and add up to the same input."""
    whole = claude.messages.create(**MESSAGE, messages=ASKED, tools=[TOOL])
    with claude.messages.stream(**MESSAGE, messages=ASKED, tools=[TOOL]) as stream:
        deltas = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()

    assert json.loads("".join(deltas)) == {"city": "Rome"}
    assert [(b.name, b.input) for b in final.content if b.type == "tool_use"] == [
        (b.name, b.input) for b in whole.content if b.type == "tool_use"
    ]
    assert final.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_tool_choice_forces_one_call(claude: anthropic.Anthropic, choice: Any) -> None:
    """Whatever was asked; without parallel calls it is one."""
    message = claude.messages.create(
        **MESSAGE,
        messages=[{"role": "user", "content": "Tell me a story."}],
        tools=[{**TOOL, "strict": True}],
        tool_choice={**choice, "disable_parallel_tool_use": True},
    )

    (call,) = message.content
    assert call.type == "tool_use"
    assert message.stop_reason in ("tool_use", "max_tokens")


def test_tool_choice_none_forbids(claude: anthropic.Anthropic) -> None:
    """The model answers in words."""
    message = claude.messages.create(
        **MESSAGE, messages=ASKED, tools=[TOOL], tool_choice={"type": "none"}
    )

    assert [block.type for block in message.content] == ["text"]


def test_message_follows_a_schema(claude: anthropic.Anthropic) -> None:
    """`output_config` holds the text to the schema."""
    config: Any = {"format": {"type": "json_schema", "schema": City.model_json_schema()}}
    message = claude.messages.create(
        **{**MESSAGE, "max_tokens": 200, "extra_body": {"temperature": 1}},
        messages=[{"role": "user", "content": "Tell me about Rome as JSON."}],
        output_config=config,
    )

    (block,) = message.content
    assert block.type == "text"
    assert City.model_validate_json(block.text)


def test_thinking_can_be_left_off(claude: anthropic.Anthropic) -> None:
    """Off is fine for a model that does not think; a budget is refused by name."""
    message = claude.messages.create(**MESSAGE, messages=ASKED, thinking={"type": "disabled"})

    assert message.content
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        claude.messages.create(
            **MESSAGE, messages=ASKED, thinking={"type": "enabled", "budget_tokens": 1024}
        )


def test_response_calls_a_function_and_uses_its_output(client: openai.OpenAI) -> None:
    """The whole round in items."""
    first = client.responses.create(**RESPONSE, input=QUESTION, tools=[FUNCTION])

    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Rome"})
    items: Any = [
        *ASKED,
        call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": RESULT},
    ]
    last = client.responses.create(**RESPONSE, input=items, tools=[FUNCTION])
    assert last.status == "completed"
    assert last.output_text


def test_streamed_function_call_is_the_same(client: openai.OpenAI) -> None:
    """The client's accumulator makes the same item of the events."""
    with client.responses.stream(**RESPONSE, input=QUESTION, tools=[FUNCTION]) as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output

    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert call.type == "function_call"
    assert call.arguments == "".join(deltas)
    assert json.loads(call.arguments) == {"city": "Rome"}


def test_function_calls_are_forced_and_forbidden(client: openai.OpenAI) -> None:
    """`required`, by name, and `none`."""
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        forced = client.responses.create(
            **{**RESPONSE, "max_output_tokens": 60},
            input="Tell me a story.",
            tools=[FUNCTION],
            tool_choice=choice,  # type: ignore[arg-type]
            parallel_tool_calls=False,
        )
        assert [item.type for item in forced.output] == ["function_call"]
    answered = client.responses.create(
        **RESPONSE, input=QUESTION, tools=[FUNCTION], tool_choice="none"
    )
    assert answered.output_text


def test_pydantic_models_come_back_from_responses(client: openai.OpenAI) -> None:
    """`parse()` whole and streamed."""
    asked = "Tell me about Rome as JSON."
    parsed = client.responses.parse(**RESPONSE, input=asked, text_format=City)
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(**RESPONSE, input=asked, text_format=City) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed
