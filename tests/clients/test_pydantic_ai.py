"""pydantic-ai, unmodified, against the demo model: chat and responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from tests.helpers.server_process import ServerProcess

pydantic_ai = pytest.importorskip(
    "pydantic_ai", reason="needs the client libraries of make clients"
)
models = pytest.importorskip(
    "pydantic_ai.models.openai", reason="needs the client libraries of make clients"
)
providers = pytest.importorskip(
    "pydantic_ai.providers.openai", reason="needs the client libraries of make clients"
)

SETTINGS: Any = {"temperature": 0, "max_tokens": 150}


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    is_capital: bool


def agent(server: ServerProcess, kind: str = "chat", **fields: Any) -> Any:
    """An agent on one of OpenAI's two interfaces."""
    model = {"chat": models.OpenAIChatModel, "responses": models.OpenAIResponsesModel}[kind]
    provider = providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    return pydantic_ai.Agent(
        model("demo", provider=provider), model_settings=SETTINGS, retries=0, **fields
    )


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_an_agent_uses_its_tool(server: ServerProcess, kind: str) -> None:
    """The whole loop, run by the agent: call, result, answer."""
    asked_for: list[str] = []

    def get_weather(city: str) -> str:
        """Current weather of a city"""
        asked_for.append(city)
        return '{"temperature": 21}'

    result = await agent(server, kind, tools=[get_weather]).run("What is the weather in Rome?")

    assert asked_for == ["Rome"]
    assert result.output


@pytest.mark.parametrize("output", ["ToolOutput", "NativeOutput"])
async def test_output_is_a_model(server: ServerProcess, output: str) -> None:
    """By a forced call, and by a response format."""
    wanted = getattr(pydantic_ai, output)(City)
    result = await agent(server, output_type=wanted).run("Tell me about Rome as JSON.")

    assert isinstance(result.output, City)


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_text_streams(server: ServerProcess, kind: str) -> None:
    """Deltas add up to the output."""
    async with agent(server, kind).run_stream("Tell me a story.") as stream:
        text = "".join([delta async for delta in stream.stream_text(delta=True)])
        assert text == await stream.get_output()
