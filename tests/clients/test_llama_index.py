"""LlamaIndex' `OpenAILike`, unmodified, against the demo model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.helpers.server_process import ServerProcess

openai_like = pytest.importorskip(
    "llama_index.llms.openai_like", reason="needs the client libraries of make clients"
)
llms = pytest.importorskip(
    "llama_index.core.llms", reason="needs the client libraries of make clients"
)
tools = pytest.importorskip(
    "llama_index.core.tools", reason="needs the client libraries of make clients"
)


def get_weather(city: str) -> str:
    """Current weather of a city"""
    return f'{{"city": "{city}", "temperature": 21}}'


def connect(server: ServerProcess, **fields: Any) -> Any:
    """The client as its documentation makes one."""
    return openai_like.OpenAILike(
        model="demo",
        api_base=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=100,
        max_retries=0,
        context_window=512,
        **fields,
    )


def test_it_completes_and_streams(server: ServerProcess) -> None:
    """The completions route: whole, and in pieces that add up to the same."""
    llm = connect(server, is_chat_model=False)
    whole = llm.complete("This is a cake recipe:")
    pieces = list(llm.stream_complete("This is a cake recipe:"))

    assert whole.text
    assert pieces[-1].text == whole.text
    assert len(pieces) > 1


def test_it_chats_and_streams(server: ServerProcess) -> None:
    """The chat route."""
    llm = connect(server, is_chat_model=True)
    conversation = [llms.ChatMessage(role="user", content="Tell me a story.")]
    whole = llm.chat(conversation)
    pieces = list(llm.stream_chat(conversation))

    assert whole.message.content
    assert pieces[-1].message.content == whole.message.content


def test_it_calls_tools(server: ServerProcess) -> None:
    """`chat_with_tools` reads the call."""
    llm = connect(server, is_chat_model=True, is_function_calling_model=True)
    tool = tools.FunctionTool.from_defaults(get_weather, description="Current weather of a city")
    answer = llm.chat_with_tools([tool], user_msg="What is the weather in Rome?")

    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Rome"})
