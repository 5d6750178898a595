"""LangChain's `ChatOpenAI`, unmodified, against the demo model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from tests.helpers.server_process import ServerProcess

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="needs the client libraries of make clients"
)
messages = pytest.importorskip(
    "langchain_core.messages", reason="needs the client libraries of make clients"
)

QUESTION = "What is the weather in Rome?"


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    is_capital: bool


def get_weather(city: str) -> str:
    """Current weather of a city"""
    return f'{{"city": "{city}", "temperature": 21}}'


@pytest.fixture(name="chat")
def _chat(server: ServerProcess) -> Any:
    return langchain_openai.ChatOpenAI(
        model="demo",
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=150,
        max_retries=0,
        stream_usage=True,
    )


def test_a_tool_is_called_and_its_result_used(chat: Any) -> None:
    """`bind_tools`, the call, a tool message, the answer."""
    with_tools = chat.bind_tools([get_weather])
    question = messages.HumanMessage(QUESTION)
    called = with_tools.invoke([question])

    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Rome"})
    result = messages.ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])
    answered = with_tools.invoke([question, called, result])
    assert answered.content
    assert not answered.tool_calls


def test_a_streamed_tool_call_adds_up(chat: Any) -> None:
    """Chunks of the call join into the same one."""
    whole = None
    for chunk in chat.bind_tools([get_weather]).stream(QUESTION):
        whole = chunk if whole is None else whole + chunk

    assert whole is not None
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Rome"})


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_a_model(chat: Any, method: str) -> None:
    """By response format and by a forced call."""
    structured = chat.with_structured_output(City, method=method)

    assert isinstance(structured.invoke("Tell me about Rome as JSON."), City)


def test_a_stream_ends_with_the_usage(chat: Any) -> None:
    """Text in several chunks; the sum has the counts."""
    chunks = list(chat.stream("Tell me a story."))

    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert "".join(chunk.text for chunk in chunks)
    assert len(usage) == 1
    assert usage[0]["total_tokens"] == usage[0]["input_tokens"] + usage[0]["output_tokens"] > 0


async def test_batches_run_side_by_side(chat: Any) -> None:
    """The asynchronous interface."""
    answers = await chat.abatch(["Tell me a story.", QUESTION, "Who are you?"])

    assert len(answers) == 3
    assert all(answer.content for answer in answers)


def test_responses_are_an_interface_too(server: ServerProcess) -> None:
    """`use_responses_api` calls functions by items."""
    chat = langchain_openai.ChatOpenAI(
        model="demo",
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=150,
        max_retries=0,
        use_responses_api=True,
    )
    called = chat.bind_tools([get_weather]).invoke(QUESTION)

    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Rome"})
